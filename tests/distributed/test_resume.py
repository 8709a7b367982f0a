"""A run that dies at any step and is resumed ends with the bytes of one that was never stopped."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest

from tests.conftest import Observe, Whole
from tests.helpers import jobs
from tests.helpers.ranks import run_ranks, said
from tests.helpers.same_bytes import FLAGS, STEPS, assert_same_bytes, newest


def global_ids(ranks: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    """The sample ids of each global batch, from those of each rank."""
    return [sorted(chain(*parts)) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_deaths_in_mid_epoch_leave_no_trace(
    demo: Path, tmp_path: Path, whole: Whole, observe: Observe, world_size: int
) -> None:
    """It dies twice in one epoch, and then right at an epoch's end; 3 and 4 ranks, because 2 cannot show a change of
    summation order."""
    uncut, expected = whole(world_size)
    cut = tmp_path / "cut"
    seen: list[list[list[int]]] = [[] for _ in range(world_size)]
    for step in (1, 2, 6):
        part = run_ranks(world_size, tmp_path / str(step), jobs.fit_until, step, demo, cut, *FLAGS)
        seen = [before + now for before, now in zip(seen, part, strict=True)]
    last = run_ranks(world_size, tmp_path / "last", jobs.fit_and_watch, demo, cut, *FLAGS, "--run.resume=must")
    assert [before + now for before, now in zip(seen, last, strict=True)] == expected
    same = assert_same_bytes(cut, uncut)
    words = "died after steps 1, 2 and 6 on {ranks} processes each: the same bytes in {same} files"
    observe("all ranks die twice in one epoch, then at its end", words, ranks=str(world_size), same=same)


@pytest.mark.parametrize("world_size", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_death_in_bf16_leaves_no_trace(demo: Path, tmp_path: Path, world_size: int) -> None:
    """With depthwise convolutions, some of which have a stride of 2, and BatchNorm as on pretrained weights."""
    flags = (*FLAGS, "--model.name=test_efficientnet", "--train.freeze_batchnorm=true")
    uncut, cut = tmp_path / "uncut", tmp_path / "cut"
    run_ranks(world_size, tmp_path / "a", jobs.fit_in_bf16, demo, uncut, None, *flags)
    run_ranks(world_size, tmp_path / "b", jobs.fit_in_bf16, demo, cut, 4, *flags)
    run_ranks(world_size, tmp_path / "c", jobs.fit_in_bf16, demo, cut, None, *flags, "--run.resume=must")
    assert_same_bytes(cut, uncut)
    assert json.loads((cut / "results.json").read_text())["mixed_precision"] == "bf16"


def test_3_then_2_then_1_processes_see_every_image_once_an_epoch(
    demo: Path, tmp_path: Path, whole: Whole, observe: Observe
) -> None:
    run = tmp_path / "run"
    seen = global_ids(run_ranks(3, tmp_path / "3", jobs.fit_until, 1, demo, run, *FLAGS))
    seen += global_ids(run_ranks(2, tmp_path / "2", jobs.fit_until, 4, demo, run, *FLAGS))
    seen += global_ids(run_ranks(1, tmp_path / "1", jobs.fit_and_watch, demo, run, *FLAGS))
    assert seen == global_ids(whole(1)[1])
    for epoch in range(3):
        ids = list(chain(*seen[STEPS * epoch : STEPS * (epoch + 1)]))
        assert len(set(ids)) == len(ids) == 36
    words = "{images} images once in each of {epochs} epochs, in the {batches} batches of one process"
    observe("3, then 2, then 1 processes", words, images=len(ids), epochs=len(seen) // STEPS, batches=len(seen))


def test_ranks_whose_passes_differ_in_number_go_on_exactly(demo: Path, tmp_path: Path) -> None:
    """Batches of 8 and 7 on 3 ranks, which take 2 or 3 passes of one image."""
    one_by_one = ("--train.batch_size=8", "--train.micro_batch_size=1", "--train.freeze_batchnorm=true")
    flags = (*FLAGS, "--train.epochs=1", *one_by_one)
    expected = run_ranks(3, tmp_path / "a", jobs.fit_and_watch, demo, tmp_path / "uncut", *flags)
    seen = run_ranks(3, tmp_path / "b", jobs.fit_until, 2, demo, tmp_path / "cut", *flags)
    last = run_ranks(3, tmp_path / "c", jobs.fit_and_watch, demo, tmp_path / "cut", *flags)
    assert [[len(ids) for ids in rank] for rank in expected] == [[3] * 5, [3, 2, 2, 2, 2], [2] * 5]
    assert [before + now for before, now in zip(seen, last, strict=True)] == expected
    assert_same_bytes(tmp_path / "cut", tmp_path / "uncut")


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_signal_in_an_evaluation_is_obeyed_before_it_ends(
    demo: Path, tmp_path: Path, observe: Observe, world_size: int
) -> None:
    """All 12 images of validation one by one: the epoch's training is saved as such, and only judged again."""
    flags = (*FLAGS, "--train.eval_batch_size=1")
    run_ranks(world_size, tmp_path / "a", jobs.fit, demo, tmp_path / "whole", *flags)
    signalled = jobs.status_after_a_signal_in_evaluation
    statuses = run_ranks(world_size, tmp_path / "b", signalled, demo, tmp_path / "cut", *flags)
    assert statuses == [143] * world_size
    assert said(tmp_path / "b", world_size).count("error: stopped by SIGTERM") == 1
    state = json.loads((newest(tmp_path / "cut") / "state.json").read_text())["train"]
    assert (state["epoch"], state["epoch_step"], state["global_step"]) == (1, 3, 6)
    run_ranks(world_size, tmp_path / "c", jobs.fit, demo, tmp_path / "cut", *flags)
    same = assert_same_bytes(tmp_path / "cut", tmp_path / "whole")
    words = "exit {status} on {ranks} processes, step {step} saved: the same bytes in {same} files"
    figures = {"status": statuses[0], "ranks": str(world_size), "step": state["global_step"], "same": same}
    observe("SIGTERM during an evaluation", words, **figures)


