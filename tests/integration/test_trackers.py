"""Other trackers get the curves under the same names; what they cannot take does no harm."""

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from skindist.config import Config, TrackingConfig
from skindist.errors import UserError
from skindist.run.folder import Run
from skindist.tracking import other_trackers
from skindist.tracking.other_trackers import OtherTrackers, check_trackers
from tests.helpers import jobs
from tests.helpers.ranks import run_ranks


@pytest.mark.extra
@pytest.mark.parametrize("at_first", ["tensorboard", ""])
def test_tensorboard_holds_each_point_of_the_record_once(demo: Path, tmp_path: Path, at_first: str) -> None:
    """Of a run on two ranks that was killed, and went on from a checkpoint before what it had logged; also if
    TensorBoard was switched on only then."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder, words = tmp_path / "run", ("--tracking.to=tensorboard", "--train.epochs=3", "--early_stopping.patience=3")
    run_ranks(2, tmp_path / "first", jobs.fit_until, 6, demo, folder, *words, f"--tracking.to={at_first}")
    newest = Run(folder).newest_checkpoint()
    assert newest
    shutil.rmtree(newest)
    run_ranks(2, tmp_path / "second", jobs.fit_and_watch, demo, folder, *words)
    assert len(list(folder.glob("tensorboard/events*"))) == 1 + bool(at_first), "one writer for each start"

    found: Any = accumulator.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    for name in ("train/loss", "val/loss", "val/auroc", "epoch"):
        logged = [(event["global_step"], event[name]) for event in Run(folder).metrics() if name in event]
        assert [(point.step, pytest.approx(point.value, rel=1e-6)) for point in found.Scalars(name)] == logged
    results = Run(folder).results()
    (auroc,), (low,) = found.Scalars("test/auroc"), found.Scalars("test/auroc_low")
    assert (auroc.value, low.value) == pytest.approx(
        (results["test"]["auroc"]["value"], results["test"]["auroc"]["low"]), rel=1e-6
    )
    text, *_ = found.Tensors("config/text_summary")
    assert b"| train.epochs | 3 |" in text.tensor_proto.string_val[0]
    assert str(tmp_path).encode() not in b"".join(file.read_bytes() for file in folder.glob("tensorboard/*"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("wandb,tensorbord", "--tracking.to tensorbord: no such tracker; choose among aim, clearml, "),
        ("mlflow", "--tracking.to mlflow: its package is not installed: pip install mlflow"),
    ],
)
def test_a_tracker_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, asked: str, said: str) -> None:
    monkeypatch.setattr(other_trackers, "get_available_trackers", lambda: ["wandb"])
    with pytest.raises(UserError, match=said):
        check_trackers(TrackingConfig(to=asked))
    check_trackers(TrackingConfig(to="wandb"))
    check_trackers(TrackingConfig(to=""))


def test_wandb_is_one_of_them() -> None:
    assert TrackingConfig().names == ["wandb"]
    assert TrackingConfig(to="wandb, mlflow", wandb="disabled").names == ["mlflow"]


class Fragile:
    """A tracker that takes two calls."""

    calls: ClassVar[list[Any]] = []

    def __init__(self, project: str, **options: Any) -> None:
        self.calls.append((project, options))

    def start(self) -> None:
        """Nothing."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(values)

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append((values, step))
        if step == 2:
            raise ConnectionError("gone\nfor good")

    def finish(self) -> None:
        self.calls.append("finished")


def test_one_that_fails_is_named_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", Fragile)
    monkeypatch.setattr(other_trackers, "QUICK", {})
    config = Config(tracking=TrackingConfig(to="mlflow", name="chosen"))
    with OtherTrackers(Accelerator(cpu=True), Run(tmp_path), config, "id", 0) as others:
        for step in (1, 2, 3):
            others.log({"train/loss": 0.5, "val/auroc": None, "global_step": step})
    (project, options), settings, *sent = Fragile.calls
    assert (project, options["run_name"], options["tags"]["mlflow.user"]) == ("skindist", "chosen", "-")
    assert settings["train.epochs"] == 10
    assert "data.path" not in settings
    assert sent == [({"train/loss": 0.5, "global_step": step}, step) for step in (1, 2)]
    assert caplog.messages == ["mlflow stopped (ConnectionError: gone); the run goes on, and its own record is whole"]
    json.dumps(settings)
