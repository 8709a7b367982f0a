"""The forward and backward pass of a step on a GPU, captured once and launched as one: the same kernels, the same bits.

A step of a small model is some 1,300 short kernels. A fast GPU has finished each of them before the CPU can launch the
next, and waits most of the time. What was captured as a CUDA graph costs the CPU one launch
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from skindist.recipe import TrainConfig

Graphs = Mapping[torch.Size, Callable[[Tensor], Tensor]]
"""A module's captured forward pass over images of each shape: what it gives leads to its captured backward pass."""

log = logging.getLogger("skindist")


def hindrance(train: TrainConfig, images: int, world_size: int) -> str | None:
    """Why a step over so many images cannot be captured, if so: gradients of several passes would add up in memory that
    each pass writes anew, and no pass may wait for another process."""
    if train.passes(images, world_size) > 1:
        return "a batch is accumulated from several passes"
    return "BatchNorm is synchronised" if train.sync_batchnorm and world_size > 1 else None


def capture(module: nn.Module, batches: Sequence[Tensor]) -> Graphs:
    """Capture the passes of a module in training mode, as Accelerate has prepared it, over images of the shape of each
    of the batches, (B, C, H, W). It changes no weight and no statistic.

    Returns:
        None of them, with a warning, where the model cannot be captured, or where its graphs would take more memory
        than they leave.
    """
    names, weights = zip(*module.named_parameters(), strict=True)
    # The nodes that take the gradients of the weights belong to another stream, and DDP waits at them: the captured
    # passes have leaves of their own, in the same memory.
    leaves = [weight.detach().requires_grad_(weight.requires_grad) for weight in weights]

    def passes(images_BCHW: Tensor, *leaves: Tensor) -> Tensor:
        logits_BK: Tensor = functional_call(module, dict(zip(names, leaves, strict=True)), images_BCHW)
        return logits_BK

    def replay(graph: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda images_BCHW: graph(images_BCHW, *weights)

    # torch warms up on one stream and captures on another, and may warn of it at the leaves, where nothing is added up.
    warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    room, pool, graphs = free_memory(), torch.cuda.graph_pool_handle(), {}
    try:
        for images_BCHW in batches:  # they never run at the same time, and share their memory
            graph: Any = torch.cuda.make_graphed_callables(passes, (images_BCHW, *leaves), pool=pool)
            graphs[images_BCHW.shape] = replay(graph)
    except RuntimeError as error:
        renew_generator(weights[0].device)
        log.warning(f"--train.cuda_graph is not used: {str(error).splitlines()[0]}")
        return {}
    finally:
        for name, buffer in module.named_buffers():
            buffer.copy_(before[name])
    left = free_memory()
    if left < room - left:
        log.warning(f"--train.cuda_graph is not used: it leaves {left / 2**30:.1f} GiB of the GPU's memory")
        return {}
    return graphs


@contextmanager
def replayed(module: nn.Module, graphs: Graphs, shape: torch.Size) -> Iterator[None]:
    """Inside it, the module replays what was captured over images of that shape, if it was, in place of its own forward
    pass. DDP, which calls the module, takes part as usual."""
    if shape not in graphs:
        yield
        return
    own, module.forward = module.forward, graphs[shape]
    try:
        yield
    finally:
        module.forward = own


def free_memory() -> int:
    """Bytes of the GPU that nobody holds."""
    torch.cuda.empty_cache()
    free: int = torch.cuda.mem_get_info()[0]
    return free


def renew_generator(device: torch.device) -> None:
    """Give a GPU a new generator of random numbers: that of a capture that failed refuses all further work."""
    torch.cuda.default_generators[device.index or 0].graphsafe_set_state(torch.Generator(device).graphsafe_get_state())
