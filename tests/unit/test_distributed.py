"""What one process can show of the launch: precision, threads, what is said. Groups are in tests/distributed."""

import psutil
import pytest
import torch

from skindist.distributed import group
from skindist.distributed.group import choose_precision, requested_precision
from skindist.errors import UserError

GPU = torch.device("cuda")


def test_precision_follows_the_request() -> None:
    assert [choose_precision(asked, None) for asked in ("no", "bf16")] == ["no", "bf16"]
    assert [choose_precision(asked, GPU) for asked in ("no", "bf16", "fp16")] == ["no", "bf16", "fp16"]


def test_precision_without_a_request_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_precision(None, None) == "no"
    assert choose_precision(None, torch.device("mps")) == "no"
    for has_bf16, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, answer=has_bf16: answer)
        assert choose_precision(None, GPU) == expected


def test_a_precision_that_does_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="--mixed_precision fp16 does nothing on a CPU"):
        choose_precision("fp16", None)
    with pytest.raises(UserError, match="--mixed_precision fp8: choose no, bf16 or fp16"):
        choose_precision("fp8", GPU)


@pytest.mark.parametrize(
    ("exported", "parent", "expected"),
    [
        (None, "bash", None),
        ("bf16", "python accelerate launch train.py", "bf16"),
        ("no", "python bin/accelerate launch --num_processes 2 train.py", None),
        ("no", "python bin/accelerate launch --mixed_precision no train.py", "no"),
        ("no", "python bin/accelerate launch --mixed_precision=no train.py", "no"),
        ("no", "bash", "no"),
    ],
)
def test_the_launchers_silence_is_told_from_its_no(
    monkeypatch: pytest.MonkeyPatch, exported: str | None, parent: str, expected: str | None
) -> None:
    class Parent:
        def parent(self) -> "Parent":
            return self

        def cmdline(self) -> list[str]:
            return parent.split()

    monkeypatch.setattr(psutil, "Process", Parent)
    if exported is None:
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    else:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", exported)
    assert requested_precision() == expected


def test_a_launch_that_accelerate_did_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alone:
        num_processes = 1

        def __init__(self, **options: object) -> None:
            pass

    monkeypatch.setattr(group, "Accelerator", Alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"started 2 processes but Accelerate sees 1.*--num_processes N"):
        group.join_group()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert isinstance(group.join_group(), Alone)


def test_unused_gpus_are_mentioned(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Alone:
        num_processes = 1

        def __init__(self, **options: object) -> None:
            pass

    monkeypatch.setattr(group, "Accelerator", Alone)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with caplog.at_level("INFO", "skindist"):
        group.join_group()
    assert "4 GPUs are visible and 1 used; --num_processes 4 would use them all" in caplog.text
