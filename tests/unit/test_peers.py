"""Processes that differ are refused, or warned of, by name; from plain values, as no machine here has a GPU."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from skindist.config import Config
from skindist.distributed.peers import (
    PACKAGES,
    Peer,
    check_flags,
    check_peers,
    has_kernels,
    odd_ones,
    sharing_cores,
    these_ranks,
    this_peer,
)
from skindist.errors import UserError
from skindist.recipe import DataConfig, TrainConfig

H100 = Peer("one", frozenset(range(8)), "cuda", "bf16", ("skindist 0.1.0", "torch 2.8.0"), "NVIDIA H100", "GPU-0")


def peers(*changes: dict[str, Any]) -> list[Peer]:
    """One process for each change, on a GPU of its own."""
    return [replace(H100, **{"gpu_id": f"GPU-{rank}"} | change) for rank, change in enumerate(changes)]


def refusal(*changes: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        check_peers(peers(*changes))
    return str(caught.value)


def test_alike_processes_pass_in_silence() -> None:
    assert check_peers(peers({}, {}, {"machine": "two"})) == []
    assert check_peers([replace(H100, device="cpu", gpu="", gpu_id="")] * 3) == [], "a CPU may be shared"


def test_another_version_is_refused() -> None:
    newer = {"packages": ("skindist 0.1.0", "torch 2.9.0")}
    assert refusal({}, {}, newer).startswith("versions: rank 2 has torch 2.9.0, the others torch 2.8.0. Install")


def test_another_precision_is_refused() -> None:
    """As of one machine's environment, or of an older GPU without bf16."""
    said = refusal({}, {}, {"precision": "fp16"}, {"precision": "fp16"}, {})
    assert said.startswith("precision: ranks 2 and 3 have fp16, the others bf16. Give --mixed_precision")


def test_a_machine_without_gpus_is_refused() -> None:
    assert refusal({}, {}, {}, {"device": "cpu"}).startswith("device: rank 3 has CPU, the others CUDA. See which")


def test_more_processes_than_gpus_are_refused() -> None:
    """4 on 2 GPUs, by the number modulo 2; or processes that see different GPUs, which are one."""
    said = refusal({}, {}, {"gpu_id": "GPU-0"}, {"gpu_id": "GPU-1"})
    assert said.startswith("ranks 0 and 2 would share one NVIDIA H100: start at most as many processes on a machine")


def test_unlike_gpus_are_warned_of() -> None:
    (said,) = check_peers(peers({}, {}, {}, {"gpu": "NVIDIA A100"}))
    assert said.startswith("unlike GPUs: rank 3 has NVIDIA A100, the others NVIDIA H100: ")


def test_machines_may_differ_in_paths_and_loader_processes_alone() -> None:
    mine, other = (Config(data=DataConfig(path=path, num_workers=n)) for path, n in (("/a", 2), ("/b", None)))
    check_flags([mine.without_paths(), other.without_paths()])
    larger = replace(mine, train=TrainConfig(batch_size=64))
    with pytest.raises(UserError, match=r"^--train\.batch_size: rank 2 has 64, the others 32\. Give the same flags"):
        check_flags([config.without_paths() for config in (mine, other, larger)])


def test_the_odd_ones_are_named() -> None:
    assert odd_ones(["a", "a"]) == ""
    assert odd_ones(["a", "b"]) == "rank 1 has b, the others a"
    assert odd_ones(["a", "b", "c", "a"]) == "rank 1 has b, rank 2 has c, the others a"
    assert [these_ranks(ranks) for ranks in ([3], [0, 2], [8, 9, 10], [1, 2, 4])] == [
        "rank 3", "ranks 0 and 2", "ranks 8 to 10", "ranks 1, 2 and 4",
    ]  # fmt: skip


def test_cores_are_shared_with_those_that_may_use_them() -> None:
    """All of a machine, unless each is bound to its own, as by `srun --cpus-per-task=12`."""
    free = peers({}, {}, {"machine": "two"})
    assert sharing_cores(free[0], free) == 2
    bound = [replace(H100, cores=frozenset(range(12 * rank, 12 * rank + 12))) for rank in range(8)]
    assert sharing_cores(bound[3], bound) == 1


def test_gpus_without_a_number_are_told_apart_by_their_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a Radeon Pro V520, whose UUID is "XX" and zeros: two of them are two."""

    def properties(number: int) -> SimpleNamespace:
        slot = {"pci_domain_id": 0, "pci_bus_id": 3 + number, "pci_device_id": 0}
        return SimpleNamespace(name="V520", uuid="58580000", major=10, minor=1, **slot)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["gfx1011"])
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    found = [this_peer("cuda", "fp16", local_rank) for local_rank in range(3)]
    assert check_peers(found[:2]) == []
    with pytest.raises(UserError, match="ranks 0 and 2 would share one V520"):
        check_peers(found)


@pytest.mark.parametrize(("local_rank", "visible", "index"), [(3, 8, 3), (3, 1, 0), (3, 2, 1)])
def test_a_process_looks_at_the_gpu_that_it_will_use(
    monkeypatch: pytest.MonkeyPatch, local_rank: int, visible: int, index: int
) -> None:
    """`srun --gpus-per-task=1`: process 3 of the machine sees one GPU, whose number is 0."""

    def properties(number: int) -> SimpleNamespace:
        return SimpleNamespace(name="H100", uuid=f"GPU-{number}", major=9, minor=0)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    me = this_peer("cuda", "bf16", local_rank)
    assert (me.gpu, me.gpu_id) == ("H100", f"GPU-{index} [0, 0, 0]")
    assert [package.split()[0] for package in me.packages] == list(PACKAGES)
    assert me == this_peer("cuda", "bf16", local_rank)


@pytest.mark.parametrize(
    ("capability", "built_for", "fits"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90", "compute_90"], False),  # V100 with a wheel of 2026
        ((7, 5), ["sm_75", "sm_80"], True),
        ((8, 9), ["sm_75", "sm_80", "sm_86"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "sm_90a"], True),
        ((12, 1), ["sm_90", "sm_120"], True),
        ((13, 0), ["sm_120"], False),
        ((13, 0), ["sm_120", "compute_120"], True),
        ((9, 4), ["gfx90a", "gfx942"], True),  # AMD's
        ((8, 0), [], True),  # not told
    ],
)
def test_whether_torch_was_built_for_a_gpu(capability: tuple[int, int], built_for: list[str], fits: bool) -> None:
    assert has_kernels(capability, built_for) == fits


def test_a_gpu_that_torch_was_not_built_for_is_named() -> None:
    said = refusal({}, {"gpu": "Tesla V100", "has_kernels": False})
    assert said.startswith("rank 1: this build of torch ")
    assert "cannot use its Tesla V100: install one that can" in said
