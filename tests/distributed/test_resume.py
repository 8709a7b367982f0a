"""A run that dies at any step and is resumed ends with the bytes of one that was never stopped."""

import functools
import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import pytest

from tests.distributed import jobs
from tests.distributed.ranks import run_ranks

FLAGS = (
    "--train.epochs=3", "--model.drop_rate=0.3", "--early_stopping.patience=9", "--checkpoint.every_steps=1",
    "--data.num_workers=2",
)  # fmt: skip
STEPS = 3  # an epoch: 36 training images in batches of 12
FILES = ("predictions-val.csv", "predictions-test.csv", "split.csv", "metrics.jsonl", "model/model.safetensors")
Whole = tuple[Path, list[list[list[int]]]]
CHECKPOINT = ("model.safetensors", "optimizer.safetensors", "buffers.safetensors")


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def content(file: Path) -> object:
    """What a file holds, but for the time that things took."""
    if file.suffix != ".jsonl":
        return file.read_bytes()
    events = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in event.items() if key != "train/images_per_second"} for event in events]


def assert_same_bytes(run: Path, expected: Path) -> None:
    for file in CHECKPOINT:
        assert (newest(run) / file).read_bytes() == (newest(expected) / file).read_bytes(), file
    for file in FILES:
        assert content(run / file) == content(expected / file), file


def global_ids(ranks: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    """The sample ids of each global batch, from those of each rank."""
    return [sorted(chain(*parts)) for parts in zip(*ranks, strict=True)]


@pytest.fixture(scope="module")
def whole(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Whole]:
    """Runs that were never stopped: for a number of processes, the folder and what each rank trained on."""
    folder = tmp_path_factory.mktemp("whole")

    @functools.cache
    def run(world_size: int) -> Whole:
        target = folder / str(world_size)
        return target, run_ranks(world_size, folder / f"ranks{world_size}", jobs.fit_and_watch, demo, target, *FLAGS)

    return run


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_deaths_in_mid_epoch_leave_no_trace(
    demo: Path, tmp_path: Path, whole: Callable[[int], Whole], world_size: int
) -> None:
    """With BatchNorm, dropout, augmentation, two workers and Adadelta's state. It dies twice in one epoch, and then
    right at an epoch's end; 3 ranks, because 2 cannot show a change of summation order."""
    uncut, expected = whole(world_size)
    cut = tmp_path / "cut"
    seen: list[list[list[int]]] = [[] for _ in range(world_size)]
    for step in (1, 2, 6):
        part = run_ranks(world_size, tmp_path / str(step), jobs.fit_until, step, demo, cut, *FLAGS)
        seen = [before + now for before, now in zip(seen, part, strict=True)]
    last = run_ranks(world_size, tmp_path / "last", jobs.fit_and_watch, demo, cut, *FLAGS, "--run.resume=must")
    assert [before + now for before, now in zip(seen, last, strict=True)] == expected
    assert_same_bytes(cut, uncut)


def test_3_then_2_then_1_processes_see_every_image_once_an_epoch(
    demo: Path, tmp_path: Path, whole: Callable[[int], Whole]
) -> None:
    run = tmp_path / "run"
    seen = global_ids(run_ranks(3, tmp_path / "3", jobs.fit_until, 1, demo, run, *FLAGS))
    seen += global_ids(run_ranks(2, tmp_path / "2", jobs.fit_until, 4, demo, run, *FLAGS))
    seen += global_ids(run_ranks(1, tmp_path / "1", jobs.fit_and_watch, demo, run, *FLAGS))
    assert seen == global_ids(whole(1)[1])
    for epoch in range(3):
        ids = list(chain(*seen[STEPS * epoch : STEPS * (epoch + 1)]))
        assert len(set(ids)) == len(ids) == 36


def test_one_process_saves_by_its_clock_and_stops_at_once(tmp_path: Path) -> None:
    assert run_ranks(1, tmp_path / "a", jobs.steps_saved, 10, [25.0], {}) == [[3, 6, 9, 0]]
    assert run_ranks(1, tmp_path / "b", jobs.steps_saved, 10, [25.0], {0: 4}) == [[3, 4, 143]]


def test_all_ranks_save_by_the_first_ones_clock_and_stop_for_any_ones_signal(tmp_path: Path) -> None:
    """One step later than it was wished for, and once for each wish."""
    assert run_ranks(3, tmp_path / "a", jobs.steps_saved, 10, [25.0, 1000.0, 0.0], {}) == [[4, 7, 10, 0]] * 3
    assert run_ranks(3, tmp_path / "b", jobs.steps_saved, 10, [25.0, 0.0, 0.0], {2: 5}) == [[4, 6, 143]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 5, 8])
def test_death_at_a_step_on_3_processes(demo: Path, tmp_path: Path, whole: Callable[[int], Whole], step: int) -> None:
    cut = tmp_path / "cut"
    run_ranks(3, tmp_path / "a", jobs.fit_until, step, demo, cut, *FLAGS)
    run_ranks(3, tmp_path / "b", jobs.fit_and_watch, demo, cut, *FLAGS)
    assert_same_bytes(cut, whole(3)[0])
