"""The ways in which a run ends early on purpose: each is shown as one message, never as a traceback. And what other
libraries' errors say, in one line."""

import sys


class UserError(Exception):
    """A user's mistake: the message says what is wrong, where, and what to do. Exit status 2."""


class Damaged(UserError):
    """A file of a run is there, but does not hold what it should."""


class Stopped(Exception):
    """A scheduler's signal ended the run, after its state was saved. Exit status 128 + the signal's number."""

    def __init__(self, name: str, status: int) -> None:
        super().__init__(name, status)
        self.name = name
        self.status = status


class TrainingError(Exception):
    """Training cannot go on, through no mistake in the input (a loss that is not finite). Exit status 1."""


class NoAnswer(Exception):
    """Other processes do not go on; the message names them. Exit status 1."""


class OutOfMemory(Exception):
    """One process ran out of memory; the others know nothing of it. Exit status 1."""


def first_line(error: Exception) -> str:
    """An error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def remedy_of_locale() -> str:
    """What to say beside an error of letters that this locale does not have; "" where it has all."""
    return "" if sys.getfilesystemencoding() == "utf-8" else "; this locale knows ASCII alone: set PYTHONUTF8=1"
