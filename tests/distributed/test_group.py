"""How processes wait for each other: over the CPU, for as long as the user allows, and never for a device unseen."""

from datetime import timedelta
from pathlib import Path

import pytest

from tests.distributed import jobs
from tests.distributed.ranks import end_ranks, result_of, run_ranks, start_ranks


def test_the_timeout_arrives_and_one_patient_group_serves_all(tmp_path: Path) -> None:
    """10 minutes are Accelerate's own default, which it drops; gloo would wait for 30."""
    ten, twelve, day = timedelta(minutes=10), timedelta(minutes=12), timedelta(days=1)
    for limits, before, after in run_ranks(2, tmp_path, jobs.timeouts, 10.0):
        assert limits == [twelve, ten, day]
        assert before == after == 3


@pytest.mark.parametrize("gone", ["hangs", "killed"])
def test_a_process_that_is_gone_is_noticed_before_a_device_is_read(tmp_path: Path, gone: str) -> None:
    ranks = start_ranks(2, tmp_path, jobs.reads_from_a_device, gone)
    assert end_ranks(ranks, 120)[0] == 0
    read, lost_contact, seconds = result_of(tmp_path, 0)
    assert not read
    assert lost_contact
    assert seconds < 60
