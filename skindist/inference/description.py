"""What is known of a saved model beside its weights: read from its config.json, and refused where it means nothing."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skindist.config import VIEWS
from skindist.data.scan import CLASSES
from skindist.errors import UserError, first_line
from skindist.evaluation.differences import UNITS, TrainingSet
from skindist.evaluation.frozen import Frozen
from skindist.model import Preprocessing

DESCRIPTION = "config.json"
OWN = "skindist"  # the key of config.json that is ours
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

    @property
    def most_views(self) -> int:
        """Its views, or of an ensemble the most that a member has."""
        return max(each.views for each in [*self.members.values(), self])

    def seen_in(self, views: int | None) -> "Description":
        """The same model, or each member of an ensemble, with so many views of each image; None: as many as it has.

        Raises:
            UserError: there are no so many views.
        """
        if views is None:
            return self
        if type(views) is not int or not 1 <= views <= VIEWS:  # a script may give anything, and True is 1
            raise UserError(f"--views {views!r}: must be from 1 to {VIEWS}")
        members = {name: member.seen_in(views) for name, member in self.members.items()}
        return replace(self, views=self.views if members else views, members=members)


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
