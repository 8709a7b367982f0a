"""Shared by all tests: small drawn data, a config that trains in seconds, and no way out to the network."""

import functools
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from skindist.data.demo import write_demo_data
from skindist.launcher import this_launch
from skindist.machine import available_cores
from tests.helpers.fault_table import EXPECTED, Measured, Seen, write_table


def asks_for_gpus(marks: str) -> bool:
    """Whether `pytest -m MARKS` is for the tests on GPUs, and no others."""
    return re.match(r"gpu( and |$)", marks) is not None


def pytest_configure(config: pytest.Config) -> None:
    """Whatever the shell says, tests are offline, start as one process and keep out of the user's cache; what is
    measured on a CPU sees no GPU, and computes in float32 on every kind of CPU."""
    if asks_for_gpus(config.option.markexpr):
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # another check would bar forked processes from the GPU
    else:
        os.environ.update(CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
    os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true")
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"
    os.environ["SKINDIST_CACHE"] = tempfile.mkdtemp(prefix="skindist-tests-")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's job in the background would ignore
    for variable in ("WANDB_API_KEY", "RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        os.environ.pop(variable, None)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two tests at a time, where there are two cores; one where tests are named, need a GPU, or write the table."""
    alone = config.option.file_or_dir or "gpu" in config.option.markexpr or config.option.fault_table
    return 0 if alone else min(2, available_cores())


def pytest_unconfigure() -> None:
    """Remove the pixels that the tests prepared."""
    shutil.rmtree(os.environ.pop("SKINDIST_CACHE"), ignore_errors=True)


@pytest.fixture(autouse=True)
def launch_read_anew() -> None:
    """Each test may say in the environment how it was launched."""
    this_launch.cache_clear()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 drawn lesions, 30 of each class, 32 pixels wide."""
    folder = tmp_path_factory.mktemp("data") / "demo"
    write_demo_data(folder, count=60, size=32)
    return folder


Whole = Callable[[int], tuple[Path, list[list[list[int]]]]]


@pytest.fixture(scope="session")
def whole(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Runs that nothing stopped: for a number of processes, the folder and the ids of each rank's batches."""
    from tests.helpers import jobs
    from tests.helpers.ranks import run_ranks
    from tests.helpers.same_bytes import FLAGS

    folder = tmp_path_factory.mktemp("whole")

    @functools.cache
    def run(world_size: int) -> tuple[Path, list[list[list[int]]]]:
        target = folder / str(world_size)
        return target, run_ranks(world_size, folder / f"ranks{world_size}", jobs.fit_and_watch, demo, target, *FLAGS)

    return run


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--fault-table PAGE` writes what the fault matrix has measured into that page."""
    parser.addoption(
        "--fault-table", type=Path, help="page whose table of faults is to be written anew: skindist/training/README.md"
    )


class Observe(Protocol):
    """Note what was seen under a fault of the matrix, in words with a {name} for each figure that was measured; called
    at the end of a test, when all of it holds."""

    def __call__(self, fault: str, words: str, **figures: Measured) -> None: ...


OBSERVED = pytest.StashKey[dict[str, list[Seen]]]()


@pytest.fixture
def observe(pytestconfig: pytest.Config) -> Observe:
    """What notes it for the table."""

    def note(fault: str, words: str, **figures: Measured) -> None:
        assert fault in EXPECTED, fault
        assert words.format(**figures) != words, "nothing was measured"
        pytestconfig.stash.setdefault(OBSERVED, {}).setdefault(fault, []).append(Seen(words, figures))

    return note


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the table, if it was asked for and every test has passed."""
    page: Path | None = session.config.getoption("--fault-table")
    if page and exitstatus == 0:
        write_table(page, session.config.stash.get(OBSERVED, {}))
