"""How processes wait for each other: over the CPU, for as long as the user allows, and never for a device unseen."""

import signal
from datetime import timedelta
from pathlib import Path

import pytest

from skindist.cli import train
from tests.helpers import jobs
from tests.helpers.commands import TINY, flags
from tests.helpers.ranks import end_ranks, result_of, run_ranks, said, start_ranks


def test_the_timeout_arrives_and_one_patient_group_serves_all(tmp_path: Path) -> None:
    """10 minutes are Accelerate's own default, which it drops; gloo would wait for 30."""
    ten, day = timedelta(minutes=10), timedelta(days=1)
    for limits, before, after in run_ranks(2, tmp_path, jobs.timeouts, 10.0):
        assert limits == [ten, ten, day]
        assert before == after == 3


def test_ranks_share_the_cores_and_leave_the_number_out_of_the_environment(tmp_path: Path) -> None:
    """There, commands that a notebook starts after a training would take it for the user's."""
    assert run_ranks(2, tmp_path, jobs.threads_of, 6) == [(3, False, [])] * 2


@pytest.mark.parametrize(("cores", "threads"), [(8, 2), (2, 1)])
def test_ranks_share_what_their_launch_has_of_the_cores(tmp_path: Path, cores: int, threads: int) -> None:
    """With `skindist folds --at_once 2`."""
    assert run_ranks(2, tmp_path, jobs.threads_of, cores, 2) == [(threads, True, [])] * 2


def test_rows_travel_as_tensors(tmp_path: Path) -> None:
    """As predictions do: in rank order, to the bit, also where a rank has none. No row is pickled."""
    rows = [[[7.0, 1 / 3, 0.0]], [], [[number, 0.1 * number, 1.0] for number in range(40)]]
    for together, pickled in run_ranks(3, tmp_path, jobs.gathered, rows):
        assert together == [*rows[0], *rows[2]]
        assert pickled == 0


@pytest.mark.parametrize("gone", ["hangs", "killed"])
def test_a_process_that_is_gone_is_noticed_before_a_device_is_read(tmp_path: Path, gone: str) -> None:
    ranks = start_ranks(2, tmp_path, jobs.reads_from_a_device, gone)
    assert end_ranks(ranks, 120)[0] == 0
    read, lost_contact, seconds = result_of(tmp_path, 0)
    assert not read
    assert lost_contact
    assert seconds < 60


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("killed", "rank 1 of 3 was killed, or its machine failed"),
        ("raises", "rank 1 of 3: out of memory with 8 images"),
        ("hangs", "rank 1 of 3 did not answer within --run.timeout_minutes"),
    ],
)
def test_all_end_with_one_line_while_their_main_threads_wait_for_a_device(
    tmp_path: Path, what: str, message: str
) -> None:
    """As cudaStreamSynchronize waits, in which no signal handler of Python runs."""
    statuses = end_ranks(start_ranks(3, tmp_path, jobs.waits_for_a_device, what), 120)
    assert statuses == [1, -signal.SIGKILL if what == "killed" else 1, 1]
    words = said(tmp_path, 3)
    assert words.count("error: ") == 1, words
    assert message in words
    assert "Traceback" not in words


def test_contact_ends_quietly_with_the_run(tmp_path: Path) -> None:
    assert max(run_ranks(3, tmp_path, jobs.leaves_contact)) < 10
    assert said(tmp_path, 3).strip() == ""


def test_a_batch_smaller_than_the_group_is_refused_at_once(tmp_path: Path) -> None:
    """Before anything is read or written."""
    flags = [*TINY, "--data.path=nowhere", f"--run.dir={tmp_path / 'run'}", "--train.batch_size=2"]
    assert run_ranks(3, tmp_path / "ranks", train, flags) == [2, 2, 2]
    words = said(tmp_path / "ranks", 3)
    assert words.count("error: ") == 1
    assert "--train.batch_size 2: the global batch is split over all processes, and 3 are started" in words


def test_a_run_after_one_that_failed_takes_its_groups(tmp_path: Path) -> None:
    assert run_ranks(2, tmp_path, jobs.joins_twice) == [[0, 0]] * 2


def test_ranks_with_other_flags_than_the_others_are_refused(demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    own = [["--train.epochs=2"], ["--train.epochs=3", "--run.seed=7"], ["--train.epochs=2", "--data.num_workers=1"]]
    words = [flags(demo, run, "--tracking.wandb=disabled", *more) for more in own]
    assert run_ranks(3, tmp_path / "ranks", jobs.status_with_flags_of_its_own, words) == [2, 2, 2]
    errors = said(tmp_path / "ranks", 3)
    assert errors.count("error: ") == 1
    odd = "--train.epochs: rank 1 has 3, the others 2; --run.seed: rank 1 has 7, the others 0. Give the same flags"
    assert odd in errors
    assert not run.exists()


@pytest.mark.parametrize(("mistaken", "told"), [({2}, "rank 2: "), ({0}, ""), ({0, 1, 2}, "")])
def test_a_mistake_of_one_machine_ends_all_with_its_words(
    demo: Path, tmp_path: Path, mistaken: set[int], told: str
) -> None:
    words = [flags(demo, tmp_path / "run", *["--train.epohcs=2"] * (rank in mistaken)) for rank in range(3)]
    ranks = start_ranks(3, tmp_path / "ranks", jobs.status_on_a_machine_of_its_own, words)
    assert end_ranks(ranks, 120) == [0] * 3, said(tmp_path / "ranks", 3)
    assert [result_of(tmp_path / "ranks", rank) for rank in range(3)] == [2] * 3
    errors = said(tmp_path / "ranks", 3)
    assert errors.count("error: ") == 1
    assert f"error: {told}unrecognized arguments: --train.epohcs=2; nearest: --train.epochs" in errors
