"""Where torch's threads may compute, seen from a new process: they start with torch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skindist.machine import available_cores

BOUND = """
import json, os
from pathlib import Path
from skindist import machine
from skindist.cpu_threads import bind_threads, on_own_core
from skindist.launcher import read_launch

machine.CONTROL_GROUP = Path(os.environ.get("CONTROL_GROUP", machine.CONTROL_GROUP))
bind_threads(read_launch(os.environ))
import torch

def cores():
    tasks = (os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir())
    return sorted(next(iter(task)) for task in tasks if len(task) == 1)

torch.ones(2**20).sum()
found = {"told": os.environ.get("OMP_PROC_BIND"), "threads": cores(), "this": sorted(os.sched_getaffinity(0))}
with on_own_core():
    found |= {"inside": cores(), "this inside": sorted(os.sched_getaffinity(0))}
with on_own_core(False):
    found["unwanted"] = cores()
print(json.dumps(found | {"after": sorted(os.sched_getaffinity(0))}))
"""
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

pytestmark = pytest.mark.skipif(not 2 <= len(CORES) <= available_cores(), reason="needs two whole cores, on Linux")


def threads_of(**environ: str) -> dict[str, Any]:
    """What a process sees that is told this, and nothing else about threads."""
    silent = {name: word for name, word in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", BOUND], env=silent | environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_each_thread_has_a_core_and_this_one_takes_what_is_left_where_it_asks_for_it() -> None:
    found = threads_of()
    assert len(found["threads"]) == len(CORES) - 1
    assert found["inside"] == CORES
    assert found["this inside"] == sorted(set(CORES) - set(found["threads"]))
    assert found["unwanted"] == found["threads"]
    assert found["this"] == found["after"] == CORES
    assert found["told"] is None


@pytest.mark.parametrize(
    "environ",
    [
        {"OMP_NUM_THREADS": "2"},
        {"SKINDIST_CORES": "1"},
        {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"},
        {"OMP_PROC_BIND": "false"},
    ],
    ids=" ".join,
)
def test_threads_go_anywhere_if_others_share_the_cores_or_the_user_decides(environ: dict[str, str]) -> None:
    found = threads_of(**environ)
    assert found["threads"] == found["inside"] == []
    assert found["this inside"] == CORES


def test_threads_go_anywhere_in_a_container_that_gets_the_time_of_fewer_cores(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert threads_of(CONTROL_GROUP=str(tmp_path))["threads"] == []
