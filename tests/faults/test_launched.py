"""Faults of a group of ranks: all end, one line says why, and the run goes on exactly. The ways to end are tried under
`accelerate launch`, as users start it; more causes on ranks that are forked, which spares their start."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from skindist.run.checkpoint import is_intact
from tests.conftest import Observe, Whole
from tests.helpers import faults, jobs
from tests.helpers.commands import LAUNCH, PATIENCE, ROOT, TINY
from tests.helpers.ranks import end_ranks, run_ranks, said, start_ranks
from tests.helpers.same_bytes import FLAGS, assert_same_bytes, newest, saved_step

FAULTY = ROOT / "tests/helpers/faulty.py"
ONE_LINE_LONG = 300
GOES_ON = (
    "all ended {seconds} s after step {step} was saved; the run went on from there to the same bytes in {same} files"
)


@contextmanager
def as_many_cores_as_ranks(count: int) -> Iterator[None]:
    """Child processes get one thread each, like forked ranks: the number of threads decides the last bit of a sum."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def words(data: Path, run: Path, *flags: str) -> list[str]:
    """Of the run on which all faults are tried."""
    return [*TINY, f"--data.path={data}", f"--run.dir={run}", "--tracking.wandb=disabled", *FLAGS, *flags]


def launch(
    ranks: int, fault: Sequence[object], data: Path, run: Path, *flags: str, options: Sequence[str] = (), **env: str
) -> "subprocess.Popen[str]":
    """Start `accelerate launch` on a run that will meet a fault."""
    command = [*LAUNCH, *options, f"--num_processes={ranks}", str(FAULTY), *words(data, run, *flags)]
    env = os.environ | {"FAULT": json.dumps(fault), "PYTHONPATH": str(ROOT)} | env
    with as_many_cores_as_ranks(ranks):
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def processes_of(run: Path) -> list[psutil.Process]:
    """All living processes with this run folder on their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if f"--run.dir={run}" in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def ended(launcher: "subprocess.Popen[str]", run: Path) -> tuple[list[str], str]:
    """Wait for the end of the launcher and of all that it started; the error lines, and all that was said."""
    out, errors = launcher.communicate(timeout=PATIENCE)
    psutil.wait_procs(processes_of(run), timeout=PATIENCE)
    assert processes_of(run) == [], "a process outlived its run"
    return error_lines(errors), out + errors


def error_lines(said: str) -> list[str]:
    """What was said of errors."""
    return [line for line in said.splitlines() if line.startswith("error: ")]


def goes_on(ranks: int, data: Path, run: Path, expected: Path, folder: Path) -> dict[str, float]:
    """Resumed without the fault, the run ends with the expected bytes; the figures of `GOES_ON`. Call it at once when
    all have `ended`."""
    seconds, step = time.time() - (newest(run) / "manifest.json").stat().st_mtime, saved_step(run)
    run_ranks(ranks, folder / "goes on", jobs.fit, data, run, *FLAGS, "--run.resume=must")
    return {"step": step, "seconds": seconds, "same": assert_same_bytes(run, expected)}


LAUNCHED = {  # what happens to one rank: ranks, fault before which step, what is said
    "kill -9 of one rank": (3, ["kill", 1, 4], "rank 1 of 3 was killed, or its machine failed"),
    "one rank raises": (2, ["raise", 1, 4], "rank 1 of 2: ValueError: boom"),
    "one rank hangs": (2, ["hang", 1, 4], "rank 1 of 2 did not answer within --run.timeout_minutes"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", LAUNCHED)
def test_what_happens_to_one_rank_ends_all(
    demo: Path, tmp_path: Path, whole: Whole, observe: Observe, fault: str
) -> None:
    ranks, action, message = LAUNCHED[fault]
    run = tmp_path / "run"
    patience = ["--run.timeout_minutes=0.5"] if action[0] == "hang" else []  # slow machines start ranks far apart
    launcher = launch(ranks, action, demo, run, *patience)
    errors, said = ended(launcher, run)
    assert launcher.returncode != 0
    line = one_line(errors, message, run, said)
    last_words = "SIGKILL" if action[0] == "kill" else message
    assert last_words in "\n".join(said.splitlines()[-4:]), said
    figures = goes_on(ranks, demo, run, whole(ranks)[0], tmp_path)
    observe(fault, f"“{{line}}”{', which was 0.5' * bool(patience)}; {GOES_ON}", line=line, **figures)


def one_line(errors: list[str], message: str, run: Path, said: str) -> str:
    """The only error line, as the table quotes it; and no checkpoint is damaged."""
    assert len(errors) == 1, said
    assert message in errors[0]
    assert len(errors[0]) < ONE_LINE_LONG + len(str(run))
    assert all(is_intact(folder) for folder in (run / "checkpoints").glob("step-*"))
    return re.split("; rank|: choose|: lower", errors[0].removeprefix("error: ").replace(f"{run}/", "RUN/"))[0]


FORKED = {  # what happens to one of two ranks: fault before which step, what is said, the status of each
    "one rank exits with 0": (["exit 0", 1, 4], "rank 1 of 2 was killed, or its machine failed", [1, 0]),
    "one rank is out of memory": (
        ["out of memory", 1, 4], "rank 1 of 2: out of memory with 6 images at a time: choose a smaller", [1, 1],
    ),
    "the disk is full in a save": (["full disk", 0, 4], "No space left on device", [1, 1]),
    "NaN, --train.non_finite error": (["nan", 1, 4], "the training loss is nan at step 5: lower --optim.lr", [1, 1]),
}  # fmt: skip


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.slow] * ("disk" not in fault)) for fault in FORKED]
)
def test_more_that_happens_to_one_rank_ends_all(
    demo: Path, tmp_path: Path, whole: Whole, observe: Observe, fault: str
) -> None:
    """No launcher ends the other one: it ends by itself."""
    action, message, expected = FORKED[fault]
    run = tmp_path / "run"
    statuses, said = forked(action, demo, run, tmp_path / "ranks")
    assert statuses == expected, said
    line = one_line(error_lines(said), message, run, said)
    observe(fault, f"“{{line}}”; {GOES_ON}", line=line, **goes_on(2, demo, run, whole(2)[0], tmp_path))


def forked(
    fault: Sequence[object], data: Path, run: Path, folder: Path, *flags: str, **env: str
) -> tuple[list[int | None], str]:
    """The statuses of two ranks without a launcher that met a fault, and what they said."""
    statuses = end_ranks(start_ranks(2, folder, meet, json.dumps(fault), words(data, run, *flags), env))
    return statuses, said(folder, 2)


def meet(fault: str, flags: list[str], env: dict[str, str]) -> None:
    """What a forked rank does: it ends with the status of the run."""
    os.environ.update(env)
    status = faults.train_with(fault, flags)
    sys.stdout.flush()
    os._exit(status)


@pytest.mark.slow
def test_orphans_of_a_killed_launcher_save_and_end(demo: Path, tmp_path: Path, whole: Whole, observe: Observe) -> None:
    run = tmp_path / "run"
    launcher = launch(2, ["kill the launcher", 0, 4], demo, run)
    errors, said = ended(launcher, run)
    assert launcher.returncode == -signal.SIGKILL
    assert errors == ["error: stopped by the end of its launcher; the same command with the same --run.dir goes on"
                      " from here"], said  # fmt: skip
    assert not (run / "results.json").exists()
    figures = goes_on(2, demo, run, whole(2)[0], tmp_path)
    observe("kill -9 of the launcher", f"killed in step 5 of 2 ranks; {GOES_ON}", **figures)


@pytest.mark.slow
def test_sigterm_to_a_launcher_of_3_ranks_with_loader_workers(
    demo: Path, tmp_path: Path, whole: Whole, observe: Observe
) -> None:
    run = tmp_path / "run"
    launcher = launch(3, ["terminate the launcher", 1, 4], demo, run)
    errors, said = ended(launcher, run)
    assert launcher.returncode != 0
    assert errors == ["error: stopped by SIGTERM; the same command with the same --run.dir goes on from here"], said
    assert not (run / "results.json").exists()
    figures = goes_on(3, demo, run, whole(3)[0], tmp_path)
    observe("SIGTERM to all", f"signal in step 5 to 3 ranks with 6 loader workers; {GOES_ON}", **figures)


@pytest.mark.slow
def test_a_bad_step_is_skipped_by_all_ranks(demo: Path, tmp_path: Path, observe: Observe) -> None:
    run = tmp_path / "run"
    statuses, said = forked(["nan", 1, 4], demo, run, tmp_path / "ranks", "--train.non_finite=skip")
    assert (statuses, error_lines(said)) == ([0, 0], []), said
    assert "step 5 is skipped: the training loss is nan (1 of at most 10)" in said
    skipped = json.loads((run / "results.json").read_text())["skipped_steps"]
    assert skipped == [5]
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event.get("train/skipped_steps") for event in events if "train/loss" in event][-3:] == [1, 1, 1]
    assert all(event["train/loss"] is not None for event in events if "train/loss" in event)
    words = "step {step} of {steps} left out on 2 ranks for one rank's NaN, listed in results.json"
    observe("NaN, --train.non_finite skip", words, step=skipped[0], steps=saved_step(run))


@pytest.mark.slow
def test_a_file_removed_during_training_is_not_missed(
    demo: Path, tmp_path: Path, whole: Whole, observe: Observe
) -> None:
    data, run = shutil.copytree(demo, tmp_path / "demo"), tmp_path / "run"
    removed = data / "benign/0003.png"
    statuses, said = forked(["remove", 0, 2], data, run, tmp_path / "ranks", REMOVE=str(removed))
    assert (statuses, error_lines(said)) == ([0, 0], []), said
    assert not removed.exists()
    same = assert_same_bytes(run, whole(2)[0])
    words = "removed in step 3 of {steps}: the same bytes in {same} files"
    observe("an image is removed during training", words, steps=saved_step(run), same=same)
