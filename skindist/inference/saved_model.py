"""A model on disk: `config.json` (read by description.py) and `model.safetensors`, as timm and transformers load them
too. What these do not know stands in config.json under "skindist": how a logit becomes a decision, and what is known of
the training images. Only tensors and JSON are read: nothing in a model's folder can run code.

An ensemble is such a folder, too: each member has one of its own in it, and the common threshold stands above them.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import timm
import timm.models
import torch
from safetensors.torch import load_file
from torch import nn

from skindist.data.scan import CLASSES
from skindist.errors import UserError, first_line
from skindist.evaluation.differences import TrainingSet
from skindist.evaluation.frozen import Frozen
from skindist.files import write_atomic, write_json
from skindist.inference.description import DESCRIPTION, FORMAT, FORMAT_OF_ENSEMBLES, OWN, Description, member_name
from skindist.inference.ensemble import Ensemble
from skindist.model import preprocessing

WEIGHTS, CARD = "model.safetensors", "README.md"


@dataclass(frozen=True)
class SavedModel:
    """A timm model that gives logits (N, 2) of normalised images (N, 3, S, S), and what is known of it."""

    module: nn.Module
    description: Description


def save_model(
    folder: Path, module: nn.Module, image_size: int, frozen: Frozen, trained_on: TrainingSet, card: str, views: int = 1
) -> None:
    """Save weights, config and model card: `timm.create_model("local-dir:RUN/model", pretrained=True)` loads them, and
    so does `transformers.AutoModelForImageClassification.from_pretrained("RUN/model")`."""
    pixels, size = preprocessing(module), image_size
    data_config = {
        "input_size": (3, size, size), "interpolation": pixels.interpolation, "crop_pct": 1.0, "crop_mode": "center",
        "mean": pixels.mean, "std": pixels.std,
    }  # fmt: skip
    labels = {"label_names": list(CLASSES), "num_classes": len(CLASSES)}
    module.to(memory_format=torch.contiguous_format)  # safetensors knows no other
    timm.models.save_for_hf(module, str(folder), model_config=labels, safe_serialization=True, data_config=data_config)
    (folder / WEIGHTS).chmod(0o644)  # safetensors leaves its files unreadable to others
    description = json.loads((folder / DESCRIPTION).read_text())
    description.get("model_args", {}).pop("num_classes", None)  # transformers gives it too, and fails on two
    own = {
        "format": FORMAT,
        "version": version("skindist"),
        "views": views,
        **frozen.to_dict(),
        "trained_on": asdict(trained_on),
    }
    write_json(folder / DESCRIPTION, description | {OWN: own})
    write_atomic(folder / CARD, card)


def save_ensemble(folder: Path, members: Sequence[Path], frozen: Frozen, trained_on: TrainingSet, card: str) -> None:
    """Save copies of saved models as one, whose probability is the mean of their calibrated ones. `frozen` has the
    threshold; its calibration changes nothing."""
    for number, member in enumerate(members):
        (folder / member_name(number)).mkdir(parents=True)
        for name in (DESCRIPTION, WEIGHTS, CARD):
            shutil.copyfile(member / name, folder / member_name(number) / name)
    own = {
        "format": FORMAT_OF_ENSEMBLES,
        "version": version("skindist"),
        "members": [member_name(number) for number in range(len(members))],
        **frozen.to_dict(),
        "trained_on": asdict(trained_on),
    }
    write_json(folder / DESCRIPTION, {OWN: own})
    write_atomic(folder / CARD, card)


def build_module(description: Description) -> nn.Module:
    """The model with random weights; of an ensemble, all members as one module.

    Raises:
        UserError: the installed timm does not have it.
    """
    if members := description.members.values():
        calibrations = [member.frozen.calibration for member in members]
        return Ensemble([*map(build_module, members)], calibrations, [member.views for member in members])
    try:
        return timm.create_model(description.architecture, num_classes=len(description.classes))
    except Exception as error:  # no common base: unknown names, arguments that a version does not take
        name, said = description.architecture, first_line(error)
        raise UserError(f"{name}: timm {timm.__version__} cannot build this model ({said}); update timm") from None


def load_weights(folder: Path, module: nn.Module) -> None:
    """Read every weight into the module.

    Raises:
        UserError: the file is missing or damaged, does not fit, or holds NaN or infinity.
    """
    if isinstance(module, Ensemble):
        for number, member in enumerate(module.members):
            load_weights(folder / member_name(number), member)
        return
    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder}: has no {WEIGHTS}; other formats are not read, because they can run code")
    try:
        weights = load_file(file)
        module.load_state_dict(weights)
    except Exception as error:  # no common base: safetensors, missing and misshapen keys, permissions
        raise UserError(
            f"{file}: does not fit {folder / DESCRIPTION}, or is damaged ({first_line(error)}); copy the folder again"
        ) from None
    if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise UserError(f"{file}: {bad[0]} holds values that are not finite; give another model")
