"""What one process can show of a group's beginning: threads, what is refused, what is said. Groups are in
tests/distributed."""

import os
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType

from skindist.distributed import group, host
from skindist.distributed.buffers import mean_row
from skindist.distributed.peers import Peer, this_peer
from skindist.errors import UserError
from skindist.launcher import OTHER_INDEX, check_device, this_launch


class Alone:
    """An Accelerator that sees one process."""

    num_processes = 1
    distributed_type = DistributedType.NO

    def __init__(self, **options: object) -> None:
        self.options = options


def set_launch(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    """What a launcher says to a process of one machine."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    for variable, value in (ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}).items():
        monkeypatch.setenv(variable, str(value))
    this_launch.cache_clear()


def test_a_launch_that_accelerate_did_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "Accelerator", Alone)
    monkeypatch.setattr(host, "join", lambda device, timeout: None)
    set_launch(monkeypatch, 0, 2)
    with pytest.raises(UserError, match=r"started 2 processes but Accelerate sees 1.*--multi_gpu"):
        group.join_group()
    set_launch(monkeypatch, 0, 1)
    assert isinstance(group.join_group(), Alone)


def test_ways_to_train_that_are_not_ours_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "Accelerator", Alone)
    monkeypatch.setattr(Alone, "distributed_type", DistributedType.FSDP)
    with pytest.raises(
        UserError, match=r"FSDP: skindist trains with DistributedDataParallel alone; give --config_file"
    ):
        group.join_group()


@pytest.mark.parametrize(("device", "said"), [("mps", "a Mac's GPU"), ("xpu", "CPUs or on GPUs of NVIDIA or AMD, and")])
def test_several_processes_on_an_untried_device_are_refused(device: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"^--num_processes 2: .*{said}.*: --num_processes 1$"):
        check_device(device, 2)
    check_device(device, 1)


def test_gradients_are_not_divided_by_a_number_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    weight = torch.ones(1, requires_grad=True)
    group.join_group().backward((3 * weight).sum())
    assert weight.grad == torch.tensor([3.0])


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


@pytest.mark.parametrize("ranks", range(2, 9))
def test_statistics_that_all_ranks_share_are_their_own_mean(ranks: int) -> None:
    """To the last bit: those of pretrained weights are kept on any number of processes."""
    row = torch.randn(2000, generator=torch.Generator().manual_seed(0)).exp()
    assert torch.equal(mean_row(row.repeat(ranks, 1)), row)
    assert mean_row(torch.tensor([[1.0, 0.0]] * (ranks - 1) + [[1.0, ranks]])).tolist() == [1.0, 1.0]


class Built(Exception):
    """The Accelerator is about to be built, and NCCL after it."""


def join_on_fake_gpus(monkeypatch: pytest.MonkeyPatch, local_rank: int, visible: list[list[str]]) -> None:
    """Join as one of several processes of a machine, each of which sees the GPUs with these ids."""

    def build(**options: Any) -> None:
        raise Built

    def look(rank: int) -> None:
        ids = visible[rank]
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(ids))
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda index: SimpleNamespace(name="H100", uuid=ids[index], major=9, minor=0),
        )

    def gather(me: Peer) -> list[Peer]:
        peers = []
        for rank in range(len(visible)):
            look(rank)
            peers.append(this_peer("cuda", me.precision, rank))
        look(local_rank)
        return peers

    look(local_rank)
    set_launch(monkeypatch, local_rank, len(visible))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(host, "join", lambda device, timeout: None)
    monkeypatch.setattr(host, "gather", gather)
    monkeypatch.setattr(group, "Accelerator", build)
    monkeypatch.setenv(OTHER_INDEX, "false")
    group.join_group()


def test_more_processes_than_gpus_are_refused_before_nccl_meets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="ranks 0 and 2 would share one H100"):
        join_on_fake_gpus(monkeypatch, 3, [["A", "B"]] * 4)
    with pytest.raises(UserError, match="ranks 0 and 1 would share one H100"):
        join_on_fake_gpus(monkeypatch, 0, [["A", "B"], ["A"]])


def test_a_process_may_see_only_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """`srun --gpus-per-task=1`: process 3 of the machine has GPU 0, where Accelerate would give DDP GPU 3."""
    with pytest.raises(Built):
        join_on_fake_gpus(monkeypatch, 3, [["A"], ["B"], ["C"], ["D"]])
    assert os.environ[OTHER_INDEX] == "true"
    with pytest.raises(Built):
        join_on_fake_gpus(monkeypatch, 3, [["A", "B", "C", "D"]] * 4)
    assert os.environ[OTHER_INDEX] == "false"


def test_cards_that_cannot_reach_each_other_do_without_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """RTX 40 with an old driver: Accelerate refuses them where nothing is said."""
    monkeypatch.setattr(group, "check_cuda_p2p_ib_support", lambda: False)
    monkeypatch.setenv("NCCL_P2P_DISABLE", "0")
    monkeypatch.setenv("NCCL_IB_DISABLE", "")  # so that it is put back
    monkeypatch.delenv("NCCL_IB_DISABLE")
    with pytest.raises(Built):
        join_on_fake_gpus(monkeypatch, 0, [["A", "B"]] * 2)
    assert [os.environ[name] for name in group.WITHOUT_PEERS] == ["0", "1"]


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
    set_launch(mac, 0, 2)
    with pytest.raises(UserError, match=r"--num_processes 2: a Mac's GPU \(MPS\) takes one process"):
        group.join_group()


def test_a_launch_that_is_told_to_use_the_cpu_chooses_all_for_it(mac: pytest.MonkeyPatch) -> None:
    """Accelerate obeys. fp16 is a GPU's precision."""
    this_launch.cache_clear()
    mac.setenv("ACCELERATE_USE_CPU", "True")
    mac.setattr(group, "has_fast_bf16", lambda: True)
    joined: object = group.join_group()
    assert isinstance(joined, Alone)
    assert (joined.options["cpu"], joined.options["mixed_precision"]) == (True, "bf16")
    with pytest.raises(UserError, match="--mixed_precision fp16 does nothing on a CPU"):
        precision("fp16", mac)


@pytest.mark.parametrize("deterministic", [True, False])
def test_cuda_is_told_to_repeat_its_sums_before_it_starts(mac: pytest.MonkeyPatch, deterministic: bool) -> None:
    """Here, torch.cuda.get_device_properties stands for the first call that starts CUDA."""
    told: list[tuple[str | None, str | None, bool]] = []

    def start(index: int) -> object:
        variables = (os.environ.get(name) for name in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_NVLS_ENABLE"))
        told.append((*variables, torch.are_deterministic_algorithms_enabled()))  # type: ignore[arg-type]
        raise UserError("CUDA has started")

    for variable in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_NVLS_ENABLE"):
        mac.delenv(variable, raising=False)
    mac.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda:0"))
    mac.setattr(torch.cuda, "device_count", lambda: 1)
    mac.setattr(torch.cuda, "get_device_properties", start)
    with pytest.raises(UserError, match="CUDA has started"):
        group.join_group(deterministic=deterministic)
    assert told == [(":4096:8", "0", True) if deterministic else (None, None, False)]
