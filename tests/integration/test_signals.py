"""SIGTERM and SIGUSR1, as schedulers send them: the state is saved, the status says so, and the run goes on."""

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from skindist.cli import train
from tests.helpers.commands import LAUNCH, PATIENCE, ROOT, flags
from tests.helpers.forked import Forked
from tests.helpers.same_bytes import newest

LONG = ("--train.epochs=900", "--early_stopping.patience=900", "--tracking.wandb=disabled")


def wait_for_an_epoch(process: Forked | subprocess.Popen[str]) -> None:
    """Until the run has said that its first epoch is over; it goes on meanwhile."""
    assert process.stdout is not None
    assert any(line.startswith("epoch 1:") for line in process.stdout), "the run ended before its first epoch"


def last_state(folder: Path) -> dict[str, int]:
    state: dict[str, int] = json.loads((newest(folder) / "state.json").read_text())["train"]
    return state


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_saves_and_says_so(demo: Path, tmp_path: Path, number: signal.Signals, status: int) -> None:
    folder = tmp_path / "run"
    with Forked(train, flags(demo, folder, *LONG)) as process:
        wait_for_an_epoch(process)
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == status, errors
    assert f"stopped by {number.name}; the same command with the same --run.dir goes on from here" in errors
    assert "Traceback" not in errors
    stopped = last_state(folder)
    events = [json.loads(line)["global_step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(events, default=0) <= stopped["global_step"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["launcher", "one worker"])
def test_a_signal_to_the_launcher_or_to_one_of_2_workers_stops_both_at_one_step(
    demo: Path, tmp_path: Path, target: str
) -> None:
    folder = tmp_path / "run"
    command = [*LAUNCH, "--num_processes=2", str(ROOT / "launch/train.py"), *flags(demo, folder, *LONG)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        wait_for_an_epoch(launcher)
        workers = [child for child in psutil.Process(launcher.pid).children(True) if child.environ().get("RANK")]
        victim = launcher.pid if target == "launcher" else next(w.pid for w in workers if w.environ()["RANK"] == "1")
        os.kill(victim, signal.SIGTERM)
        _, errors = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode != 0
    said = [line for line in errors.splitlines() if line.startswith("error: ")]  # the launcher quotes it in its report
    assert len(said) == 1, errors
    assert said[0].startswith("error: stopped by SIGTERM")
    stopped = last_state(folder)
    assert stopped["global_step"] == 3 * stopped["epoch"] + stopped["epoch_step"]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_its_end(demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = flags(demo, folder, "--train.epochs=12", "--early_stopping.patience=12", "--tracking.wandb=disabled")
    with Forked(train, words) as process:
        wait_for_an_epoch(process)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 143
    with Forked(train, words) as process:
        said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "resumed after epoch" in said
    results = json.loads((folder / "results.json").read_text())
    assert results["images_seen"] == 12 * 36
    steps = [json.loads(line)["global_step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert len(steps) == 12 * 3, "points of the curve at steps 2 and 3 of an epoch, and its validation"
