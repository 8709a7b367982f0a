"""What one process can show of a group's beginning: threads, what is refused, what is said. Groups are in
tests/distributed."""

from datetime import timedelta
from typing import Any

import pytest
import torch

from skindist.distributed import group, host
from skindist.errors import UserError
from skindist.launcher import this_launch


class Alone:
    """An Accelerator that sees one process."""

    num_processes = 1

    def __init__(self, **options: object) -> None:
        pass


def test_a_launch_that_accelerate_did_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "Accelerator", Alone)
    monkeypatch.setattr(host, "join", lambda device, timeout: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"started 2 processes but Accelerate sees 1.*--multi_gpu"):
        group.join_group()
    this_launch.cache_clear()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert isinstance(group.join_group(), Alone)


def test_unused_gpus_are_mentioned(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(group, "Accelerator", Alone)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with caplog.at_level("INFO", "skindist"):
        group.join_group()
    assert "4 GPUs are visible and 1 used; --num_processes 4 would use them all" in caplog.text


def test_a_group_on_gpus_has_cpu_groups_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL takes no CPU tensors, and its limit lies above ours, as it ends a process without a word."""
    made: list[dict[str, Any]] = []

    def make(backend: str, **options: Any) -> str:
        made.append({"backend": backend, **options})
        return f"group {len(made)}"

    monkeypatch.setattr(torch.distributed, "init_process_group", make)
    monkeypatch.setattr(torch.distributed, "new_group", make)
    monkeypatch.setattr(host, "_groups", host.Groups())
    host.join("cuda", timedelta(minutes=10))
    default, prompt, patient = made
    assert default["backend"] == "cpu:gloo,cuda:nccl"
    assert default["init_method"] == "attempt://"
    assert default["timeout"] == timedelta(minutes=12)
    assert prompt == {"backend": "gloo", "timeout": timedelta(minutes=10)}
    assert patient == {"backend": "gloo", "timeout": timedelta(days=1)}
