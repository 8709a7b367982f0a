"""The forward and backward pass of a step on a GPU, captured once and launched as one: the same kernels, the same bits.

A step of a small model is some 1,300 short kernels. A fast GPU has finished each of them before the CPU can launch the
next, and waits most of the time. What was captured as a CUDA graph costs the CPU one launch
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skindist.recipe import TrainConfig

log = logging.getLogger("skindist")


@dataclass(frozen=True)
class CudaGraph:
    """A captured forward pass, with its backward pass, over images of one shape: others, as of batches that hold one
    image more or less, take the usual way."""

    forward: Callable[[Tensor], Tensor]
    shape: torch.Size


def hindrance(train: TrainConfig, images: int, world_size: int) -> str | None:
    """Why a step cannot be captured, if so: DDP's hooks would take part in the capture, and gradients of several passes
    would add up in memory that each pass writes anew."""
    if world_size > 1:
        return f"there are {world_size} processes"
    return "a batch is accumulated from several passes" if train.passes(images, world_size) > 1 else None


def capture(module: nn.Module, images_BCHW: Tensor) -> CudaGraph | None:
    """Capture the passes of a module in training mode, as Accelerate has prepared it. It changes no weight and no
    statistic.

    Returns:
        None, with a warning, where the model cannot be captured, or where its graph would leave too little memory to
        hold a batch outside of it.
    """
    bare = _Bare(module)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    room = free_memory()
    # The graph keeps the nodes that take gradients, and they keep the stream of the capture: steps wait for both.
    warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
    try:
        torch.cuda.make_graphed_callables(bare, (images_BCHW,))
    except RuntimeError as error:
        renew_generator(images_BCHW.device)
        log.warning(f"--train.cuda_graph is not used: {str(error).splitlines()[0]}")
        return None
    finally:
        for name, buffer in module.named_buffers():
            buffer.copy_(before[name])
    left = free_memory()
    if left < room - left:
        log.warning(f"--train.cuda_graph is not used: it leaves {left / 2**30:.1f} GiB of the GPU's memory")
        return None
    return CudaGraph(bare.forward, images_BCHW.shape)


class _Bare(nn.Module):
    """Calls a module; what is captured replaces its own forward, and not the module's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.module(images_BCHW)
        return logits_BK


def free_memory() -> int:
    """Bytes of the GPU that nobody holds."""
    torch.cuda.empty_cache()
    free: int = torch.cuda.mem_get_info()[0]
    return free


def renew_generator(device: torch.device) -> None:
    """Give a GPU a new generator of random numbers: that of a capture that failed refuses all further work."""
    torch.cuda.default_generators[device.index or 0].graphsafe_set_state(torch.Generator(device).graphsafe_get_state())
