"""When to save in the middle of an epoch, and when to stop: decided by all ranks at the same step.

A scheduler's signal (SIGTERM, or SIGUSR1 from Slurm) may reach one process only, and clocks differ, so every step asks
all ranks. The question travels on the CPU beside the step and is answered one step later: no step waits for a device.
A launcher that was killed can send no signal: its orphans see that it is gone, and stop in the same way.
"""

import os
import signal
import threading
import time
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor

from skindist.config import Config
from skindist.errors import Stopped
from skindist.launcher import this_launch
from skindist.run.lock import RunLock

SAVE, ORPHANED = 1, 2  # signals are larger numbers, so the largest wish of any rank is what all of them do
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class Interruptions:
    """Watches signals and the clock while it is entered."""

    def __init__(self, config: Config, accelerator: Accelerator, lock: RunLock) -> None:
        self.lock = lock
        self.every_steps = config.checkpoint.every_steps
        self.every_seconds = 60 * config.checkpoint.every_minutes if config.checkpoint.every_minutes else None
        self.main = accelerator.is_main_process
        self.launcher_pid = this_launch().launcher_pid
        self.group: Any = None
        if accelerator.num_processes > 1:
            timeout = timedelta(minutes=config.run.timeout_minutes)
            self.group = torch.distributed.new_group(backend="gloo", timeout=timeout)
        self.wished_at = time.monotonic()
        self.received = 0
        self.agreed = 0
        self._asked: tuple[Tensor, Any] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruptions":
        if threading.current_thread() is threading.main_thread():  # Python allows no other to handle signals
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is Stopped or (error and self.group):
            return  # a launcher sends signals, again too, while a process still has to say why it ends
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = max(self.received, number)

    def should_save(self, global_step: int) -> bool:
        """Whether to save the state after this step. Call it once a step, on every rank."""
        wish = self._ask()
        return wish > 0 or (self.every_steps is not None and global_step % self.every_steps == 0)

    def should_stop(self) -> bool:
        """Whether the ranks have agreed to stop. Call it once a batch between two steps, on every rank."""
        self._ask()
        return self.agreed > 0

    def _ask(self) -> int:
        """What all ranks wish, as far as it is known."""
        orphaned = self.launcher_pid is not None and os.getppid() != self.launcher_pid
        overdue = self.main and (self._overdue() or self.lock.lost)  # without the lock, the save ends the run
        wishes = (self.received, ORPHANED if orphaned else 0, SAVE if overdue else 0)
        wish = self._largest(max(wishes))
        self.agreed = wish if wish > SAVE else self.agreed
        return wish

    def _overdue(self) -> bool:
        """Whether the time is up; it starts anew when this has said so."""
        now = time.monotonic()
        if self.every_seconds is None or now - self.wished_at < self.every_seconds:
            return False
        self.wished_at = now
        return True

    def _largest(self, wish: int) -> int:
        """The largest wish of all ranks at the last step (with one process: now); this step's are sent off."""
        if self.group is None:
            return wish
        answer = 0
        if self._asked:
            wishes, work = self._asked
            work.wait()
            answer = int(wishes)
        wishes = torch.tensor(wish)
        work = torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX, self.group, async_op=True)
        self._asked = wishes, work
        return answer

    def stop_if_agreed(self) -> None:
        """End the run, once its state is saved.

        Raises:
            Stopped: on every rank alike, if the ranks have agreed to.
        """
        if self.agreed == ORPHANED:
            raise Stopped("the end of its launcher", 128 + signal.SIGTERM)
        if self.agreed:
            raise Stopped(signal.Signals(self.agreed).name, 128 + self.agreed)
