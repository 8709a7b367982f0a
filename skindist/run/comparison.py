"""Two checkpoints, of a run that was whole and of one that was cut: what is not bitwise the same in them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

TENSORS = ("model.safetensors", "optimizer.safetensors", "buffers.safetensors")
UNLIKE = {"train.train_seconds", "train.timed_seconds", "train.timed_images"}  # measured: of no two runs the same


def differences(whole: Path, cut: Path) -> dict[str, str]:
    """What is not bitwise the same: name ("model.safetensors, conv1.weight") and how it differs."""
    digests = [json.loads((folder / "manifest.json").read_text()) for folder in (whole, cut)]
    found: dict[str, str] = {}
    for file in TENSORS:
        if digests[0][file] != digests[1][file]:
            found |= compare(file, load_file(whole / file), load_file(cut / file))
    states = [flatten(json.loads((folder / "state.json").read_text())) for folder in (whole, cut)]
    return found | compare("state.json", *states)


def compare(file: str, whole: Mapping[str, Any], cut: Mapping[str, Any]) -> dict[str, str]:
    """The differing entries of one file, in its order; those of one side only at the end."""
    found = {}
    for name in dict.fromkeys([*whole, *cut]):
        if name not in whole or name not in cut:
            found[f"{file}, {name}"] = f"only in the {'whole' if name in whole else 'cut'} run"
        elif what := difference(whole[name], cut[name]):
            found[f"{file}, {name}"] = what
    return found


def difference(one: Any, other: Any) -> str | None:
    """How two tensors or JSON values differ, None if they are bitwise the same."""
    if not isinstance(one, Tensor):
        return None if one == other else f"{one} and {other}"
    if one.shape != other.shape:
        return f"shapes {tuple(one.shape)} and {tuple(other.shape)}"
    if one.dtype != other.dtype:
        return f"{one.dtype} and {other.dtype}"
    if torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8)):
        return None
    return f"largest difference {(one.double() - other.double()).abs().max().item():.2g}"


def flatten(values: Any, name: str = "") -> dict[str, Any]:
    """Nested JSON as one level: {"train": {"window": [[0.5]]}} as {"train.window.0.0": 0.5}, without `UNLIKE`."""
    if not isinstance(values, dict | list) or not values:
        return {} if name in UNLIKE else {name: values}
    flat: dict[str, Any] = {}
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        flat |= flatten(value, f"{name}.{key}" if name else str(key))
    return flat
