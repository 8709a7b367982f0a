"""The places where a case is tried: CPU processes in the suite for everybody, GPUs with `pytest -m gpu`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from tests.conftest import asks_for_gpus
from tests.gpu import jobs
from tests.gpu.table import Row, gpus, render, versions
from tests.helpers.ranks import run_ranks

ROWS = pytest.StashKey[list[Row]]()


@dataclass(frozen=True)
class Place:
    """A kind of device, and how many processes: with one each, or all with the same."""

    device: str
    processes: int
    shared: bool = False

    @property
    def gpus(self) -> int:
        """How many it needs."""
        return 0 if self.device == "cpu" else 1 if self.shared else self.processes

    def __str__(self) -> str:
        if self.shared:
            return f"{self.processes} processes on one GPU"
        kind = "GPU" if self.device == "cuda" else "CPU process"
        return f"{self.processes} {kind}{'' if self.processes == 1 else 'es' if kind.endswith('s') else 's'}"

    def run(self, folder: Path, precision: str, function: Any, *args: Any) -> list[Any]:
        """What `function(*args)` returns on each process."""
        where = "shared" if self.shared else self.device
        return run_ranks(self.processes, folder, jobs.on, where, precision, function, *args)


CPU, CPUS, GPU, GPUS = (Place(device, processes) for device in ("cpu", "cuda") for processes in (1, 2))
SHARED = Place("cuda", 2, shared=True)


def need_gpus(count: int) -> None:
    """Skip a test where there are fewer."""
    if (there := torch.cuda.device_count()) < count:
        pytest.skip(f"needs {Place('cuda', count)}, and {there} can be seen: pytest -m gpu on a machine that has them")


@pytest.fixture(
    params=[
        CPU,
        pytest.param(CPUS, marks=pytest.mark.slow),
        *(pytest.param(place, marks=pytest.mark.gpu) for place in (GPU, GPUS, SHARED)),
    ],
    ids=str,
)
def place(request: pytest.FixtureRequest) -> Place:
    """Where to try it."""
    found: Place = request.param
    need_gpus(found.gpus)
    return found


class Note(Protocol):
    """Put a row into the table, when all of it holds."""

    def __call__(self, what: str, place: Place, expected: str, observed: str) -> None: ...


@pytest.fixture
def note(pytestconfig: pytest.Config) -> Note:
    """What notes it."""

    def add(what: str, place: Place, expected: str, observed: str) -> None:
        pytestconfig.stash.setdefault(ROWS, []).append(Row(what, str(place), expected, observed))

    return add


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of a session on GPUs."""
    rows = config.stash.get(ROWS, [])
    if rows and asks_for_gpus(config.option.markexpr):
        terminalreporter.write_line("\n" + render(rows, gpus(), versions()))
