"""Runs killed outright, at any instant; checkpoints that are damaged. Real processes, forked, that die by SIGKILL."""

import os
import pickle
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skindist.cli import train
from skindist.run.checkpoint import (
    is_intact,
    load_checkpoint,
    newest_intact,
    prune,
    save_checkpoint,
    step_folder,
)
from tests.conftest import Observe, Whole
from tests.helpers import faults, jobs
from tests.helpers.commands import PATIENCE, TINY
from tests.helpers.ranks import end_ranks, run_ranks, said, start_ranks
from tests.helpers.same_bytes import FLAGS, STEPS, assert_same_bytes, newest, saved_step
from tests.unit.test_checkpoint import example

CALLS_A_STEP = 20_000  # of Python functions, in a rank's main thread: loading, training, saving; more at an epoch's end


def die_at_call(victim: int, step: int, calls: int, data: Path, run: Path) -> None:
    """A run of which one rank dies at some call."""
    if int(os.environ.get("RANK", 0)) == victim:
        faults.kill_at_call(step, calls)
    jobs.fit(data, run, *FLAGS)


def die_in_save(step: int, touches: int, data: Path, run: Path) -> None:
    """A run of which the main process dies before it touches a file of a checkpoint."""
    if int(os.environ.get("RANK", 0)) == 0:
        faults.kill_in_save(step, touches)
    jobs.fit(data, run, *FLAGS)


def die_before_step(victim: int, step: int, data: Path, run: Path) -> None:
    """A run of which one rank dies before a step."""
    faults.at_step(step, victim, faults.do(faults.die))
    jobs.fit(data, run, *FLAGS)


def killed(world_size: int, victim: int, folder: Path, function: Any, *args: Any) -> bool:
    """Start ranks; when the victim is dead, kill the others in the same instant. Whether it died by SIGKILL."""
    ranks = start_ranks(world_size, folder, function, *args)
    ranks[victim].join(PATIENCE)
    died = ranks[victim].exitcode == -signal.SIGKILL
    for rank in ranks:
        if died:
            rank.kill()
    end_ranks(ranks)
    return died


def kill_at_random_calls(world_size: int, seed: int, steps: Iterable[int], demo: Path, folder: Path) -> int:
    """Kill a run while it starts, then at some of its steps, each time somewhere in the Python code; then let it
    end."""
    random = np.random.default_rng([world_size, seed])
    kills = 0
    for number, step in enumerate([-1, *steps]):
        calls = int(random.integers(1, CALLS_A_STEP))
        victim = int(random.integers(world_size))
        args = (victim, step, calls, demo, folder / "run")
        kills += killed(world_size, victim, folder / str(number), die_at_call, *args)
    run_ranks(world_size, folder / "last", jobs.fit, demo, folder / "run", *FLAGS)
    return kills


@pytest.mark.parametrize("world_size", [1, 3])
def test_killed_at_random_calls(demo: Path, tmp_path: Path, whole: Whole, world_size: int) -> None:
    kills = kill_at_random_calls(world_size, 0, (1, 4, 7), demo, tmp_path)
    assert kills >= 3
    assert_same_bytes(tmp_path / "run", whole(world_size)[0])


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "most"), [(1, 40), (2, 30), (3, 20), (4, 10)])
def test_killed_at_a_hundred_random_calls(
    demo: Path, tmp_path: Path, whole: Whole, observe: Observe, world_size: int, most: int
) -> None:
    """At the start of a run and at up to all of its steps; fewer where a kill costs more processes."""
    kills, seed = 0, 0
    while kills < most:
        seed += 1
        steps = range(min(3 * STEPS, most - kills - 1))
        kills += kill_at_random_calls(world_size, seed, steps, demo, tmp_path / str(seed))
        same = assert_same_bytes(tmp_path / str(seed) / "run", whole(world_size)[0])
    words = "{kills} kills in {runs} runs on {ranks} processes each: the same bytes in {same} files"
    observe("kill -9 of all ranks at a random call", words, kills=kills, runs=seed, ranks=str(world_size), same=same)


def save_and_die(checkpoints: Path, step: int, touches: int) -> None:
    """Save the checkpoint of a step and prune; SIGKILL before the n-th touch of a file."""
    left = [touches]

    def touched() -> None:
        left[0] -= 1
        if left[0] == 0:
            faults.die()

    faults.watch_files(touched)
    save_and_prune(checkpoints, step, 9.0)


def save_and_prune(checkpoints: Path, step: int, value: float) -> None:
    save_checkpoint(step_folder(checkpoints, step), example(value))
    prune(step_folder(checkpoints, step), step_folder(checkpoints, 1), keep=2)


