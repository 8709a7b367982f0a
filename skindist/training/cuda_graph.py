"""The forward and backward pass of a step on a GPU, captured once and launched as one: the same kernels, the same bits.

A step of a small model is some 1,300 short kernels. A fast GPU has finished each of them before the CPU can launch the
next, and waits most of the time. What was captured as a CUDA graph costs the CPU one launch
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from skindist.config import Config
from skindist.folding import Pairs, folded

Graphs = Mapping[torch.Size, Callable[[Tensor], Tensor]]
"""A module's captured forward pass over images of each shape: what it gives leads to its captured backward pass."""

T = TypeVar("T")
log = logging.getLogger("skindist")


def hindrance(config: Config, images: int, world_size: int) -> str | None:
    """Why a step over so many images cannot be captured, if so: gradients of several passes would add up in memory that
    each pass writes anew, and no pass may wait for another process."""
    if config.train.passes(images, world_size) > 1:
        return "a batch is accumulated from several passes"
    waits = config.train.sync_batchnorm and world_size > 1 and not config.keeps_statistics
    return "BatchNorm is synchronised" if waits else None


@dataclass(frozen=True, eq=False)
class Passes:
    """Captured passes over images of one shape: what launches each of them, and the memory that they read and write."""

    forward: Callable[[], None]
    backward: Callable[[], None]
    images_BCHW: Tensor
    logits_BK: Tensor
    logits_gradient_BK: Tensor
    gradients: Sequence[Tensor | None]


class Replay(torch.autograd.Function):
    """Captured passes as a function of images and weights that autograd knows."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, images_BCHW: Tensor, *weights: Tensor) -> Tensor:
        """The logits, (B, K), of the weights in the memory that the passes were captured over."""
        ctx.passes = passes
        passes.images_BCHW.copy_(images_BCHW)
        passes.forward()
        return passes.logits_BK.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, logits_gradient_BK: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the weights, which stay until the next pass."""
        passes: Passes = ctx.passes
        passes.logits_gradient_BK.copy_(logits_gradient_BK)
        passes.backward()
        return None, None, *(None if gradient is None else gradient.detach() for gradient in passes.gradients)


def capture(module: nn.Module, batches: Sequence[Tensor], pairs: Pairs = ()) -> Graphs:
    """Capture the passes of a module in training mode, as Accelerate has prepared it, over images of the shape of each
    of the batches, (B, C, H, W). It changes no weight and no statistic.

    Args:
        pairs: convolutions, each with the BatchNorm whose work it does in these passes.

    Returns:
        None of them, with a warning, where the model cannot be captured, or where its graphs would take more memory
        than they leave.
    """
    names, weights = zip(*module.named_parameters(), strict=True)
    # The nodes that take the gradients of the weights belong to another stream, and DDP waits at them: the captured
    # passes have leaves of their own, in the same memory.
    leaves = [weight.detach().requires_grad_(weight.requires_grad) for weight in weights]
    own = module.forward

    def fold(images_BCHW: Tensor) -> Tensor:
        with folded(pairs):
            logits_BK: Tensor = own(images_BCHW)
        return logits_BK

    def forward(images_BCHW: Tensor) -> Tensor:
        with forward_through(module, fold):
            logits_BK: Tensor = functional_call(module, dict(zip(names, leaves, strict=True)), images_BCHW)
        return logits_BK

    def replay(passes: Passes) -> Callable[[Tensor], Tensor]:
        return lambda images_BCHW: Replay.apply(passes, images_BCHW, *weights)

    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    held, _ = memory()
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    refusal = None
    try:  # graphs never run at the same time, and share their memory, as those of one stream can
        graphs = {
            images_BCHW.shape: replay(record(forward, images_BCHW, leaves, pool, stream)) for images_BCHW in batches
        }
    except RuntimeError as error:
        graphs, refusal = {}, str(error).splitlines()[0]
    finally:
        for name, buffer in module.named_buffers():
            buffer.copy_(before[name])
    if refusal:  # the error is gone by now, and with it what its traceback held
        clean_up(weights[0].device, pool)
    else:
        holds, left = memory()
        refusal = f"it leaves {left / 2**30:.1f} GiB of the GPU's memory" if left < holds - held else None
    if refusal:
        log.warning(f"--train.cuda_graph is not used: {refusal}")
        graphs.clear()
        gc.collect()
        torch.cuda.empty_cache()
    return graphs


def record(
    forward: Callable[[Tensor], Tensor],
    images_BCHW: Tensor,
    leaves: Sequence[Tensor],
    pool: Any,
    stream: torch.cuda.Stream,
) -> Passes:
    """Capture a forward pass over these images and the backward pass to the leaves, in the memory of a pool.

    Raises:
        RuntimeError: they do what no capture allows.
    """
    trained = [leaf for leaf in leaves if leaf.requires_grad]

    def backward(logits_BK: Tensor, logits_gradient_BK: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(logits_BK, trained, logits_gradient_BK)

    torch.cuda.synchronize()
    with torch.cuda.stream(stream):  # which also ends a capture that fails within it
        for _ in range(3):  # what a library does at its first calls must not be captured
            logits_BK = forward(images_BCHW)
            backward(logits_BK, torch.ones_like(logits_BK))
        del logits_BK
        replay_forward, logits_BK = captured(pool, stream, forward, images_BCHW)
        logits_gradient_BK = torch.empty_like(logits_BK)
        replay_backward, found = captured(pool, stream, backward, logits_BK, logits_gradient_BK)
    torch.cuda.synchronize()
    gradients = iter(found)
    return Passes(
        replay_forward,
        replay_backward,
        images_BCHW,
        logits_BK.detach(),
        logits_gradient_BK,
        [next(gradients) if leaf.requires_grad else None for leaf in leaves],
    )


def captured(
    pool: Any, stream: torch.cuda.Stream, function: Callable[..., T], *args: Tensor
) -> tuple[Callable[[], None], T]:
    """Capture what a function launches; what launches it again, and its result, which is written anew each time."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        result = function(*args)
    return graph.replay, result


@contextmanager
def forward_through(module: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside it, the module calls this function in place of its own forward pass. DDP, which calls the module, takes
    part as usual."""
    own, module.forward = module.forward, function
    try:
        yield
    finally:
        module.forward = own


def memory() -> tuple[int, int]:
    """Bytes of the GPU that this process holds for tensors and graphs, and that nobody holds."""
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[0]


def clean_up(device: torch.device, pool: Any) -> None:
    """Undo what a failed capture leaves: a generator of random numbers that refuses all further work, and a pool that
    all further memory would count to."""
    index = device.index or 0
    torch.cuda.default_generators[index].graphsafe_set_state(torch.Generator(device).graphsafe_get_state())
    with suppress(RuntimeError):  # newer versions of torch have done it
        torch._C._cuda_endAllocateToPool(index, pool)
