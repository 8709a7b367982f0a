"""The operating point: from which probability on an image is called malignant, and what that gives.

The threshold is chosen on validation images for a stated sensitivity, and is then fixed: what it gives on test images
is a fair figure, because they had no part in the choice.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from skindist.data.scan import CLASSES
from skindist.evaluation.counts import Labels, Probabilities, Values, called_malignant
from skindist.evaluation.intervals import TAIL, Estimate, estimates
from skindist.evaluation.metrics import DEFAULT_THRESHOLD
from skindist.evaluation.resampling import FEWEST, Groups, sample_of
from skindist.wording import percent, plural

SHARES = ("sensitivity", "specificity", "ppv", "npv")
_ROUNDING = 1e-9  # 0.95 of 20 images is 19, whatever floating-point numbers make of it


@dataclass(frozen=True)
class Threshold:
    """A threshold of the probability, how it came about, its 95 % interval (None where nothing was chosen, or too few
    images tell of it), and what a reader must know of the choice."""

    value: float
    chosen: Literal["validation", "fixed"]
    target_sensitivity: float
    interval: tuple[float, float] | None = None
    note: str | None = None


def chosen_for(target: float) -> str:
    """How a threshold came about that was chosen for this sensitivity, in words."""
    return f"chosen on validation for a sensitivity of {percent(target)}"


def choose_threshold(
    probabilities: Probabilities, labels: Labels, target: float, seed: int, groups: Groups | None = None
) -> Threshold:
    """A threshold with which the sensitivity on these images reaches the target, and no more of them are called
    malignant than must be.

    It lies halfway between the lowest probability that must be called malignant and the next lower one of any image: a
    last digit, which may differ with the batch or the device, changes no decision. Images that tie are called
    malignant together, so that the sensitivity may be above the target. The interval is that of the threshold over
    resamples of the malignant images, or of their groups; there is none with fewer than FEWEST. Without a malignant
    image, the threshold is 0.5.

    Args:
        probabilities: of malignant, for the validation images, shape (images,).
        labels: 0 (benign) or 1 (malignant), shape (images,).
        target: the sensitivity that is wanted, above 0 and at most 1.
        seed: of the resampling.
        groups: what each image belongs to, shape (images,); None: each image stands alone.
    """
    malignant = np.flatnonzero(labels == 1)
    if not malignant.size:
        note = f"no validation image is malignant: no threshold can be chosen, {DEFAULT_THRESHOLD} is taken"
        return Threshold(DEFAULT_THRESHOLD, "fixed", target, None, note)
    falling = malignant[np.argsort(-probabilities[malignant], kind="stable")]
    thresholds = _below(probabilities[falling], probabilities)
    sample = sample_of(labels[falling], None if groups is None else np.asarray(groups)[falling])
    value = float(_reaching(thresholds, np.ones((1, thresholds.size)), target)[0])
    interval = None
    if sample.units_of(1) >= FEWEST:
        drawn = np.concatenate([_reaching(thresholds, weights, target) for weights in sample.weights(seed)])
        low, high = np.quantile(drawn, [TAIL, 1 - TAIL]).tolist()
        interval = low, high
    return Threshold(value, "validation", target, interval, _note(probabilities, labels, value, target))


def at_threshold(
    probabilities: Probabilities,
    labels: Labels,
    threshold: float,
    seed: int,
    groups: Groups | None = None,
    prevalence: float | None = None,
) -> dict[str, Estimate]:
    """What a threshold gives: sensitivity, specificity, PPV, NPV, and the number of images called malignant for each
    one that is (number needed to biopsy), by name. PPV and what follows are at a prevalence, or at the images' own."""
    found = estimates(
        probabilities, labels, seed, threshold=threshold, groups=groups, prevalence=prevalence, names=SHARES
    )
    ppv = found["ppv"]
    value, low, high = (math.inf if share == 0 else 1 / share for share in (ppv.value, ppv.high, ppv.low))
    return found | {"number_needed_to_biopsy": replace(ppv, value=value, low=low, high=high)}


def confusion_matrix(probabilities: Probabilities, labels: Labels, threshold: float) -> dict[str, dict[str, int]]:
    """Counts by true class, then by predicted class."""
    guesses = called_malignant(probabilities, threshold)
    return {
        true: {guess: int(((labels == t) & (guesses == g)).sum()) for g, guess in enumerate(CLASSES)}
        for t, true in enumerate(CLASSES)
    }


def _below(scores: Probabilities, probabilities: Probabilities) -> Probabilities:
    """The thresholds halfway between each score and the next lower one of all probabilities, or 0."""
    rising = np.unique(probabilities)
    lower = np.concatenate([[0.0], rising])[np.searchsorted(rising, scores)]
    halfway = (scores + lower) / 2
    return np.where(halfway > lower, halfway, scores)  # no number lies between two neighbours


def _reaching(thresholds: Probabilities, weights: Values, target: float) -> Values:
    """The first of the falling thresholds (M,), one for each malignant image, with which each resample, weights
    (resamples, M), reaches the target: (resamples,)."""
    found = weights.cumsum(axis=1)
    enough = found >= target * found[:, -1:] - _ROUNDING
    return np.asarray(thresholds[enough.argmax(axis=1)])


def _note(probabilities: Probabilities, labels: Labels, threshold: float, target: float) -> str | None:
    """What a reader must know of the choice."""
    malignant, benign = probabilities[labels == 1], probabilities[labels == 0]
    needed = math.ceil(target * malignant.size - _ROUNDING)
    called = malignant[malignant >= threshold]
    tied = int((called == called.min()).sum())
    notes = []
    if target < 1 and needed == malignant.size:
        notes.append(
            f"only {plural(malignant.size, 'malignant validation image')}: to reach the target none may be missed, and "
            "on other images the sensitivity may be far from it"
        )
    if called.size > needed:
        notes.append(
            f"{plural(tied, 'malignant validation image')} tie right above the threshold, so the target is exceeded"
        )
    if not benign.size:
        notes.append("no validation image is benign: what the threshold costs in specificity is unknown")
    elif (benign >= threshold).all():
        notes.append("the target is reached only by calling every validation image malignant")
    return "; ".join(notes) or None
