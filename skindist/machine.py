"""What this machine offers: cores, memory, and a place to keep prepared data."""

import ctypes
import math
import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

from skindist.files import expanded

SHARED_MEMORY = Path("/dev/shm")
CONTROL_GROUP = Path("/sys/fs/cgroup")  # of a container, as it sees itself
QUOTA_AND_PERIOD = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))  # of version 2, and of version 1
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # as glibc's malloc.h has them


def available_cores() -> int:
    """Cores that this process may use: those that it may run on, or as many as its container gets the time of."""
    return max(1, math.floor(min(len(allowed_cores()), cores_worth_of_time())))


def allowed_cores() -> frozenset[int]:
    """The numbers of the cores that this process may run on."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def cores_worth_of_time() -> float:
    """What `docker run --cpus` and a limit of Kubernetes set: the container sees all cores, and halts when it has used
    so much of them. Infinite where there is no such limit."""
    for files in QUOTA_AND_PERIOD:
        with suppress(OSError, ValueError):  # "max" is no number
            quota, period = map(int, " ".join((CONTROL_GROUP / file).read_text() for file in files).split())
            return quota / period if quota > 0 else math.inf
    return math.inf


def machine_id() -> str:
    """What tells this machine, since its last start, from all others: names may be shared."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones, where it has glibc; others do as they do.

    By default, glibc maps a large tensor anew each time and gives it back at once, so that the kernel clears all of its
    pages again in every layer of every step.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never


def free_shared_memory() -> int | None:
    """Bytes that are free where processes hand tensors to each other; None where the system sets no such limit."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


def cache_folder(asked: str | None = None) -> Path:
    """Where prepared data are kept for later runs: `asked`, else $SKINDIST_CACHE, else ~/.cache/skindist."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skindist"
    return expanded(asked or os.environ.get("SKINDIST_CACHE") or str(default))


def gpus() -> int:
    """How many GPUs this process may use."""
    import torch

    return torch.cuda.device_count()
