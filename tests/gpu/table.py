"""What the tests on GPUs have seen, as one Markdown table to paste into an issue or a page."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

import torch

HEADER = "| what | expected | observed | GPU | versions |\n| --- | --- | --- | --- | --- |"


class Row(NamedTuple):
    """One case on one kind of place ("2 GPUs"): what should be, and what was."""

    what: str
    place: str
    expected: str
    observed: str


def render(rows: Sequence[Row], gpu: str, versions: str) -> str:
    """The table, with the GPU and the versions that it holds for in every row."""
    lines = [f"| {what}, {place} | {expected} | {seen} | {gpu} | {versions} |" for what, place, expected, seen in rows]
    return "\n".join([HEADER, *lines])


def gpus() -> str:
    """The GPUs of this machine: "2 x NVIDIA H100"."""
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"


def versions() -> str:
    """What the figures depend on."""
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    cuda = f", CUDA {torch.version.cuda}, cuDNN {cudnn}" if torch.version.cuda else ""
    packages = ", ".join(f"{name} {version(name)}" for name in ("skindist", "torch", "accelerate", "timm"))
    return f"Python {platform.python_version()}, {packages}{cuda}"
