"""What one process can show of a group's beginning: threads, what is refused, what is said. Groups are in
tests/distributed."""

import os
from collections.abc import Iterator

import pytest
import torch

from skindist.distributed import group
from skindist.errors import UserError
from skindist.launcher import this_launch


class Alone:
    """An Accelerator that sees one process."""

    num_processes = 1

    def __init__(self, **options: object) -> None:
        self.options = options


def test_a_launch_that_accelerate_did_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "Accelerator", Alone)
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


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A stub of a Mac with a GPU and macOS 13."""
    monkeypatch.setattr(group, "Accelerator", Alone)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: major < 14)
    yield monkeypatch
    torch.use_deterministic_algorithms(False)


def precision(asked: str | None, monkeypatch: pytest.MonkeyPatch) -> object:
    """What a launch that asks for this precision, or for none, trains in."""
    this_launch.cache_clear()
    if asked:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    joined: object = group.join_group()
    assert isinstance(joined, Alone)
    assert joined.options["cpu"] is False
    return joined.options["mixed_precision"]


def test_precision_on_a_mac(mac: pytest.MonkeyPatch) -> None:
    assert [precision(asked, mac) for asked in (None, "no", "fp16")] == ["no", "no", "fp16"]
    with pytest.raises(UserError, match=r"--mixed_precision bf16 needs macOS 14 or newer .* choose fp16 or no"):
        precision("bf16", mac)
    mac.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: True)
    assert precision("bf16", mac) == "bf16"


def test_two_processes_on_one_mac_are_refused(mac: pytest.MonkeyPatch) -> None:
    mac.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"--num_processes 2: a Mac's GPU \(MPS\) takes one process"):
        group.join_group()


@pytest.mark.parametrize("deterministic", [True, False])
def test_cuda_is_told_to_repeat_its_sums_before_it_starts(mac: pytest.MonkeyPatch, deterministic: bool) -> None:
    """Here, torch.cuda.is_bf16_supported stands for the first call that starts CUDA."""
    told: list[tuple[str | None, str | None, bool]] = []

    def start(**options: bool) -> bool:
        variables = (os.environ.get(name) for name in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_NVLS_ENABLE"))
        told.append((*variables, torch.are_deterministic_algorithms_enabled()))  # type: ignore[arg-type]
        raise UserError("CUDA has started")

    for variable in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_NVLS_ENABLE"):
        mac.delenv(variable, raising=False)
    mac.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda:0"))
    mac.setattr(torch.cuda, "is_bf16_supported", start)
    with pytest.raises(UserError, match="CUDA has started"):
        group.join_group(deterministic=deterministic)
    assert told == [(":4096:8", "0", True) if deterministic else (None, None, False)]
