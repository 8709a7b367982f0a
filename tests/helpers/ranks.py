"""Run a function on N real processes that form a gloo group, and collect what each of them returns.

The processes are forked from a server that has imported everything once: a start costs milliseconds, not seconds. The
test keeps the store in which they find each other, as a launcher does, so that it outlives each of them.
"""

import multiprocessing
import os
import pickle
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.helpers.commands import PATIENCE

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.helpers.jobs"])


def _rank(env: dict[str, str], log: Path, result: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """What a forked process does: its own environment, its own log, then the function."""
    os.environ.update(env)
    cores = sorted(os.sched_getaffinity(0))  # one for each rank: one thread, and no waiting for each other's
    beside = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # tests that run at the same time
    os.sched_setaffinity(0, {cores[(int(env.get("RANK", 0)) + beside) % len(cores)]})
    multiprocessing.set_start_method("fork", force=True)  # loader workers: as anywhere else, not from a server anew
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        result.write_bytes(pickle.dumps(function(*args)))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


class Ranks(list[BaseProcess]):
    """Processes, and the store in which they find each other."""

    store: Any = None


def start_ranks(world_size: int, folder: Path, function: Callable[..., Any], *args: Any) -> Ranks:
    """Start `function(*args)` on each rank; its words go to `folder`/rank0.log and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks = Ranks()
    for rank in range(world_size):
        env: dict[str, Any] = {"OMP_NUM_THREADS": 1}
        if world_size > 1:
            ranks.store = ranks.store or TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ranks.store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
            env |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        words = {key: str(value) for key, value in env.items()}
        files = folder / f"rank{rank}.log", folder / f"result{rank}.pkl"
        files[1].unlink(missing_ok=True)
        ranks.append(SERVER.Process(target=_rank, args=(words, *files, function, args)))
        start_from_server(ranks[-1])
    return ranks


def start_from_server(process: BaseProcess) -> None:
    """Fork it from the server, which reads how many threads torch has when it starts itself."""
    with patch.dict(os.environ, OMP_NUM_THREADS="1"):
        process.start()


def end_ranks(ranks: Sequence[BaseProcess], seconds: float = PATIENCE) -> list[int | None]:
    """Wait until all have ended by themselves; the exit status of each, None where it had to be killed."""
    for process in ranks:
        process.join(seconds)
    statuses = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    return statuses


def said(folder: Path, world_size: int) -> str:
    """What all ranks printed."""
    return "\n".join(said_by(rank, folder) for rank in range(world_size))


def said_by(rank: int, folder: Path) -> str:
    """What one of them printed, but for what gloo says of itself in torch before 2.11."""
    return re.sub(r"(?m)^\[Gloo\] .*\n?", "", (folder / f"rank{rank}.log").read_text())


def run_ranks(world_size: int, folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `function(*args)` on each rank; return the results in rank order, or fail with the ranks' own words."""
    statuses = end_ranks(start_ranks(world_size, folder, function, *args))
    assert statuses == [0] * world_size, said(folder, world_size)
    return [result_of(folder, rank) for rank in range(world_size)]


def result_of(folder: Path, rank: int) -> Any:
    """What a rank returned."""
    return pickle.loads((folder / f"result{rank}.pkl").read_bytes())