@pytest.mark.parametrize("step", [3, 2])
def test_killed_at_every_point_inside_a_save(tmp_path: Path, observe: Observe, step: int) -> None:
    """Of a new step, and of one that is there already (from a signal during an evaluation), until it is no longer
    killed: then there are no more points. The old checkpoint is there or the new one, the links lead to whole ones,
    and the next save leaves nothing half-written."""
    points = 0
    while True:
        checkpoints = tmp_path / str(points) / "checkpoints"
        for earlier in (1, 2):
            save_and_prune(checkpoints, earlier, float(earlier))
        (process,) = start_ranks(1, tmp_path / "rank", save_and_die, checkpoints, step, points + 1)
        (status,) = end_ranks([process])
        folder = newest_intact(checkpoints)
        assert folder is not None
        value = load_checkpoint(folder).weights["conv"].mean().item()
        assert (folder.name, value) in {("step-00000002", 2.0), (f"step-0000000{step}", 9.0)}
        assert is_intact(checkpoints / "last")
        assert (checkpoints / "best").resolve() == step_folder(checkpoints, 1)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        points += 1
        save_and_prune(checkpoints, 3, 3.0)
        names = sorted(path.name for path in checkpoints.iterdir())
        assert names == ["best", "last", "step-00000001", "step-00000002", "step-00000003"]
    assert points > 20
    words = "the old or the new one is whole after a kill at each of {points} points"
    observe("kill -9 at every point inside a save", words, points=points)


@pytest.mark.parametrize("world_size", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_inside_saves(demo: Path, tmp_path: Path, whole: Whole, observe: Observe, world_size: int) -> None:
    """At eight points of eight saves of one run."""
    points = (1, 4, 8, 12, 16, 19, 22, 25)
    for step, touches in enumerate(points, start=1):
        args = (step, touches, demo, tmp_path / "run")
        assert killed(world_size, 0, tmp_path / str(step), die_in_save, *args)
    run_ranks(world_size, tmp_path / "last", jobs.fit, demo, tmp_path / "run", *FLAGS)
    same = assert_same_bytes(tmp_path / "run", whole(world_size)[0])
    assert not list((tmp_path / "run/checkpoints").glob(".*")), "nothing half-written is left"
    words = "{kills} saves of one run killed on {ranks} processes: the same bytes in {same} files"
    observe("kill -9 at every point inside a save", words, kills=len(points), ranks=str(world_size), same=same)


def test_killed_at_the_last_batch_of_an_epoch(demo: Path, tmp_path: Path, whole: Whole, observe: Observe) -> None:
    assert killed(3, 1, tmp_path / "a", die_before_step, 1, 5, demo, tmp_path / "run")
    step = saved_step(tmp_path / "run")
    run_ranks(3, tmp_path / "b", jobs.fit, demo, tmp_path / "run", *FLAGS, "--run.resume=must")
    same = assert_same_bytes(tmp_path / "run", whole(3)[0])
    words = "killed in step 6, went on from step {step} on 3 processes: the same bytes in {same} files"
    observe("kill -9 at the last batch of an epoch", words, step=step, same=same)


@pytest.fixture(scope="module")
def stopped(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one process that died before its step 5."""
    folder = tmp_path_factory.mktemp("stopped")
    assert killed(1, 0, folder / "rank", die_before_step, 0, 4, demo, folder / "run")
    return folder / "run"


@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "buffers.safetensors", "state.json", "manifest.json"]
)
def test_a_damaged_file_of_the_newest_checkpoint(
    demo: Path, tmp_path: Path, whole: Whole, observe: Observe, stopped: Path, file: str, how: str
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run", symlinks=True)
    damaged = newest(run) / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "delete":
        damaged.unlink()
    else:
        damaged.write_bytes(content if how == "flip" else content[: len(content) // 2])
    step = saved_step(run)
    run_ranks(1, tmp_path / "rank", jobs.fit_aloud, demo, run, *FLAGS)
    assert f"checkpoint {damaged.parent} is damaged: trying the one before it" in said(tmp_path / "rank", 1)
    same = assert_same_bytes(run, whole(1)[0])
    words = "{how} of {file}: named, went on from step {step}, the same bytes in {same} files"
    observe("a file of the newest checkpoint is damaged", words, how=how, file=file, step=step, same=same)


class Evil:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return (Path.write_text, (self.mark, "executed"))  # type: ignore[return-value]


def test_a_malicious_pickle_beside_the_checkpoint(
    demo: Path, tmp_path: Path, whole: Whole, observe: Observe, stopped: Path
) -> None:
    run, mark = shutil.copytree(stopped, tmp_path / "run", symlinks=True), tmp_path / "mark"
    evil = pickle.dumps(Evil(mark))
    names = ("optimizer.pt", "optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl", "model.pt")
    for name in names:
        (newest(run) / name).write_bytes(evil)
    run_ranks(1, tmp_path / "rank", jobs.fit, demo, run, *FLAGS)
    assert not mark.exists()
    pickle.loads(evil)
    assert mark.read_text() == "executed", "it would have worked"
    same = assert_same_bytes(run, whole(1)[0])
    words = "{count} files planted, none executed: the same bytes in {same} files"
    observe("a malicious pickle beside the checkpoint", words, count=len(names), same=same)


def test_an_image_removed_before_resuming_is_named(
    demo: Path, tmp_path: Path, observe: Observe, stopped: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(demo, tmp_path / "demo")
    run = shutil.copytree(stopped, tmp_path / "run", symlinks=True)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(demo), str(data)))
    (data / "benign/0003.png").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    status = train([*TINY, f"--data.path={data}", f"--run.dir={run}", "--tracking.wandb=disabled", *FLAGS])
    assert status == 2
    said = capfd.readouterr().err
    assert said.count("error: ") == 1
    assert "images changed or gone since the run began: 1 (such as benign/0003.png)" in said
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert is_intact(newest(run))
    words = "exit {status}, one line with its name, {files} files of the run unchanged"
    observe("an image was removed before resuming", words, status=status, files=len(before))
