"""Faults for real runs, put into a process before it trains."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from skindist.cli import train
from skindist.data.loading import Batch
from skindist.run import checkpoint
from skindist.training import engine, interruption, saving
from skindist.training.learner import Learner

FILE_EVENTS = {"open", "shutil.rmtree", *(f"os.{call}" for call in ("mkdir", "rename", "remove", "rmdir", "symlink"))}
At = Callable[[Learner, list[Batch]], list[Batch]]
WAITS = "waits for SIGUSR1"


def replace(owner: object, name: str, heir: Any) -> None:
    """The one way to put a fault into this process: something else in the place of a part of ours, which must be there.

    Raises:
        AttributeError: the part has moved: its heir would do nothing.
    """
    getattr(owner, name)
    setattr(owner, name, heir)


def at_step(step: int, rank: int, action: At) -> None:
    """Do something on a rank before it takes the optimizer step of this number, from 0; it may change its images."""
    original = engine.train_step

    def train_step(learner: Learner, micro_batches: list[Batch], size: int, global_step: int, *others: Any) -> Any:
        if global_step == step and int(os.environ.get("RANK", 0)) == rank:
            micro_batches = action(learner, micro_batches)
        return original(learner, micro_batches, size, global_step, *others)

    replace(engine, "train_step", train_step)


def die() -> None:
    """SIGKILL to this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_call(step: int, calls: int) -> None:
    """SIGKILL at this process's n-th call of a Python function from the beginning of a step (from now: step -1)."""
    left = [calls]

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            left[0] -= 1
            if left[0] == 0:
                die()

    if step < 0:
        sys.setprofile(count)
        return
    original = engine.train_step

    def train_step(learner: Learner, batches: list[Batch], size: int, global_step: int, *others: Any) -> Any:
        if global_step >= step and sys.getprofile() is None:
            sys.setprofile(count)
        return original(learner, batches, size, global_step, *others)

    replace(engine, "train_step", train_step)


def watch_files(event_seen: Callable[[], None]) -> None:
    """Call a function before every touch of a file in a folder of checkpoints, for as long as the process lives."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and any("checkpoints" in str(argument) for argument in arguments[:2]):
            event_seen()

    sys.addaudithook(hook)


def kill_in_save(step: int, touches: int) -> None:
    """SIGKILL before the n-th touch of a file from the beginning of the save of a step."""
    original, left, begun = checkpoint.save_checkpoint, [touches], [False]

    def save_checkpoint(folder: Path, content: Any) -> None:
        begun[0] = begun[0] or int(folder.name.removeprefix("step-")) >= step
        original(folder, content)

    def touched() -> None:
        left[0] -= begun[0]
        if left[0] == 0:
            die()

    replace(saving, "save_checkpoint", save_checkpoint)
    watch_files(touched)


def fill_the_disk(learner: Learner, batches: list[Batch]) -> list[Batch]:
    """Let the next file of an optimizer lie on a full disk: the kernel will refuse to write it."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0]) if event == "open" else ""
        if path.endswith(".optimizer.safetensors.tmp") and not os.path.lexists(path):
            Path(path).symlink_to("/dev/full")

    sys.addaudithook(hook)
    return batches


def spoil(learner: Learner, batches: list[Batch]) -> list[Batch]:
    """One image of infinite brightness: the loss is not a number."""
    batches[0].colours_B2C[0] = float("inf")
    return batches


def run_out_of_memory(learner: Learner, batches: list[Batch]) -> list[Batch]:
    """The next images find no room on the device."""

    def refuse(self: Learner, batch: Batch) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    replace(Learner, "to_device", refuse)
    return batches


def remove_an_image(learner: Learner, batches: list[Batch]) -> list[Batch]:
    """The file named by $REMOVE goes while the run is on."""
    Path(os.environ["REMOVE"]).unlink()
    return batches


def wait_for_the_scheduler() -> None:
    """Until SIGUSR1 comes, in the first attempt of a job of Slurm's."""
    if "SLURM_RESTART_COUNT" not in os.environ:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        print(WAITS, file=sys.stderr, flush=True)
        signal.sigwait([signal.SIGUSR1])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        signal.raise_signal(signal.SIGUSR1)


def do(action: Callable[[], Any]) -> At:
    """An action that looks at nothing."""

    def act(learner: Learner, batches: list[Batch]) -> list[Batch]:
        action()
        return batches

    return act


def boom() -> None:
    """A fault of the code."""
    raise ValueError("boom")


ACTIONS: dict[str, At] = {
    "kill": do(die),
    "kill the launcher": do(lambda: os.kill(os.getppid(), signal.SIGKILL)),
    "terminate the launcher": do(lambda: os.kill(os.getppid(), signal.SIGTERM)),
    "raise": do(boom),
    "exit 0": do(lambda: os._exit(0)),
    "hang": do(lambda: time.sleep(3600)),
    "full disk": fill_the_disk,
    "nan": spoil,
    "out of memory": run_out_of_memory,
    "remove": remove_an_image,
    "command": do(lambda: subprocess.run(os.environ["COMMAND"].split(), check=True)),
    "wait for SIGUSR1": do(wait_for_the_scheduler),
}


def train_with(fault: str, flags: list[str] | None = None) -> int:
    """`launch/train.py`, with these flags or those of the command line, and a fault: what, on which rank, before which
    step, as JSON."""
    what, on_rank, before_step = json.loads(fault)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        at_step(before_step, on_rank, ACTIONS[what])
    replace(interruption, "APART", 0.0)  # these runs are over within the second between two questions
    return train(flags)
