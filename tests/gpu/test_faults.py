"""What happens to one of several GPUs' processes: all end in time, one line names it, and the run goes on."""

import time
from pathlib import Path

import pytest

from tests.faults.test_launched import ended, launch
from tests.gpu.conftest import CPUS, GPUS, Note, Place, need_gpus
from tests.helpers import jobs as any_jobs
from tests.helpers.same_bytes import FLAGS, assert_same_bytes

ON_GPUS = pytest.mark.gpu
NO_MEMORY = "rank 1 of 2: out of memory with 6 images at a time"


@pytest.mark.parametrize(
    ("place", "what", "words", "seconds"),
    [
        pytest.param(GPUS, "kill", "rank 1 of 2 was killed, or its machine failed", 60, marks=pytest.mark.gpu),
        pytest.param(
            GPUS, "hang", "rank 1 of 2 did not answer within --run.timeout_minutes", 120, marks=pytest.mark.gpu
        ),
        pytest.param(GPUS, "out of memory", NO_MEMORY, 60, marks=pytest.mark.gpu),
        pytest.param(CPUS, "out of memory", NO_MEMORY, 60, marks=pytest.mark.slow),  # tests/faults has the others
    ],
    ids=str,
)
def test_all_end_in_time(
    demo: Path, tmp_path: Path, place: Place, note: Note, what: str, words: str, seconds: float
) -> None:
    need_gpus(place.gpus)
    run, begun = tmp_path / "run", time.monotonic()
    precision = ("--mixed_precision", "no")
    launcher = launch(place.processes, [what, 1, 4], demo, run, "--run.timeout_minutes=0.5", options=precision)
    errors, said = ended(launcher, run)
    took = time.monotonic() - begun
    assert launcher.returncode != 0
    assert len(errors) == 1, said
    assert words in errors[0]
    assert took < seconds + 60, "beside a minute for the start"
    place.run(tmp_path / "whole ranks", "no", any_jobs.fit, demo, tmp_path / "whole", *FLAGS)
    place.run(tmp_path / "last ranks", "no", any_jobs.fit, demo, run, *FLAGS, "--run.resume=must")
    same = assert_same_bytes(run, tmp_path / "whole")
    observed = f"“{words}” after {took:.0f} s; resumed: the same bytes in {same} files"
    note(f"one rank: {what}", place, "all end in time, one line names it", observed)
