"""One run, one writer: the lock on a run folder.

On one machine the kernel's flock is the truth: it goes with the process, however that ends. Machines that share a file
system may not see each other's, so the file itself says who holds the lock, and is rewritten every ten seconds: whoever
stays silent for a minute has lost it. A clean end empties the file.
filelock (4.2) is no substitute: its lease is lost by a process that is only stopped, and an empty file bars everyone.
"""

import errno
import fcntl
import itertools
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path

from skindist.errors import TrainingError, UserError
from skindist.launcher import this_launch
from skindist.machine import machine_id
from skindist.run.owner import Owner, read_owner

log = logging.getLogger("skindist")
PATIENCE = 60.0  # seconds of silence after which a holder that cannot be seen counts as dead
NO_FLOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # of file systems that have none
_held: set[int] = set()  # file descriptors


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)  # loader workers outlive a process that was killed by some seconds


class RunLock(AbstractContextManager["RunLock"]):
    """The lock of one run: made and entered by every process, taken by the one that writes, released on leaving.

    Args:
        interval: seconds between signs of life.
        clock, sleep: tell the time in seconds, of any origin, and wait for some.
    """

    def __init__(
        self,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.interval, self.clock, self.sleep = interval, clock, sleep
        self.lost: str | None = None  # how
        self._file = Path()
        parent = this_launch().launcher_pid  # an orphan has another one
        self._me = Owner(socket.gethostname(), os.getpid(), parent, 0.0, machine_id(), secrets.token_hex(8))
        self._descriptor: int | None = None
        self._beaten = 0.0
        self._mutex = threading.Lock()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="lock", daemon=True)

    def take(self, file: Path) -> None:
        """Become the one writer; waits where only time can tell whether there is another.

        Raises:
            UserError: another process is the writer, or the file cannot be written.
        """
        self._file = file
        descriptor = None
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
            self._claim(descriptor)
            self._write(descriptor)
            self._descriptor = descriptor
            _held.add(descriptor)
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror})") from None
        finally:
            if descriptor is not None and self._descriptor is None:
                os.close(descriptor)
        self._thread.start()

    def _claim(self, descriptor: int) -> None:
        """Return once nobody else holds the lock."""
        first, started = read_owner(self._file), self.clock()
        # An old beat tells of a dead process, or of clocks that differ: two intervals of silence tell which.
        enough = 2 * self.interval if first and first.silence > PATIENCE else PATIENCE
        for turn in itertools.count():
            flock, owner = try_flock(descriptor), read_owner(self._file)
            if flock is not False and (owner is None or (flock and owner.is_here)):
                return
            # It may be a process of another machine, or one that has just died and whose loaders still hold its flock.
            dead, silence = owner and owner.is_here and not owner.lives_here, self.clock() - started
            if owner is None or owner != first or (flock is False and (not dead or silence >= enough)):
                raise self._refusal(owner)
            if silence >= enough:
                silent = f"silent for {max(silence, owner.silence):.0f} s"
                log.warning(f"{self._file}: taken over from process {owner.pid} on {owner.host}, {silent}")
                return
            if turn == 0:
                log.info(f"{self._file} names {owner}: waiting up to {enough:.0f} s to see whether it lives")
            self.sleep(1.0)

    def _refusal(self, owner: Owner | None) -> UserError:
        what, remedy = f"{owner or 'another process'} is writing this run", "stop it first, or give another folder"
        if owner and owner.is_orphan:
            what = f"{owner} goes on writing this run although its launcher is gone"
            remedy = f"end it: kill {owner.pid}"
        return UserError(f"--run.dir {self._file.parent}: {what}; {remedy}")

    def _write(self, descriptor: int) -> None:
        """Say that this process lives. In place: a new file would have a flock of its own."""
        content = json.dumps(asdict(replace(self._me, beat=time.time()))).encode()
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
        os.fsync(descriptor)  # other machines see it now
        self._beaten = self.clock()

    def _beat_on(self) -> None:
        while not self._released.wait(self.interval):
            self.beat()

    def beat(self) -> None:
        """Give a sign of life, or find out that the lock is lost."""
        with self._mutex:
            if self._descriptor is None or self.lost:
                return
            try:
                if self._is_mine():
                    self._write(self._descriptor)
            except OSError as error:  # of a file system that is away for a while
                log.debug(f"{self._file}: {error}")

    def _is_mine(self) -> bool:
        owner = read_owner(self._file)
        if owner and replace(owner, beat=0.0) == self._me:
            return True
        self.lost = f"is now held by {owner}" if owner else "was emptied or deleted"
        return False

    def check(self) -> None:
        """Call it before writing what must not be written twice; costs nothing, and nothing where no lock was taken.

        Raises:
            TrainingError: somebody else has taken the lock over, or the file was removed.
        """
        if self._descriptor is not None and self.clock() - self._beaten > 2 * self.interval:
            self.beat()  # this process was frozen, and the thread may not have had its turn yet
        if self.lost:
            raise TrainingError(
                f"{self._file} {self.lost}: this process may no longer be the run's only writer and ends here; "
                "if no other goes on with it, start it again with the same --run.dir"
            )

    def __exit__(self, *_: object) -> None:
        """Let go of the lock, so that the next one need not wait; nothing happens where none was taken."""
        self._released.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._descriptor is None:
            return
        try:
            if not self.lost and self._is_mine():
                os.ftruncate(self._descriptor, 0)
        except OSError as error:
            log.debug(f"{self._file}: {error}")
        _held.discard(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None


def try_flock(descriptor: int) -> bool | None:
    """Whether the kernel grants the lock; None on a file system that knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_FLOCK:
            return None
        raise
    return True
