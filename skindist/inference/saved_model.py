"""A model on disk, written and read in one place: `config.json` and `model.safetensors`, as timm and transformers load
them too. What these do not know stands in config.json under "skindist": how a logit becomes a decision, and what is
known of the training images. Only tensors and JSON are read: nothing in a model's folder can run code.

An ensemble is such a folder, too: each member has one of its own in it, and the common threshold stands above them.
"""

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
from skindist.inference.ensemble import Ensemble
from skindist.model import Preprocessing, preprocessing
from skindist.weights import first_line

DESCRIPTION, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
OWN = "skindist"  # the key of config.json that is ours
VIEWS = 8  # positions of a square image, at most
FORMAT, FORMAT_OF_ENSEMBLES = 1, 2  # of what stands there: raise it when an older skindist would misread it


@dataclass(frozen=True)
class Description:
    """All that is known of a saved model beside its weights. `views`: the positions in which it sees each image.
    `members`: of an ensemble, its models by folder, which have its preprocessing and image size."""

    architecture: str
    image_size: int
    preprocessing: Preprocessing
    frozen: Frozen
    trained_on: TrainingSet
    version: str
    views: int = 1
    classes: tuple[str, ...] = CLASSES
    members: Mapping[str, "Description"] = field(default_factory=dict)

    def seen_in(self, views: int | None) -> "Description":
        """The same model, or each member of an ensemble, with so many views of each image; None: as many as it has.

        Raises:
            UserError: there are no so many views.
        """
        if views is None:
            return self
        if not 1 <= views <= VIEWS:
            raise UserError(f"--views {views}: must be from 1 to {VIEWS}")
        members = {name: member.seen_in(views) for name, member in self.members.items()}
        return replace(self, views=self.views if members else views, members=members)


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


def member_name(number: int) -> str:
    """The folder of an ensemble's member, counted from 0."""
    return f"member-{number}"


def read_description(folder: Path) -> Description:
    """Read what config.json says.

    Raises:
        UserError: there is none, it is damaged, another program or a newer skindist wrote it, or the members of an
            ensemble do not see images alike.
    """
    file = folder / DESCRIPTION
    try:
        values = json.loads(file.read_text())
        own = values.get(OWN)
        if own is None:
            raise UserError(f"{file}: not of a model that skindist saved (it has no key {OWN!r}); give another")
        if own["format"] > FORMAT_OF_ENSEMBLES:
            raise UserError(f"{file}: saved by skindist {own['version']}, newer than this one; update skindist")
        if own["format"] == FORMAT_OF_ENSEMBLES:
            return read_ensemble(folder, own)
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


def read_ensemble(folder: Path, own: Mapping[str, Any]) -> Description:
    """What config.json says of an ensemble, and what its members' say; raises as `read_description` and `check`."""
    names = [member_name(number) for number in range(len(own["members"]))]  # and no other path, whatever stands there
    members = {name: read_description(folder / name) for name in names}
    first, *others = members.values()
    if why := unlike(first, others):
        raise ValueError(why)
    description = Description(
        architecture=called(members.values()),
        image_size=first.image_size,
        preprocessing=first.preprocessing,
        frozen=Frozen.from_dict(own),
        trained_on=TrainingSet(**own["trained_on"]),
        version=str(own["version"]),
        members=members,
    )
    check(description)
    return description


def called(members: Iterable[Description]) -> str:
    """What an ensemble is called, such as "3 x efficientnet_b0 + 2 x resnet50"."""
    counts = Counter(member.architecture for member in members)
    return " + ".join(f"{count} x {name}" for name, count in counts.items())


def unlike(first: Description, others: Iterable[Description]) -> str:
    """Why models cannot be one ensemble; "" if they can."""
    for other in others:
        if other.members or first.members:
            return "an ensemble cannot be part of another one"
        if other.image_size != first.image_size:
            return f"members of {first.image_size} and of {other.image_size} pixels"
        if other.preprocessing != first.preprocessing:
            return f"{first.architecture} and {other.architecture} want their pixels normalised differently"
    return ""


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
    if not 1 <= description.views <= VIEWS:
        raise ValueError(f"views {description.views}")
    if missing := UNITS.keys() - description.trained_on.traits.keys():
        raise ValueError(f"nothing is said of {min(missing)}")


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
