"""What processes say to each other over the CPU. Nothing here travels through a GPU, nor waits for one unseen.

Beside torch's default group, whose device part is for weights and gradients, there are two groups of the CPU for the
run's life: a prompt one, in which a process gives up after `--run.timeout_minutes`, and a patient one.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed
from torch import Tensor

from skindist.distributed.rendezvous import ATTEMPT

T = TypeVar("T")
HOURS = timedelta(days=1)  # for work that one process does for all
LATER = timedelta(minutes=2)  # NCCL ends a process without a word: its limit lies above ours


class Groups(NamedTuple):
    """The CPU's groups; None with one process."""

    prompt: Any = None
    patient: Any = None


_groups = Groups()


def join(device: str, timeout: timedelta) -> None:
    """Make the groups of all processes that were started together. Accelerate then takes the default group as it is:
    it would drop a timeout of 10 minutes, and let CPU tensors travel through the GPU.

    Args:
        device: type of the devices that train, such as "cuda".
    """
    global _groups
    ours = torch.distributed.get_default_backend_for_device(device)
    backend, limit = ("gloo", timeout) if device == "cpu" else (f"cpu:gloo,{device}:{ours}", timeout + LATER)
    if not torch.distributed.is_initialized():  # as after a run that failed, in a notebook
        torch.distributed.init_process_group(backend, init_method=ATTEMPT, timeout=limit)
    if not _groups.prompt:
        _groups = Groups(*(torch.distributed.new_group(backend="gloo", timeout=limit) for limit in (timeout, HOURS)))


def leave() -> None:
    """Leave all groups, together."""
    global _groups
    meet()
    _groups = Groups()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _several() -> bool:
    """Whether there are other processes; torchrun gives a group to a single one, too."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def meet() -> None:
    """Wait for all processes.

    Raises:
        RuntimeError: one is gone, or does not come in time.
    """
    if _several():
        torch.distributed.all_reduce(torch.zeros(1), group=_groups.prompt)


def share(value: T, may_take_hours: bool = False) -> T:
    """The main process's value; what the others pass counts for nothing."""
    if not _several():
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, group=_groups.patient if may_take_hours else _groups.prompt)
    return box[0]


def gather(value: T, may_take_hours: bool = False) -> list[T]:
    """The values of all processes, in rank order."""
    if not _several():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value, group=_groups.patient if may_take_hours else _groups.prompt)
    return values


def to_host(tensor: Tensor) -> Tensor:
    """A tensor on the CPU; call it on every process.

    A device that waits for a process that is gone or hangs waits for ever, and Python with it. So all meet before any
    of them waits for its device.
    """
    if tensor.device.type != "cpu":
        meet()
    return tensor.cpu()


def sum_ranks(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors of one shape, on the CPU."""
    total = to_host(tensor).clone()
    if _several():
        torch.distributed.all_reduce(total, group=_groups.prompt)
    return total


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows (N_rank, K) of all processes in rank order, on the CPU; every process gets the whole."""
    mine = to_host(rows)
    if not _several():
        return mine
    counts = gather(len(mine))
    padded = mine.new_zeros(max(counts), *mine.shape[1:])  # gloo takes one shape from all
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in counts]
    torch.distributed.all_gather(parts, padded, group=_groups.prompt)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def share_tensor(tensor: Tensor) -> Tensor:
    """The main process's CPU tensor; the others pass one of its shape and type, which is overwritten."""
    if _several():
        torch.distributed.broadcast(tensor, 0, group=_groups.prompt)
    return tensor


def new_group(seconds: float) -> Any:
    """One more group of the CPU, for a thread of its own; made by all processes together. None with one process."""
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=seconds)) if _several() else None


def gather_numbers(number: int, group: Any) -> list[int]:
    """The numbers of all processes of a group, in rank order."""
    numbers = [torch.empty(1, dtype=torch.int64) for _ in range(group.size())]
    torch.distributed.all_gather(numbers, torch.tensor([number]), group=group)
    return torch.cat(numbers).tolist()


def ask_largest(values: Tensor) -> Callable[[], Tensor]:
    """Send off this process's values, and wait for nothing. The function that is returned gives the largest of each
    over all processes, as soon as all have sent theirs."""
    if not _several():
        return lambda: values
    largest = torch.distributed.ReduceOp.MAX
    work = torch.distributed.all_reduce(values, largest, group=_groups.prompt, async_op=True)

    def answer() -> Tensor:
        work.wait()
        return values

    return answer
