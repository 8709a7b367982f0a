"""The page on troubleshooting quotes what skindist says: each message stands whole in the sources."""

import ast
import re
from itertools import product
from pathlib import Path

import pytest

import skindist

ROOT = Path(skindist.__file__).parent
GAP = "\0"  # what only a run can fill in
QUOTED = re.findall(r"^```\n(.*?)^```$", (ROOT / "TROUBLESHOOTING.md").read_text(), re.MULTILINE | re.DOTALL)


def texts(node: ast.AST) -> list[str]:
    """Every text that an expression can be, as far as the source tells."""
    match node:
        case ast.Constant(value=str(text)):
            return [text.replace("%s", GAP)]
        case ast.JoinedStr(values=parts):
            return ["".join(words) for words in product(*map(texts, parts))]
        case ast.FormattedValue(value=inner):
            return texts(inner)
        case ast.IfExp(body=this, orelse=that):
            return texts(this) + texts(that)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return ["".join(words) for words in product(texts(left), texts(right))]
    return [GAP]


@pytest.fixture(scope="module")
def said() -> str:
    """All texts of all modules, one a line."""
    trees = [ast.parse(path.read_text()) for path in ROOT.rglob("*.py")]
    found = (text for tree in trees for node in ast.walk(tree) if isinstance(node, ast.expr) for text in texts(node))
    return "\n".join({" ".join(text.split()) for text in found})


def stands(message: str, said: str) -> bool:
    """Whether a text is this message from its first word to its last; `...` is anything."""
    pattern = ".*".join(map(re.escape, " ".join(message.split()).split("...")))
    return re.search(f"^{pattern}$", said, re.MULTILINE) is not None


@pytest.mark.parametrize("message", QUOTED)
def test_a_message_on_the_page_is_one_that_the_code_says(message: str, said: str) -> None:
    assert stands(message, said)


def test_there_are_enough_of_them_and_no_other_passes(said: str) -> None:
    assert len(QUOTED) == len(set(QUOTED)) >= 25
    for wrong in ("--data.path ...: no such folders", "--data.path lesions: no such folder", "no such folder ..."):
        assert not stands(wrong, said)
