"""Checkpoints that are whole or absent: a hidden folder, flushed to disk, manifest last, renamed, then old ones pruned.

checkpoints/step-00000000/   model, optimizer and buffers (.safetensors), state.json, manifest.json (SHA-256 of each)
checkpoints/last, best       links to the newest one and to the best epoch's

Only tensors and JSON are written and read: nothing in a checkpoint can run code.
"""

import hashlib
import json
import logging
import shutil
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from skindist.errors import TrainingError
from skindist.files import sync_folder, write_atomic, write_json

log = logging.getLogger("skindist")


@dataclass(frozen=True)
class Checkpoint:
    """Weights by name (bare model, no DDP or compile prefix), the optimizer's state dict, JSON values, and each rank's
    BatchNorm statistics (ranks, values), which differ in the middle of an epoch."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    rank_buffers: Tensor


def copied(checkpoint: Checkpoint) -> Checkpoint:
    """The same on the CPU, of its own: training may go on while it is written."""

    def copy(value: Any) -> Any:
        return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value

    weights = {name: copy(tensor) for name, tensor in checkpoint.weights.items()}
    moments = checkpoint.optimizer["state"].items()
    state = {key: {name: copy(value) for name, value in values.items()} for key, values in moments}
    groups = deepcopy(checkpoint.optimizer["param_groups"])
    return Checkpoint(weights, {"state": state, "param_groups": groups}, checkpoint.state, checkpoint.rank_buffers)


def step_folder(checkpoints: Path, global_step: int) -> Path:
    """The folder of the checkpoint taken after `global_step` optimizer steps."""
    return checkpoints / f"step-{global_step:08d}"


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder` atomically, from tensors on the CPU; call it on the main process only.

    Raises:
        TrainingError: the disk is full or refuses.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        tensors = {name: tensor.contiguous() for name, tensor in checkpoint.weights.items()}
        moments, values = split_optimizer(checkpoint.optimizer)
        write_atomic(temporary / "model.safetensors", save(tensors))
        write_atomic(temporary / "optimizer.safetensors", save(moments))
        write_atomic(temporary / "buffers.safetensors", save({"ranks": checkpoint.rank_buffers}))
        write_json(temporary / "state.json", checkpoint.state | {"optimizer": values})
        write_json(temporary / "manifest.json", {path.name: _sha256(path) for path in sorted(temporary.iterdir())})
        sync_folder(temporary)
        if folder.exists():  # a damaged one, or that of a signal during the epoch's evaluation, which is over now
            folder.rename(_aside(folder))
        temporary.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(_aside(folder), ignore_errors=True)
    except OSError as error:
        raise TrainingError(f"cannot write the checkpoint {folder}: {error.strerror or error}") from error


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def prune(last: Path, best: Path | None, keep: int) -> None:
    """Point the links `last` and `best` at two checkpoints; delete all but the best and the newest `keep` until `last`.
    What lies after `last` is damaged: the run would have gone on from there."""
    folder = last.parent
    for name, target in (("last", last), ("best", best)):
        with suppress(OSError):  # exFAT and some network disks have no links, and nothing here needs them
            if target:
                link = folder / f".{name}.tmp"
                link.unlink(missing_ok=True)
                link.symlink_to(target.name)
                link.replace(folder / name)
    steps = sorted(folder.glob("step-*"))
    kept = [step for step in steps if step <= last][-keep:]
    rest = folder.glob(".step-*")  # of a process that was killed
    for old in [*rest, *(step for step in steps if step not in kept and step != best)]:
        shutil.rmtree(old, ignore_errors=True)  # on a network disk, a file that is open somewhere cannot go yet


def newest_intact(checkpoints: Path) -> Path | None:
    """The newest checkpoint whose files are all there and unchanged; damaged ones are passed over with a warning."""
    for aside in checkpoints.glob(".step-*.old"):
        if not (folder := checkpoints / aside.name[1:].removesuffix(".old")).exists():
            aside.rename(folder)  # killed just before the new one came into its place
    for folder in sorted(checkpoints.glob("step-*"), reverse=True):
        if is_intact(folder):
            return folder
        log.warning(f"checkpoint {folder} is damaged: trying the one before it")
    return None


def is_intact(folder: Path) -> bool:
    """Whether the manifest is there and every file it lists has the SHA-256 it gives."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return bool(manifest) and all(_sha256(folder / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint to the CPU; nothing that is read can run code.

    Raises:
        TrainingError: a file is missing or has changed since it was written.
    """
    if not is_intact(folder):
        raise TrainingError(f"the checkpoint {folder} is damaged: start a new run with another --run.dir")
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    optimizer = join_optimizer(load_file(folder / "optimizer.safetensors"), state.pop("optimizer"))
    buffers = load_file(folder / "buffers.safetensors")["ranks"]
    return Checkpoint(load_file(folder / "model.safetensors"), optimizer, state, buffers)


def split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state dict as tensors, named "parameter.moment", and JSON values."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for parameter, moments in state["state"].items():
        for name, value in moments.items():
            target: dict[str, Any] = tensors if isinstance(value, Tensor) else scalars
            target[f"{parameter}.{name}"] = value.contiguous() if isinstance(value, Tensor) else value
    return tensors, {"scalars": scalars, "param_groups": state["param_groups"]}


def join_optimizer(tensors: dict[str, Tensor], values: dict[str, Any]) -> dict[str, Any]:
    """What `split_optimizer` took apart."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in (tensors | values["scalars"]).items():
        parameter, name = key.split(".", maxsplit=1)
        state.setdefault(int(parameter), {})[name] = value
    return {"state": state, "param_groups": values["param_groups"]}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
