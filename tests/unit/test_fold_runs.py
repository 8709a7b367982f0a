"""The runs of `skindist folds`: what is said of one that cannot begin, fails, or still goes on."""

import re
from pathlib import Path

import pytest

from skindist.errors import UserError
from skindist.folds import run_folds


def script(file: Path, text: str) -> list[str]:
    """A training command of the user's own."""
    file.write_text(text)
    file.chmod(0o755)
    return [str(file)]


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_command_that_cannot_be_started_ends_all(tmp_path: Path, at_once: int) -> None:
    command = script(tmp_path / "job", "echo it has no shebang\n")
    said = rf"^cannot run seed 0, fold \d: {re.escape(command[0])}: Exec format error$"
    with pytest.raises(UserError, match=said):
        run_folds(command, 4, 1, tmp_path / "out", at_once)


def test_a_log_that_cannot_be_written_ends_all(tmp_path: Path) -> None:
    (log := tmp_path / "out/runs/seed-0-fold-0.log").mkdir(parents=True)
    with pytest.raises(UserError, match=f"^cannot run seed 0, fold 0: {re.escape(str(log))}: Is a directory$"):
        run_folds(["true"], 2, 1, tmp_path / "out")
