"""The runs of `skindist folds`: what is said of one that cannot begin, fails, or still goes on."""

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from skindist import fold_runs
from skindist.errors import UserError
from skindist.folds import flags_of_main_job, run_folds
from skindist.launcher import Launch
from tests.helpers.commands import ROOT
from tests.unit.test_lock import HOLD, process


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


@pytest.mark.parametrize(("on_cpu", "told"), [(True, "3 unset"), (False, "unset 0")])
def test_runs_that_leave_the_gpus_alone_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_cpu: bool, told: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(fold_runs, "this_launch", lambda: Launch(on_cpu=on_cpu))
    monkeypatch.setattr(fold_runs, "gpus", lambda: 1)
    monkeypatch.setattr(fold_runs, "available_cores", lambda: 6)
    words = '"${SKINDIST_CORES-unset} ${CUDA_VISIBLE_DEVICES-unset}"'
    with pytest.raises(UserError, match=told):
        run_folds(script(tmp_path / "job", f"#!/bin/sh\necho {words}\nexit 1\n"), 2, 1, tmp_path / "out", 2)


def test_a_run_that_begins_while_the_others_are_ended_is_ended_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is started before the first one fails, and is known only after all that were known are ended."""
    started, told = threading.Event(), threading.Event()

    class Slow(subprocess.Popen[bytes]):
        def __init__(self, words: list[str], **options: Any) -> None:
            first = words[-3].endswith("fold=0")
            if first:
                started.wait()
            super().__init__(["false"] if first else ["sleep", "600"], **options)
            if not first:
                started.set()
                told.wait()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            if wait:
                told.set()
            super().shutdown(wait, cancel_futures=cancel_futures)

    monkeypatch.setattr("skindist.fold_runs.subprocess.Popen", Slow)
    monkeypatch.setattr(fold_runs, "ThreadPoolExecutor", Pool)
    with pytest.raises(UserError, match=r"^seed 0, fold 0: ended with status 1"):
        run_folds(["true"], 2, 1, tmp_path / "out", 2)


@pytest.mark.parametrize(
    "command",
    ["skindist train", "/usr/bin/skindist train", "accelerate launch -m skindist train", "torchrun launch/train.py"],
)
def test_the_flags_of_the_main_job_are_known(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(ROOT)
    assert flags_of_main_job([*command.split(), "--data.path=train"]) == ["--data.path=train"]


@pytest.mark.parametrize(
    "words", ["train.py --lr 1", "launch/train.py --lr 1", "job.py train --lr 1", "job.py --on train"]
)
def test_the_flags_of_a_script_of_the_users_own_are_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / words.split()[0]
    file.parent.mkdir(exist_ok=True)
    file.write_text("import sys; sys.exit('error: it was run')")
    with pytest.raises(UserError, match="error: it was run"):
        run_folds([sys.executable, *words.split()], 2, 1, tmp_path / "out")


def test_a_command_that_trains_nothing_is_told_so(tmp_path: Path) -> None:
    """Again it would train nothing: it is not told to go on."""
    said = "seed 0, fold 0: the command ended without results: give one that runs launch/train.py or skindist train"
    with pytest.raises(UserError, match=rf"^{said}, with its flags at the end\nits output is in \S+fold-0\.log$"):
        run_folds(["true"], 2, 1, tmp_path)


def test_a_run_that_still_goes_on_is_not_begun_again(tmp_path: Path) -> None:
    """As after SIGKILL to `skindist folds`, whose runs live on. Its log is theirs."""
    (run := tmp_path / "runs/seed-0-fold-0").mkdir(parents=True)
    with process(HOLD, run / ".lock") as other:
        said = (
            f"^seed 0, fold 0: process {other.pid} trains it already, .* end it \\(kill {other.pid}: it saves\\); then"
        )
        with pytest.raises(UserError, match=said):
            run_folds(["false"], 2, 1, tmp_path)
        assert not run.with_suffix(".log").exists()
        left = (run / ".lock").read_bytes()
    (run / ".lock").write_bytes(left.replace(f'"pid": {other.pid}'.encode(), f'"pid": {os.getpid()}'.encode()))
    with pytest.raises(UserError, match=r"^seed 0, fold 0: ended with status 1:"):  # that number is another's now
        run_folds(["false"], 2, 1, tmp_path)
