"""A model is sent as it is shown, to whom it was meant for, and nothing else with it."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm

from skindist import cli
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.differences import UNITS, TrainingSet
from skindist.evaluation.frozen import Frozen
from skindist.evaluation.operating_point import Threshold
from skindist.inference.saved_model import save_model
from tests.helpers import commands

FILES = ("config.json", "model.safetensors", "README.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, with other files beside it."""
    folder = tmp_path_factory.mktemp("push") / "model"
    frozen = Frozen(Calibration(1.5, -0.25), Threshold(0.3, "validation", 0.95))
    trained_on = TrainingSet(30, 10, dict.fromkeys(UNITS, (1.0, 2.0, 3.0)))
    save_model(folder, timm.create_model("test_resnet", num_classes=2), 64, frozen, trained_on, "# A card")
    for name in ("patients.csv", ".gitignore", "optimizer.safetensors"):
        (folder / name).write_text("not to be sent")
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was said and what had arrived, push by push."""
    home = tmp_path_factory.mktemp("home")
    done = commands.run(sys.executable, "-m", "tests.helpers.hub", folder, home, "send")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(
    ("push", "said"),
    [
        ("no name", "new: not the name of a repository; give OWNER/NAME"),
        ("no token", "no token of the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN"),
        ("another token", "someone/new: the Hub does not know this token; run `hf auth login` again"),
        (
            "no terminal",
            "nobody can be asked without a terminal, so nothing was sent: look at the list, then give --yes",
        ),
        ("no", "nothing was sent"),
        ("public, where it is private", "someone/new: is there already, and private; leave out --public"),
        ("private, where it is public", "someone/new: is there already, and public; give --public, or another name"),
        ("nobody answers", "someone/new: the Hub cannot be reached (ConnectError"),
    ],
)
def test_what_cannot_be_sent_is_one_line_and_nothing_is(seen: dict[str, Any], push: str, said: str) -> None:
    assert seen[push]["said"].startswith(said)
    assert "\n" not in seen[push]["said"]
    assert seen[push]["wrote"] == 0


@pytest.mark.parametrize(("push", "visibility"), [("yes", "private"), ("again", "private"), ("public", "public")])
def test_three_files_arrive_as_they_are_and_no_other(
    seen: dict[str, Any], folder: Path, push: str, visibility: str
) -> None:
    assert seen[push]["said"] == "sent"
    assert seen[push]["visibility"] == visibility
    assert seen[push]["files"] == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def test_a_token_that_may_not_write_is_one_line(seen: dict[str, Any]) -> None:
    assert seen["read only"]["said"].startswith("someone/new: this token may not write there; make one that may")
    assert seen["read only"]["files"] == {}


def test_a_model_that_is_not_whole_is_never_sent(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "README.md").rename(folder / "CARD.md")
    try:
        assert cli.main(["push", str(folder), "someone/new", "--yes"]) == 2
    finally:
        (folder / "CARD.md").rename(folder / "README.md")
    assert "has no README.md, the model card, without which nothing is sent" in capsys.readouterr().err
    assert cli.main(["push", "someone/else", "someone/new", "--yes"]) == 2
    assert "someone/else: no such folder" in capsys.readouterr().err
    assert cli.main(["push", str(folder), "someone/new", "--yes"]) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
