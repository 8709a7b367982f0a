"""The public names: complete, typed for editors and mypy, imported only when used."""

import inspect
import re
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from pydoc import locate
from types import FunctionType

import pytest

import skindist
from tests.helpers.commands import ROOT

SNIPPET = """
from skindist import Config, EvalLoader, Learner, Run, TrainConfig, build_learner, evaluate, fit, join_group

config = Config(train=TrainConfig(epochs=3))
reveal_type(config.train.epochs)
reveal_type(fit)
reveal_type(evaluate)
reveal_type(build_learner(join_group(), config))
reveal_type(Run.split)
Config(train=TrainConfig(epoch=3))
skindist_has_no_such_name: Learner = 3
"""
SEEN = (
    'Revealed type is "int"',
    "def (config: skindist.config.Config) -> dict[str, Any]",
    "-> skindist.evaluation.predictions.Predictions",
    'Revealed type is "skindist.training.learner.Learner"',
    "-> list[skindist.data.split.Row]",
    'Unexpected keyword argument "epoch" for "TrainConfig"',
    'expression has type "int", variable has type "Learner"',
)


def test_public_names_are_sorted_and_exist() -> None:
    assert skindist.__all__ == sorted(set(skindist.__all__))
    assert all(getattr(skindist, name).__name__ == name for name in skindist.__all__)


def test_every_section_of_the_config_is_public() -> None:
    sections = {type(getattr(skindist.Config(), name)).__name__ for name in skindist.Config.__dataclass_fields__}
    assert sections <= set(skindist.__all__)


def test_importing_the_package_costs_nothing() -> None:
    code = "import sys, skindist; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


METHODS = (FunctionType, classmethod, staticmethod, property, cached_property)
DOCUMENTED = {name: getattr(skindist, name) for name in skindist.__all__}
DOCUMENTED |= {
    f"{name}.{member}": getattr(value, "__func__", value)
    for name in skindist.__all__
    for member, value in vars(getattr(skindist, name)).items()
    if isinstance(value, METHODS) and not member.startswith("_")
}
"""What the reference shows: the public names, and the methods and properties of each class."""


@pytest.mark.parametrize("name", DOCUMENTED)
def test_each_says_what_it_is_and_names_only_what_there_is(name: str) -> None:
    """A sentence comes first. What stands in backticks is a parameter, a member, a setting or a name of the module."""
    thing, owner = DOCUMENTED[name], DOCUMENTED[name.split(".")[0]]
    text = inspect.getdoc(thing) or ""
    assert re.match(r"[A-Z`].*[.:]\Z", text.split("\n\n")[0], re.DOTALL), "the first paragraph is no sentence"
    settings = skindist.Config().to_dict()
    known = {*dir(owner), *getattr(owner, "__dataclass_fields__", ()), *dir(sys.modules[owner.__module__])}
    known |= {f"{section}.{key}" for section, keys in settings.items() for key in keys}
    known |= set(inspect.signature(thing).parameters) if isinstance(thing, FunctionType) else set()
    for word in re.findall(r"`([\w.]+)[^`]*`", text):
        first = word.split(".")[0]
        there = locate(word) if first == "skindist" else (word if first in settings else first) in known
        assert there, f"`{word}` leads nowhere"


@pytest.mark.slow
def test_mypy_knows_the_types_of_a_users_code(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs mypy (pip install -e '.[dev]')")
    (tmp_path / "snippet.py").write_text(SNIPPET)
    ours = [f"--config-file={ROOT / 'pyproject.toml'}", f"--cache-dir={ROOT / '.mypy_cache'}"]  # it knows torch by now
    command = [sys.executable, "-m", "mypy", *ours, "snippet.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    for wanted in SEEN:
        assert wanted in done.stdout
