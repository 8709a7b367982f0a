"""What this machine offers: cores, and a place to keep prepared data."""

import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_id() -> str:
    """What tells this machine, since its last start, from all others: names may be shared."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def free_shared_memory() -> int | None:
    """Bytes that are free where processes hand tensors to each other; None where the system sets no such limit."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


def cache_folder(asked: str | None = None) -> Path:
    """Where prepared data are kept for later runs: `asked`, else $SKINDIST_CACHE, else ~/.cache/skindist."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skindist"
    return Path(asked or os.environ.get("SKINDIST_CACHE") or default)


def gpus() -> int:
    """How many GPUs this process may use."""
    import torch

    return torch.cuda.device_count()
