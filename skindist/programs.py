"""Other programs, started from this one: whether one can be run, what it has started itself, and that none stays."""

import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from skindist.errors import UserError

POLL_SECONDS = 0.05
NO_TRAINING = "give one that runs launch/train.py or skindist train, with its flags at the end"
"""What to tell the user of a command that ends well, and has not trained."""


def refuse_unknown_program(command: Sequence[str]) -> None:
    """Raise UserError unless the first word of a command can be run."""
    if shutil.which(command[0]) is None:
        raise UserError(f"cannot run {command[0]}: no such program, or it is not executable")


def last_words(log: Path, begun: int = 0) -> list[str]:
    """Lines that say why a program of ours has ended, by what it printed: its last error, else its last lines.

    Args:
        begun: bytes that were in the log before it was started.
    """
    lines = log.read_bytes()[begun:].decode(errors="replace").splitlines()
    return [line for line in lines if line.startswith("error: ")][-1:] or lines[-15:]


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as ctrl-C does, so that no child outlives it."""
    unhandled = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in unhandled:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)


def children(process: psutil.Process, recursive: bool = False) -> set[psutil.Process]:
    """What a process has started and what still runs; nothing if it has ended itself."""
    try:
        return set(process.children(recursive))
    except psutil.NoSuchProcess:
        return set()


def kill(family: set[psutil.Process]) -> None:
    """SIGKILL to these processes and all that they have started, and wait for the end of each.

    All are halted first, parents before children, as those that run could start more meanwhile.
    """
    doomed: set[psutil.Process] = set()
    while family:
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        doomed |= family
        family = set().union(*map(children, family)) - doomed
    for process in doomed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    while any(map(is_alive, doomed)):
        time.sleep(POLL_SECONDS)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
