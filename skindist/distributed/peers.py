"""Are the processes of a run alike? Compared once, before any of them trains: what differs would be noticed late, or
never."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from skindist.errors import UserError
from skindist.machine import allowed_cores, machine_id

PACKAGES = ("skindist", "torch", "torchvision", "timm", "numpy", "pillow")  # they make the pixels and the sums
OF_A_MACHINE = {"data.num_workers"}  # flags that follow from its cores, as paths follow from its disks


@dataclass(frozen=True)
class Peer:
    """What one process is, as the others see it."""

    machine: str
    cores: frozenset[int]  # that it may use
    device: str  # "cpu", "cuda", ...
    precision: str
    packages: tuple[str, ...]  # "torch 2.15.0", ...
    gpu: str = ""  # the model's name
    gpu_id: str = ""  # of this one piece, or this part of one (MIG)
    has_kernels: bool = True  # torch was built for it


def this_peer(device: str, precision: str, local_rank: int) -> Peer:
    """This process, which trains on a device of this type."""
    packages = tuple(f"{name} {_version(name)}" for name in PACKAGES)
    peer = Peer(machine_id(), allowed_cores(), device, precision, packages)
    if device != "cuda":
        return peer
    gpu = torch.cuda.get_device_properties(gpu_index(local_rank))
    built = has_kernels((gpu.major, gpu.minor), torch.cuda.get_arch_list())
    # Some GPUs of AMD have no number of their own, and all say "XX". Not every torch knows the slot.
    slot = [getattr(gpu, f"pci_{part}_id", 0) for part in ("domain", "bus", "device")]
    return replace(peer, gpu=gpu.name, gpu_id=f"{gpu.uuid} {slot}", has_kernels=built)


def gpu_index(local_rank: int) -> int:
    """The number of a process's GPU on its machine, as Accelerate chooses it."""
    return local_rank % torch.cuda.device_count()


def has_kernels(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether torch can start anything on a GPU.

    Args:
        capability: of the GPU, (8, 6) for sm_86.
        built_for: what torch was built for. Code of "sm_80" runs on 8.0 and newer, but not on 9.0; of "compute_90", on
            all from 9.0 on. AMD's names are others, and nothing is said of them.
    """
    versions = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name) for name in built_for]
    found = [(code[1], (int(code[2]), int(code[3]))) for code in versions if code]
    return not found or any(
        since <= capability and (kind == "compute" or since[0] == capability[0]) for kind, since in found
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a stand-in of another name
        return "unknown"


def check_peers(peers: Sequence[Peer]) -> list[str]:
    """Refuse processes that could not train one model exactly; return what else is worth a warning.

    Args:
        peers: all processes, in rank order.

    Raises:
        UserError: the message names the ranks that differ from the others, or that share a GPU.
    """
    if odd := odd_ones([peer.device.upper() for peer in peers]):
        raise UserError(f"device: {odd}. See which machine hides its GPUs (driver, CUDA_VISIBLE_DEVICES), or hide all")
    for rank, peer in enumerate(peers):
        if not peer.has_kernels:
            raise UserError(
                f"rank {rank}: this build of torch {torch.__version__} cannot use its {peer.gpu}: install one that "
                "can (https://pytorch.org/get-started/previous-versions), or hide that GPU (CUDA_VISIBLE_DEVICES), or "
                "all of them to train on the CPU"
            )
    for packages in zip(*(peer.packages for peer in peers), strict=True):
        if odd := odd_ones(packages):
            raise UserError(f"versions: {odd}. Install the same version on every machine")
    if odd := odd_ones([peer.precision for peer in peers]):
        raise UserError(f"precision: {odd}. Give --mixed_precision no, bf16 or fp16 to the launcher on every machine")
    pieces = [(peer.machine, peer.gpu_id) for peer in peers]
    for piece, count in Counter(pieces).items():
        if piece[1] and count > 1:
            sharing = [rank for rank, other in enumerate(pieces) if other == piece]
            raise UserError(
                f"{these_ranks(sharing)} would share one {peers[sharing[0]].gpu}: start at most as many processes on "
                "a machine as it has GPUs (--num_processes), and let each see all of them or one of its own"
            )
    odd = odd_ones([peer.gpu for peer in peers])
    return [f"unlike GPUs: {odd}: sums may round differently, and the slowest sets the pace"] if odd else []


def check_flags(configs: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    """Refuse processes that were started with other flags than the others, which nobody would heed.

    Args:
        configs: of all processes, in rank order, by section and without their paths.
    """
    names = [(section, key) for section, values in configs[0].items() for key in values]
    odd = {f"{section}.{key}": odd_ones([repr(config[section][key]) for config in configs]) for section, key in names}
    if said := [f"--{name}: {who}" for name, who in odd.items() if who and name not in OF_A_MACHINE]:
        raise UserError(f"{'; '.join(said)}. Give the same flags on every machine")


def sharing_cores(me: Peer, peers: Sequence[Peer]) -> int:
    """How many processes may use the cores of this one: all of a machine, or it alone where each has cores of its own
    (`srun --cpus-per-task`)."""
    return max(sum(core in peer.cores and peer.machine == me.machine for peer in peers) for core in me.cores)


def odd_ones(values: Sequence[str]) -> str:
    """Who has another value than most, "rank 3 has torch 2.9.0, the others torch 2.8.0"; "" if all have the same."""
    ((usual, _), *others) = Counter(values).most_common()
    parts = [
        f"{these_ranks(ranks)} {'has' if len(ranks) == 1 else 'have'} {value}"
        for value, _ in others
        for ranks in [[rank for rank, its in enumerate(values) if its == value]]
    ]
    return ", ".join([*parts, f"the others {usual}"]) if parts else ""


def these_ranks(ranks: Sequence[int]) -> str:
    """ "rank 3", "ranks 0 and 2", "ranks 8 to 15"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and ranks[-1] - ranks[0] == len(ranks) - 1:
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
