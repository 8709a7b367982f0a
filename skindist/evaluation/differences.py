"""How other images differ from those that a model was trained on: their sizes, colours, and share of malignant ones.

Of the training images only a summary is kept, with the model: quantiles of each trait. No name and no picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skindist.data.inspection import Facts
from skindist.evaluation.intervals import estimates
from skindist.evaluation.known import Known

QUANTILES = (0.05, 0.5, 0.95)
UNITS = {"width": "pixels", "height": "pixels", "red": "grey levels", "green": "grey levels", "blue": "grey levels"}
OUTSIDE = 0.3  # share of images outside the range of nine in ten training images, of which one in ten is if alike
ODDS_APART = 1.5  # factor between the odds of malignant, from which on PPV and NPV no longer carry over


@dataclass(frozen=True)
class TrainingSet:
    """How many images of each class a model was trained on, and by trait their 5 %, 50 % and 95 % quantiles."""

    benign: int
    malignant: int
    traits: Mapping[str, Sequence[float]]


def traits(facts: Facts) -> dict[str, float]:
    """What is compared of one picture: upright size in pixels, mean of each colour from 0 to 255."""
    return dict(zip(UNITS, (facts.width, facts.height, *facts.colours[:3]), strict=True))


def summarize(known: Known) -> TrainingSet:
    """The summary of images, of which there is at least one."""
    rows = [traits(facts) for facts in known.facts]
    found = {name: np.quantile([row[name] for row in rows], QUANTILES).round(2).tolist() for name in UNITS}
    malignant = int(known.labels.sum())
    return TrainingSet(len(rows) - malignant, malignant, found)


def differences(trained_on: TrainingSet, test: Known) -> dict[str, Any]:
    """What results.json says of a test set beside a training set.

    A trait differs if more than 30 % of the images lie outside the range of the middle 90 % of the training images. The
    share of malignant images differs if that of training lies outside the interval of that here, and the odds of both
    are 1.5 times apart: PPV and NPV change with these odds.

    Returns:
        "malignant_share" and "traits", each with the values of "training" and "here" and whether it "differs"; "note":
        one sentence.
    """
    here, seen = summarize(test), [traits(facts) for facts in test.facts]
    compared = []
    for name, unit in UNITS.items():
        low, _, high = trained_on.traits[name]
        outside = float(np.mean([not low <= row[name] <= high for row in seen]))
        compared.append(
            {
                "name": name,
                "unit": unit,
                "training": list(trained_on.traits[name]),
                "here": list(here.traits[name]),
                "outside": outside,
                "differs": outside > OUTSIDE,
            }
        )
    before, now = (found.malignant / (found.benign + found.malignant) for found in (trained_on, here))
    called = np.ones(len(seen))  # all malignant: the accuracy is their share, with an interval that heeds groups
    interval = estimates(called, test.labels, 0, groups=test.groups, names=["accuracy"])["accuracy"]
    low, high = interval.low, interval.high
    share = {"training": before, "here": now, "low": low, "high": high}
    apart = here.malignant * trained_on.benign, here.benign * trained_on.malignant  # their ratio is that of the odds
    share["differs"] = not low <= before <= high and max(apart) >= ODDS_APART * min(apart)
    found = {"malignant_share": share, "traits": compared}
    return found | {"note": _sentence(found)}


def _sentence(found: Mapping[str, Any]) -> str:
    share, apart = found["malignant_share"], [trait for trait in found["traits"] if trait["differs"]]
    if not apart and not share["differs"]:
        return "size, mean colour and malignant share are like those of the training images"
    said = []
    for trait in apart:
        low, _, high = (f"{value:.0f}" for value in trait["training"])
        nine_in_ten = "nine in ten training images: " if trait is apart[0] else ""
        span = low if low == high else f"{low} to {high}"
        said.append(f"{trait['outside']:.0%} in {trait['name']} ({nine_in_ten}{span} {trait['unit']})")
    if share["differs"]:
        here, before = (f"{value:.{0 if value >= 0.1 else 1}%}" for value in (share["here"], share["training"]))
        said.append(f"{here} are malignant, in training {before}")
    return f"these images differ from those of training: {', '.join(said)}"
