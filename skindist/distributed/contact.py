"""What ends a process whose main thread waits for a GPU that waits for a process which is gone.

There Python can do nothing: not one step further, not even heed a signal, until the launcher kills it or NCCL's own
limit ends it without a word. On a CPU it is gloo that waits, which notices by itself.
"""

import os
import threading
import time
from typing import Any

import torch

from skindist.distributed import host
from skindist.distributed.ending import fail_alone
from skindist.distributed.peers import these_ranks
from skindist.errors import NoAnswer, Stopped, TrainingError, UserError

EACH = 1.0  # seconds from one sign of life to the next
GRACE = 3.0  # seconds for the main thread to say itself what it may have noticed, too
BUSY = 30.0  # seconds that a machine may be too busy for a sign of life
SHARED = (UserError, TrainingError, Stopped)  # what all ranks raise together


class Contact:
    """While it is entered, a thread tells the other ranks that this one lives, and how far it is. When one of them is
    gone, or none goes on, the thread ends this process with one line. All ranks enter and leave it together."""

    def __init__(self, device: torch.device, timeout_minutes: float) -> None:
        self.seconds = 60 * timeout_minutes
        self.beats = 0
        self._over, self._alone = threading.Event(), False
        self._group: Any = None if device.type == "cpu" else host.new_group(max(self.seconds, BUSY))
        self._thread = threading.Thread(target=self._watch, name="contact", daemon=True)

    def __enter__(self) -> "Contact":
        if self._group:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.leave(alone=kind is not None and not issubclass(kind, SHARED))

    def leave(self, alone: bool = False) -> None:
        """End it, as leaving the block does.

        Args:
            alone: this process fails, and the others do not know. They go on to watch, and see its connection close.
        """
        self._alone = alone
        self._over.set()
        if self._group:
            self._thread.join(GRACE)

    def beat(self) -> None:
        """Say that the main thread goes on. Call it once a step, on every rank."""
        self.beats += 1

    def _watch(self) -> None:
        before: list[int] = []
        since = time.monotonic()
        try:
            while True:
                leaving = self._over.wait(EACH)
                if leaving and self._alone:
                    return
                beats = host.gather_numbers(-1 if leaving else self.beats, self._group)
                if min(beats) < 0:
                    return
                if beats != before:
                    before, since = beats, time.monotonic()
                elif time.monotonic() - since > self.seconds:
                    raise NoAnswer(_who(beats))
        except (RuntimeError, NoAnswer) as error:
            if not self._over.wait(GRACE):
                os._exit(fail_alone(error))


def _who(beats: list[int]) -> str:
    """Who has not answered, by how far each rank has come: the others wait for the last ones."""
    last = [rank for rank, count in enumerate(beats) if count == min(beats)]
    if len(last) == len(beats):
        return f"none of {len(beats)} processes went on within --run.timeout_minutes"
    return f"{these_ranks(last)} of {len(beats)} did not answer within --run.timeout_minutes"
