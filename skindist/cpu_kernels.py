"""bfloat16 on a CPU: where it is fast; and what a CPU learns slowly as torch computes it, computed in another way."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

WITHOUT = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")  # as oneDNN says it


def has_fast_bf16(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the CPU multiplies bfloat16 itself, and oneDNN may use that; other CPUs imitate it slowly."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than torch 2.8
    allowed = environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper() not in WITHOUT
    return allowed and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class FasterOnCPU(TorchFunctionMode):
    """Inside it, some parts of a network that learns on a CPU are computed in another way, with the same result.

    In bfloat16, depthwise convolutions are computed in float32: oneDNN has no fast way back through them. With a stride
    of 2 it takes 50 times as long as float32, with 5 x 5 weights three times (oneDNN 3.12, AVX-512). That is most of a
    step of an EfficientNet.

    The mean over an image's pixels, as in squeeze-and-excitation, gives one gradient for all of them.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        bf16 = torch.is_autocast_enabled("cpu")
        if bf16 and function is torch.conv2d and len(args) == 7 and args[6] > 1 and not kwargs:
            with torch.autocast("cpu", enabled=False):
                return function(args[0].float(), *args[1:]).bfloat16()
        if function is Tensor.mean and args[1:] == ((2, 3),) and kwargs == {"keepdim": True}:
            return _MeanOverPixels.apply(args[0])
        return function(*args, **(kwargs or {}))


class _MeanOverPixels(torch.autograd.Function):
    """Of images (B, C, H, W), as (B, C, 1, 1). torch's own gradient is written out for each pixel, and not in the order
    of a channels-last tensor, to which it is then added."""

    @staticmethod
    def forward(ctx: Any, images_BCHW: Tensor) -> Tensor:
        ctx.shape = images_BCHW.shape
        return functional.avg_pool2d(images_BCHW, images_BCHW.shape[2:])

    @staticmethod
    def backward(ctx: Any, gradient_BC11: Tensor) -> Tensor:
        shape: torch.Size = ctx.shape
        return (gradient_BC11 / shape[2:].numel()).expand(shape)
