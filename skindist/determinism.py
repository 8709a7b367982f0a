"""The same bits again on a GPU: what cuBLAS, cuDNN, NCCL and torch must be told before CUDA starts.

https://docs.pytorch.org/docs/stable/notes/randomness.html says why. A CPU needs nothing of it.
"""

import os
from typing import Any

import torch

from skindist.errors import UserError

REPEATABLE = {"CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"), "NCCL_NVLS_ENABLE": ("0",)}
"""Variables and the values with which sums are added up in the same order each time, best first."""


def choose_kernels(deterministic: bool, device: str) -> None:
    """Let CUDA add up in the same order each time, or leave it to torch's defaults. Call it before CUDA starts.

    Args:
        device: "cpu", "cuda", ...: nothing is changed but for "cuda".

    Raises:
        UserError: the environment asks for the contrary.
    """
    if device != "cuda":
        return
    torch.use_deterministic_algorithms(deterministic)
    if not deterministic:
        return
    for variable, values in REPEATABLE.items():
        if (value := os.environ.setdefault(variable, values[0])) not in values:
            raise UserError(
                f"{variable}={value}: with it, a GPU does not repeat its sums; set {' or '.join(values)}, unset it, "
                "or, in training, choose --train.deterministic false"
            )
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (a slow aid to find faults)
    torch.backends.cudnn.benchmark = False


def repeats(device: torch.device) -> bool:
    """Whether the same steps give the same bits again: on a CPU always, on a GPU where `choose_kernels` was told so."""
    return device.type == "cpu" or (device.type == "cuda" and torch.are_deterministic_algorithms_enabled())


def tf32(device: torch.device) -> list[str]:
    """What a GPU computes in TF32 where the precision says float32."""
    override = os.environ.get("NVIDIA_TF32_OVERRIDE")
    if device.type != "cuda" or override == "0" or torch.cuda.get_device_properties(device).major < 8:
        return []
    cudnn: Any = torch.backends.cudnn
    used = {
        "matmul": _allows_tf32(torch.backends.cuda.matmul),
        "convolution": torch.version.hip is None and _allows_tf32(getattr(cudnn, "conv", cudnn)),  # MIOpen has no TF32
        f"NVIDIA_TF32_OVERRIDE={override}": override is not None,
    }
    return [name for name, on in used.items() if on]


def _allows_tf32(backend: Any) -> bool:
    """Asked in the way of torch 2.9, if torch has it: once it was used, the older question is an error."""
    precision = getattr(backend, "fp32_precision", None)
    return bool(backend.allow_tf32) if precision is None else precision == "tf32"


def float32_of(device: torch.device) -> str:
    """What a device computes float32 in, in words."""
    names = tf32(device)
    return f"float32 (TF32 for {' and '.join(names)})" if names else "float32"
