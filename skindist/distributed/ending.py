"""How a run ends that cannot go on: one message, from one process, and every process ends."""

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from skindist.errors import NoAnswer, OutOfMemory, Stopped, TrainingError, UserError, remedy_of_locale
from skindist.files import write_atomic
from skindist.launcher import Launch, this_launch

ANSWER = timedelta(seconds=10)  # for processes that are alive to say that they have failed, too
GONE = (  # in the words of gloo and NCCL, whose errors are of any class
    "/gloo/", "NCCL operation timed out", "communicator was aborted", "Async Error", "async error",
    "remote process exit", "Application timeout caused pair closure",
)  # fmt: skip
FAILED, SPOKEN = "skindist/failed/", "skindist/spoken"
LAST_WORDS = Path(__file__).with_name("last_words.py")


def together(job: Callable[[], object], again: str = "") -> int:
    """Do a job that all processes of a launch share; of its errors one process speaks, and every process ends.

    Args:
        again: the words of how a job goes on that was stopped.

    Returns:
        The exit status, as of `train`.
    """
    try:
        job()
    except (UserError, TrainingError) as error:
        return fail_together(str(error), 2 if isinstance(error, UserError) else 1)
    except Stopped as stop:
        return fail_together(f"stopped by {stop.name}; {again} from here", stop.status)
    except KeyboardInterrupt:
        return fail(f"interrupted; {again} from what it has saved" if again else "interrupted", 130)
    except Exception as error:
        return fail_alone(error)
    return 0


def fail(message: str, status: int) -> int:
    """Print one message from the main process, and let the launcher end with it, too. A process speaks for itself where
    it could not find the others."""
    _report(message)
    if this_launch().rank == 0 or not this_launch().is_complete:
        _say(message)
    return status


def fail_together(message: str, status: int) -> int:
    """Print one message from the main process, and let no process end before it is out. All processes know the error,
    or hear of it from the machine that alone was given a wrong flag, and end with it.

    A launcher ends the whole group as soon as one process has ended, maybe before the main process has spoken.
    """
    launch = this_launch()
    if launch.world_size == 1:
        return fail(message, status)
    import torch.distributed

    from skindist.distributed import host
    from skindist.distributed.rendezvous import ATTEMPT, tell_machines

    fail(message, status)
    with suppress(RuntimeError, UserError):  # somebody is gone, or out of reach: the message is out
        if not torch.distributed.is_initialized():
            if launch.world_size > launch.local_world_size:
                tell_machines(message)
            torch.distributed.init_process_group("gloo", init_method=ATTEMPT, timeout=timedelta(minutes=1))
        host.leave()
    return status


def fail_alone(error: Exception) -> int:
    """Say what ended this process, of which the others know nothing. They lose contact with it: each tells the
    launcher's store that it has failed, and only the first one speaks.

    Returns:
        The exit status, 1.
    """
    remedy = remedy_of_locale() if isinstance(error, UnicodeError) else ""
    if not _lost_contact(error) and not remedy and not isinstance(error, OutOfMemory | NoAnswer | OSError):
        traceback.print_exception(error)
    words = str(error) if isinstance(error, OutOfMemory | NoAnswer) else f"{type(error).__name__}: {error}{remedy}"
    launch, store = this_launch(), None
    if launch.world_size > 1:
        store = _shared_store(launch)
        if not _is_first(store, launch):
            _report(f"rank {launch.rank} of {launch.world_size} lost contact with one that failed", after=ANSWER)
            return 1
        words = _words_for_all(error, words, store, launch)
    _report(words)
    _say(words)
    if store:
        with suppress(RuntimeError):
            store.set(SPOKEN, "yes")
    return 1


def _words_for_all(error: Exception, words: str, store: Any, launch: Launch) -> str:
    """What the first process to fail says for all: of its own fault, with its rank; of lost contact, who is gone."""
    if isinstance(error, NoAnswer):  # its words name who is silent
        _silent(store, launch)  # the others know as much: they are waited for, and not ended by this one's end
        return words
    silent = _silent(store, launch) if _lost_contact(error) else []
    if not silent:
        return f"rank {launch.rank} of {launch.world_size}: {words}"
    what = "did not answer within --run.timeout_minutes" if _waited(error) else "was killed, or its machine failed"
    gone = " and rank ".join(map(str, silent))
    return f"rank {gone} of {launch.world_size} {what}; rank {launch.rank} lost contact with it"


def _shared_store(launch: Launch) -> Any:
    """The launcher's store, or the first process's; None if that is gone."""
    import torch.distributed

    from skindist.distributed.rendezvous import of_this_attempt

    with suppress(RuntimeError):
        whole_store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            launch.address, launch.port, is_master=False, wait_for_workers=False, timeout=ANSWER
        )
        return of_this_attempt(whole_store)
    return None


def _is_first(store: Any, launch: Launch) -> bool:
    """Tell the store that this process has failed; whether none has before, as far as is known. If one has, wait until
    it has spoken."""
    if store is None:
        return True
    me = str(launch.rank)
    try:
        first: bool = store.compare_set("skindist/first to fail", "", me) == me.encode()
        store.set(f"{FAILED}{me}", "yes")  # last: once all have said this, the store may go at any time
    except RuntimeError:  # the store was the first process's, which has just gone
        return True
    if not first:
        with suppress(RuntimeError):  # whoever ends first ends the others, or takes the store away
            store.wait([SPOKEN], 2 * ANSWER)
    return first


def _silent(store: Any, launch: Launch) -> list[int]:
    """The ranks that do not tell the store that they have failed, too; the first one, where its store is gone."""
    others = {rank: f"{FAILED}{rank}" for rank in range(launch.world_size) if rank != launch.rank}
    if store is None:
        return [0]
    with suppress(RuntimeError):
        store.wait(list(others.values()), ANSWER)
        return []
    with suppress(RuntimeError):
        return [rank for rank, key in others.items() if not store.check([key])]
    return [0]


def _lost_contact(error: Exception) -> bool:
    """Whether the error says no more than that another process is gone."""
    import torch.distributed

    network = torch.distributed.DistNetworkError | torch.distributed.DistStoreError
    return isinstance(error, network) or any(words in str(error) for words in GONE)


def _waited(error: Exception) -> bool:
    """Whether contact is lost because time was up. Of two sums that gloo waits for, one times out, and the other is
    told that this closed the connection."""
    return any(words in str(error).lower() for words in ("timed out", "application timeout"))


def _say(message: str) -> None:
    launch = this_launch()
    try:
        print(f"error: {message}", file=sys.stderr, flush=True)
    except OSError:  # the terminal, or the launcher that read us, is gone
        sys.stderr = None
        return
    if launch.by_accelerate and not launch.error_file:  # it goes on to print a traceback of its own
        words = [sys.executable, str(LAST_WORDS), str(launch.launcher_pid), f"error: {message}"]
        with suppress(OSError):
            again = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
            if again.stdout:
                again.stdout.readline()  # until it watches; the launcher may end as soon as this process has


def _report(message: str, after: timedelta = timedelta()) -> None:
    """Leave a message to torchrun's launcher, whose report ends with that of the process that failed first.

    Args:
        after: how much later than now this failure counts.
    """
    if file := this_launch().error_file:
        what = {"message": f"error: {message}", "extraInfo": {"timestamp": int(time.time() + after.total_seconds())}}
        with suppress(OSError):
            write_atomic(file, json.dumps({"message": what}))
