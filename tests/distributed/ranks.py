"""Run a function on N real processes that form a gloo group, and collect what each of them returns."""

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CODE = """
import pickle, sys
function, args = pickle.load(open(sys.argv[1], "rb"))
result = function(*args)
pickle.dump(result, open(sys.argv[2], "wb"))
"""


def run_ranks(world_size: int, folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `function(*args)` on each rank; return the results in rank order, or fail with the ranks' own words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "call.pkl").write_bytes(pickle.dumps((function, args)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(world_size):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        env = os.environ | {key: str(value) for key, value in group.items()} if world_size > 1 else dict(os.environ)
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", CODE, str(folder / "call.pkl"), str(folder / f"result{rank}.pkl")]
        with (folder / f"rank{rank}.log").open("wb") as log:
            ranks.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT))
    try:
        statuses = [process.wait(timeout=240) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    words = "\n".join((folder / f"rank{rank}.log").read_text() for rank in range(world_size))
    assert statuses == [0] * world_size, words
    return [pickle.loads((folder / f"result{rank}.pkl").read_bytes()) for rank in range(world_size)]
