"""When to save in the middle of an epoch, and when to stop: decided by all ranks at the same step.

A scheduler's signal (SIGTERM, or SIGUSR1 from Slurm) may reach one process only, and clocks differ, so all ranks are
asked, about once a second and at the same steps. The question travels on the CPU while the steps go on, and its answer
is read when the next one is asked: it makes no step wait for another process, or for a device.
A launcher that was killed can send no signal: its orphans see that it is gone, and stop in the same way.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from skindist.config import Config
from skindist.distributed import host
from skindist.errors import Stopped
from skindist.launcher import this_launch
from skindist.run.lock import RunLock

SAVE, ORPHANED = 1, 2  # signals are larger numbers, so the largest wish of any rank is what all of them do
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
APART = 1.0  # seconds from one question to the next, at most: as many steps as the slowest rank takes in it


class Interruptions:
    """Watches signals and the clock while it is entered."""

    def __init__(
        self, config: Config, accelerator: Accelerator, lock: RunLock, beat: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            beat: called once a step or batch, as a sign of life.
        """
        self.lock, self.beat = lock, beat
        self.every_steps = config.checkpoint.every_steps
        self.every_seconds = 60 * config.checkpoint.every_minutes if config.checkpoint.every_minutes else None
        self.main = accelerator.is_main_process
        self.launcher_pid = this_launch().launcher_pid
        self.alone = accelerator.num_processes == 1
        self.wished_at = time.monotonic()
        self.received = 0
        self.agreed = 0
        self._answer: Callable[[], Tensor] | None = None
        self._asked_in, self._asked_at, self._calls, self._every = "", 0.0, 0, 1
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruptions":
        if threading.current_thread() is threading.main_thread():  # Python allows no other to handle signals
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if kind is Stopped or (error and not self.alone):
            return  # a launcher sends signals, again too, while a process still has to say why it ends
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = max(self.received, number)

    def should_save(self, global_step: int) -> bool:
        """Whether to save the state after this step. Call it once a step, on every rank."""
        wish = self._ask("training")
        return wish > 0 or (self.every_steps is not None and global_step % self.every_steps == 0)

    def should_stop(self) -> bool:
        """Whether the ranks have agreed to stop. Call it once a batch between two steps, on every rank."""
        self._ask("evaluation")
        return self.agreed > 0

    def _ask(self, where: str) -> int:
        """The largest wish of any rank, where it has become known at this call; 0 where it has not.

        Every `_every`th call sends off a question and reads the answer to the one before. How many calls make a second
        is measured anew in another place, as steps and batches take unlike times: its first calls all ask.
        """
        now, same = time.monotonic(), where == self._asked_in
        self._calls += 1
        self.beat()
        if same and self._calls < self._every:
            return 0
        seconds = (now - self._asked_at) / self._calls if same else APART
        self._asked_in, self._asked_at, self._calls = where, now, 0
        wish, every = self._largest(self._wish(), seconds)
        self._every = every if same else 1
        self.agreed = wish if wish > SAVE else self.agreed
        return wish

    def _wish(self) -> int:
        """What this rank wishes."""
        orphaned = self.launcher_pid is not None and os.getppid() != self.launcher_pid
        overdue = self.main and (self._overdue() or self.lock.lost)  # without the lock, the save ends the run
        return max(self.received, ORPHANED if orphaned else 0, SAVE if overdue else 0)

    def _overdue(self) -> bool:
        """Whether the time is up; it starts anew when this has said so."""
        now = time.monotonic()
        if self.every_seconds is None or now - self.wished_at < self.every_seconds:
            return False
        self.wished_at = now
        return True

    def _largest(self, wish: int, seconds: float) -> tuple[int, int]:
        """The largest wish of all ranks at the last question, and the steps from this one, which is sent off, to the
        next. With one process: its wish, at every step."""
        if self.alone:
            return wish, 1
        answered, slowest = (0, APART) if self._answer is None else self._answer().tolist()
        self._answer = host.ask_largest(torch.tensor([wish, seconds], dtype=torch.float64))
        return int(answered), max(1, int(APART / max(slowest, 0.001)))

    def stop_if_agreed(self) -> None:
        """End the run, once its state is saved.

        Raises:
            Stopped: on every rank alike, if the ranks have agreed to.
        """
        if self.agreed == ORPHANED:
            raise Stopped("the end of its launcher", 128 + signal.SIGTERM)
        if self.agreed:
            raise Stopped(signal.Signals(self.agreed).name, 128 + self.agreed)
