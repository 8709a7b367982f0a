"""A model on disk, written and read in one place: `config.json` and `model.safetensors`, as timm and transformers load
them too. What these do not know stands in config.json under "skindist": how a logit becomes a decision, and what is
known of the training images. Only tensors and JSON are read: nothing in a model's folder can run code.
"""

import json
import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import timm
import timm.models
import torch
from safetensors.torch import load_file
from torch import nn

from skindist.data.scan import CLASSES
from skindist.errors import UserError
from skindist.evaluation.differences import UNITS, TrainingSet
from skindist.evaluation.judgement import Frozen
from skindist.files import write_atomic, write_json
from skindist.model import Preprocessing, preprocessing
from skindist.weights import first_line

DESCRIPTION, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
OWN = "skindist"  # the key of config.json that is ours
FORMAT = 1  # of what stands there: raise it when an older skindist would misread it


@dataclass(frozen=True)
class Description:
    """All that is known of a saved model beside its weights. `views`: the positions in which it sees each image."""

    architecture: str
    image_size: int
    preprocessing: Preprocessing
    frozen: Frozen
    trained_on: TrainingSet
    version: str
    views: int = 1
    classes: tuple[str, ...] = CLASSES


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


def read_description(folder: Path) -> Description:
    """Read what config.json says.

    Raises:
        UserError: there is none, it is damaged, or another program or a newer skindist wrote it.
    """
    file = folder / DESCRIPTION
    try:
        values = json.loads(file.read_text())
        own = values.get(OWN)
        if own is None:
            raise UserError(f"{file}: not of a model that skindist saved (it has no key {OWN!r}); give another")
        if own["format"] > FORMAT:
            raise UserError(f"{file}: saved by skindist {own['version']}, newer than this one; update skindist")
        pixels = values["pretrained_cfg"]
        description = Description(
            architecture=str(values["architecture"]),
            image_size=int(pixels["input_size"][-1]),
            preprocessing=Preprocessing(tuple(pixels["mean"]), tuple(pixels["std"]), str(pixels["interpolation"])),
            frozen=Frozen.from_dict(own),
            trained_on=TrainingSet(**own["trained_on"]),
            version=str(own["version"]),
            views=int(own.get("views", 1)),
            classes=tuple(own["class_names"]),
        )
        check(description)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{file}: is damaged ({first_line(error)}); copy the model's folder again") from None
    return description


def check(description: Description) -> None:
    """Raise ValueError unless each value means something, and UserError for a model of other classes."""
    if description.classes != CLASSES:
        told = ", ".join(description.classes)
        raise UserError(f"this model tells {told}, not {' and '.join(CLASSES)}; give another one")
    threshold, calibration = description.frozen.threshold.value, description.frozen.calibration
    pixels = description.preprocessing
    numbers = (threshold, calibration.temperature, calibration.bias, *pixels.mean, *pixels.std)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("a number is not finite")
    if not (0 <= threshold <= 1 and calibration.temperature > 0 and min(pixels.std) > 0):
        raise ValueError("a number is out of range")
    if not 32 <= description.image_size <= 4096:
        raise ValueError(f"input_size {description.image_size}")
    if not 1 <= description.views <= 8:
        raise ValueError(f"views {description.views}")
    if missing := UNITS.keys() - description.trained_on.traits.keys():
        raise ValueError(f"nothing is said of {min(missing)}")


def build_module(description: Description) -> nn.Module:
    """The model with random weights.

    Raises:
        UserError: the installed timm does not have it.
    """
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
