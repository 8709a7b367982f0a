"""How a run ends that cannot go on: one message, from one process, and every process ends."""

import os
import sys
import traceback
from contextlib import suppress
from datetime import timedelta
from typing import Any

from skindist.errors import OutOfMemory

ANSWER = timedelta(seconds=10)  # for processes that are alive to say that they have failed, too


def is_main_process() -> bool:
    """Whether this is the launch's first process; needs no process group."""
    return _rank() == 0


def fail(message: str, status: int) -> int:
    """Print one message from the main process."""
    if is_main_process():
        _say(message)
    return status


def fail_together(message: str, status: int) -> int:
    """Print one message from the main process, and let no process end before it is out. All processes know the error.

    A launcher ends the whole group as soon as one process has ended, maybe before the main process has spoken.
    """
    if _world_size() == 1:
        return fail(message, status)
    import torch.distributed

    from skindist.distributed.rendezvous import ATTEMPT

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", init_method=ATTEMPT, timeout=timedelta(minutes=1))
    fail(message, status)
    with suppress(RuntimeError):  # somebody was killed meanwhile: the message is out
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return status


def fail_alone(error: Exception) -> int:
    """Say what ended this process, of which the others know nothing. They lose contact with it: each tells the
    launcher's store that it has failed, and only the first one speaks.

    Returns:
        The exit status, 1.
    """
    lost = _lost_contact(error)
    if not lost and not isinstance(error, OutOfMemory | OSError):
        traceback.print_exception(error)
    words = str(error) if isinstance(error, OutOfMemory) else f"{type(error).__name__}: {error}"
    if _world_size() == 1:
        _say(words)
        return 1
    silent = _claim_first(lost)
    if silent is None:
        return 1
    if silent and lost:
        waited = "timed out" in str(error).lower()
        what = "did not answer within --run.timeout_minutes" if waited else "was killed, or its machine failed"
        _say(
            f"rank {' and rank '.join(map(str, silent))} of {_world_size()} {what}; rank {_rank()} lost contact with it"
        )
    else:
        _say(f"rank {_rank()} of {_world_size()}: {words}")
    return 1


def _claim_first(lost: bool) -> list[int] | None:
    """None if another process has failed before; else, where contact is lost, the ranks that say nothing."""
    import torch.distributed

    from skindist.distributed.rendezvous import of_this_attempt

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    others = [rank for rank in range(_world_size()) if rank != _rank()]
    try:
        whole_store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=False, wait_for_workers=False, timeout=ANSWER
        )
        store = of_this_attempt(whole_store)
        store.set(f"skindist/failed/{_rank()}", "yes")
        if store.compare_set("skindist/first to fail", "", str(_rank())) != str(_rank()).encode():
            return None
        return _silent(store, {rank: f"skindist/failed/{rank}" for rank in others}) if lost else []
    except RuntimeError:  # the store was the first process's, which is gone
        return [0] if lost else []


def _silent(store: Any, keys: dict[int, str]) -> list[int]:
    """The ranks whose keys are not in the store, and do not come."""
    try:
        store.wait(list(keys.values()), ANSWER)
        return []
    except RuntimeError:
        return [rank for rank, key in keys.items() if not store.check([key])]


def _lost_contact(error: Exception) -> bool:
    """Whether the error says no more than that another process is gone."""
    import torch.distributed

    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def _say(message: str) -> None:
    try:
        print(f"error: {message}", file=sys.stderr, flush=True)
    except OSError:  # the terminal, or the launcher that read us, is gone
        sys.stderr = None


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))
