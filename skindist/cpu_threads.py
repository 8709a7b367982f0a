"""Threads that train on a CPU, each on a core of its own.

torch cuts the work of a layer into one part for each thread, and all wait for the last. When another program takes a
core, Linux may well put two of the threads on one, where each waits for the other's turn to end.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from skindist.launcher import Launch
from skindist.machine import available_cores

BIND = "OMP_PROC_BIND"
TOLD = (BIND, "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")  # by a user, who then decides


def bind_threads(launch: Launch) -> None:
    """Import torch so that GNU OpenMP gives each core one of its threads, for a process that has a machine's cores for
    itself. This thread may still go anywhere, and so may what it starts. Elsewhere, and once torch is imported, nothing
    happens."""
    alone = launch.local_world_size == 1 and launch.threads is None and launch.cores is None
    told = any(name in os.environ for name in TOLD)
    if not alone or told or "torch" in sys.modules or not hasattr(os, "sched_setaffinity"):
        return
    cores = os.sched_getaffinity(0)
    if available_cores() < len(cores):  # all such containers would bind their few threads to the same first cores
        return
    import numpy  # noqa: F401 (its threads start with it, and may go anywhere)

    os.environ[BIND] = "true"
    try:
        import torch  # noqa: F401
    finally:
        del os.environ[BIND]  # scikit-learn comes with an OpenMP of its own
        keep_to(cores)


@contextmanager
def on_own_core(wanted: bool = True) -> Iterator[None]:
    """Inside it, this thread keeps to the core that its bound threads leave to it, if all cores have one. Whatever it
    starts there keeps to that core, too."""
    core = core_left() if wanted else None
    if core is None:
        yield
        return
    cores = os.sched_getaffinity(0)
    keep_to({core})
    try:
        yield
    finally:
        keep_to(cores)


def keep_to(cores: set[int]) -> None:
    """Let this thread compute on these cores alone, unless a container forbids to choose."""
    with suppress(OSError):
        os.sched_setaffinity(0, cores)


def core_left() -> int | None:
    """The core of this thread among torch's bound ones; None if they are not bound, or fewer than the cores."""
    import torch

    if not hasattr(os, "sched_getaffinity") or torch.get_num_threads() != len(os.sched_getaffinity(0)):
        return None
    with suppress(AttributeError):  # another OpenMP, or none
        openmp = ctypes.CDLL(torch._C.__file__)
        if openmp.omp_get_proc_bind() and openmp.omp_get_place_num_procs(0) == 1:
            core = ctypes.c_int()
            openmp.omp_get_place_proc_ids(0, ctypes.byref(core))
            return core.value
    return None
