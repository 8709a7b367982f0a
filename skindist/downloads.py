"""What all downloads have in common: how a repository on the Hugging Face Hub is named, and how long the network may
stay silent."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")
NETWORK_SECONDS = 4.0
"""Longest wait for a first sign of life from the network."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def within(seconds: float, probe: Callable[[], T]) -> T:
    """What `probe` returns or raises, or TimeoutError: the look-up of a host name knows no timeout of its own."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(probe())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    if not wait([answer], seconds).done:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return answer.result()
