"""bfloat16 on a CPU: where it is fast, and the convolutions for which it is not."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

WITHOUT = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")  # as oneDNN says it


def has_fast_bf16(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the CPU multiplies bfloat16 itself, and oneDNN may use that; other CPUs imitate it slowly."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than torch 2.8
    allowed = environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper() not in WITHOUT
    return allowed and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class DepthwiseInFloat32(TorchFunctionMode):
    """Inside it, depthwise convolutions are computed in float32, and give bfloat16.

    In bfloat16, oneDNN has no fast way back through them: with a stride of 2 it takes 50 times as long as float32, with
    5 x 5 weights three times (oneDNN 3.12, AVX-512). That is most of a step of an EfficientNet.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.conv2d and len(args) == 7 and args[6] > 1 and not kwargs:
            with torch.autocast("cpu", enabled=False):
                return function(args[0].float(), *args[1:]).bfloat16()
        return function(*args, **(kwargs or {}))