def test_one_process_saves_by_its_clock_and_stops_at_once(tmp_path: Path) -> None:
    assert run_ranks(1, tmp_path / "a", jobs.steps_saved, 10, [25.0], {}) == [[3, 6, 9, 0]]
    assert run_ranks(1, tmp_path / "b", jobs.steps_saved, 10, [25.0], {0: 4}) == [[3, 4, 143]]


def test_all_ranks_save_by_the_first_ones_clock_and_stop_for_any_ones_signal(tmp_path: Path) -> None:
    """One step later than it was wished for, and once for each wish."""
    assert run_ranks(3, tmp_path / "a", jobs.steps_saved, 10, [25.0, 1000.0, 0.0], {}) == [[4, 7, 10, 0]] * 3
    assert run_ranks(3, tmp_path / "b", jobs.steps_saved, 10, [25.0, 0.0, 0.0], {2: 5}) == [[4, 6, 143]] * 3


def test_all_ranks_are_asked_once_a_second_and_stop_at_one_step(tmp_path: Path) -> None:
    """32 steps of the slowest rank: the signal of step 70 goes out with the question of step 99, and its answer is read
    with the next."""
    pace = [1 / 64, 1 / 32, 1 / 64]
    asked = run_ranks(3, tmp_path / "a", jobs.questions, ["step"] * 100, pace)
    assert asked == [[1, 2, 3, 35, 67, 99]] * 3
    assert run_ranks(3, tmp_path / "b", jobs.steps_saved, 200, pace, {2: 70}) == [[131, 143]] * 3


def test_slow_steps_do_not_wait_for_the_pace_of_fast_batches(tmp_path: Path) -> None:
    calls = ["batch"] * 5 + ["step"] * 4 + ["batch"] * 3
    assert run_ranks(2, tmp_path, jobs.questions, calls, [0.25, 0.25]) == [[1, 2, 3, 6, 7, 8, 10, 11, 12]] * 2


def test_a_step_does_not_wait_for_another_rank(tmp_path: Path) -> None:
    """The question of step 3 is answered only when rank 1 takes it, after rank 0 has taken 34."""
    assert run_ranks(2, tmp_path, jobs.steps_ahead, 34) == [34, 34]
