"""Weights and BatchNorm statistics of all processes: handed out, averaged, gathered, restored."""

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor, nn

from skindist.distributed import host


def broadcast_weights(accelerator: Accelerator, module: nn.Module) -> None:
    """Give every rank the main process's weights and buffers (DDP hands out buffers only in some versions)."""
    if accelerator.num_processes > 1:
        for tensor in module.state_dict().values():
            torch.distributed.broadcast(tensor, 0)


def broadcast_tensors(accelerator: Accelerator, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The main process's tensors by name, on the CPU of every rank; what the others pass counts for nothing."""
    looks = host.share([(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()])
    if not accelerator.is_main_process:
        tensors = {name: torch.empty(shape, dtype=dtype) for name, shape, dtype in looks}
    return {name: host.share_tensor(tensor.cpu()) for name, tensor in tensors.items()}


def average_buffers(accelerator: Accelerator, module: nn.Module) -> Tensor:
    """Give every rank the mean of all ranks' BatchNorm statistics; return what each had, (ranks, values), on the CPU.

    DDP leaves each rank with those of its own images. The mean over ranks is the running mean of the whole batch, and
    closer to its running variance than any one rank's.
    """
    before = gather_buffers(module)
    if accelerator.num_processes > 1:
        write_buffers(module, mean_row(before).to(accelerator.device))
    return before


def mean_row(ranks: Tensor) -> Tensor:
    """The mean of all rows. In float32, that of 3 equal ones may differ from them, and kept statistics would change."""
    return ranks.double().mean(dim=0).to(ranks.dtype)


def gather_buffers(module: nn.Module) -> Tensor:
    """Every rank's BatchNorm statistics, (ranks, values), on the CPU of every rank."""
    return host.gather_rows(read_buffers(module)[None])


def restore_buffers(accelerator: Accelerator, module: nn.Module, ranks: Tensor) -> None:
    """Set this rank's BatchNorm statistics from those of all ranks; another number of ranks gets their mean."""
    same = len(ranks) == accelerator.num_processes
    write_buffers(module, (ranks[accelerator.process_index] if same else mean_row(ranks)).to(accelerator.device))


def read_buffers(module: nn.Module) -> Tensor:
    """All floating-point buffers (BatchNorm's statistics) as one row."""
    found = float_buffers(module)
    return torch.cat([buffer.flatten() for buffer in found]) if found else torch.empty(0)


def write_buffers(module: nn.Module, row: Tensor) -> None:
    """Set what `read_buffers` reads."""
    found = float_buffers(module)
    start = 0
    for buffer in found:
        buffer.copy_(row[start : start + buffer.numel()].view_as(buffer))
        start += buffer.numel()


def float_buffers(module: nn.Module) -> list[Tensor]:
    """The module's floating-point buffers, in order."""
    return [buffer for buffer in module.buffers() if buffer.is_floating_point()]
