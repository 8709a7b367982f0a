"""Systems other than the one that the tests run on, played by a process that lacks what they lack."""

import platform
import subprocess
import sys

import pytest
import torch

WINDOWS = """
import sys, lazy_loader
sys.platform = "win32"
sys.modules["fcntl"] = None
import skindist
"""

MAC = """
import ctypes, mmap, os, pkgutil, sys, importlib, pathlib
import torch, accelerate, datasets, timm, wandb, psutil, multiprocessing.util
sys.platform = "darwin"
for name in ("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "posix_fallocate", "sendfile"):
    os.__dict__.pop(name, None)
import skindist
from skindist import machine
machine.SHARED_MEMORY = pathlib.Path("/no such folder")
for module in pkgutil.walk_packages(skindist.__path__, "skindist."):
    importlib.import_module(module.name)
assert machine.free_shared_memory() is None
ctypes.CDLL = lambda name: object()
machine.keep_freed_memory()
print(machine.available_cores() > 0)
"""

TENSORS = """
import resource, torch
from skindist.distributed.group import join_group
join_group()
begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_windows_gets_one_line() -> None:
    done = python(WINDOWS)
    assert done.stderr.startswith("error: skindist needs Linux or macOS. On Windows, run it in WSL2: https://")
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (1, 1, "")


def test_every_module_imports_where_linux_own_calls_are_missing() -> None:
    done = python(MAC)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_threads_that_wait_do_not_spin_for_long_unless_the_user_says_how_they_wait() -> None:
    show = "import skindist; print(os.environ.get('GOMP_SPINCOUNT'))"
    told = "import os; os.environ.pop('GOMP_SPINCOUNT', None); os.environ.update({}); "
    assert python(told.format("{}") + show).stdout == "10000\n"
    assert python(told.format("GOMP_SPINCOUNT='7'") + show).stdout == "7\n"
    assert python(told.format("OMP_WAIT_POLICY='active'") + show).stdout == "None\n"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or torch.accelerator.is_available(), reason="for glibc and CPUs")
def test_tensors_on_a_cpu_find_the_memory_of_those_before_them() -> None:
    pages = 2**26 // 4096  # of one tensor; the first few are given new ones
    assert int(python(TENSORS).stdout) < 10 * pages
