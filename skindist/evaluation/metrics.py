"""The metrics of a classifier that tells benign (0) from malignant (1): each is one row of METRICS, made of functions.

Whatever prints, plots, stores or bounds metrics reads that table. A metric that a set cannot define (the sensitivity of
a set without malignant images) is NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Probabilities = NDArray[np.float64]
Labels = NDArray[np.int64]
Outcomes = NDArray[np.bool_]
Values = NDArray[np.float64]
Counts = NDArray[np.int64] | NDArray[np.float64]

DEFAULT_THRESHOLD = 0.5
"""The operating threshold where none is chosen."""
FORMATS = {"share": ".1%", "nats": ".4f", "area": ".3f"}  # of a value, by its unit


@dataclass(frozen=True)
class Metric:
    """All there is to know of a metric. Its functions take the threshold too, by name, if it is `thresholded`."""

    name: str
    title: str
    direction: Literal["min", "max"]
    unit: Literal["share", "nats", "area"]
    per_image: Callable[..., Outcomes | Values] | None = None
    """Of probabilities and labels: what the metric is the mean of, over the images that it rests on."""
    of_counts: Callable[..., Values] | None = None
    """Of samples as `count` gives them, many at once, counts of shape (samples, scores): the metric of each, for a
    bootstrap interval. Without it, the metric is a share of images and has Wilson's interval."""
    thresholded: bool = False
    headline: bool = False
    """Whether it is shown after each epoch and drawn as a curve."""

    def __call__(self, probabilities: Probabilities, labels: Labels, threshold: float = DEFAULT_THRESHOLD) -> float:
        if self.per_image:
            values = self.per_image(probabilities, labels, **self.at(threshold))
            return float(values.mean()) if values.size else float("nan")
        assert self.of_counts
        with np.errstate(invalid="ignore"):  # an absent class gives 0 / 0: the NaN that is wanted
            return float(self.of_counts(*count(probabilities, labels), **self.at(threshold)))

    def at(self, threshold: float) -> dict[str, float]:
        """The threshold as the keyword argument that the functions take, or nothing."""
        return {"threshold": threshold} if self.thresholded else {}

    def text(self, value: float) -> str:
        """A value as it is printed."""
        return f"{value:{FORMATS[self.unit]}}"


def check(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Probabilities, Labels]:
    """Return both as the arrays that the metrics take, float64 and int64, each of shape (images,).

    Raises ValueError unless there is one probability in [0, 1] and one label, 0 or 1, for each image.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim != 1 or p.shape != y.shape:
        raise ValueError(f"probabilities and labels must have the same shape (images,), not {p.shape} and {y.shape}")
    if not np.all((p >= 0) & (p <= 1)):  # NaN fails both comparisons
        raise ValueError("probabilities must be finite and lie in [0, 1]")
    if not np.all((y == 0) | (y == 1)):
        raise ValueError("labels must be 0 (benign) or 1 (malignant)")
    return p, y.astype(np.int64)


def losses(probabilities: Probabilities, labels: Labels) -> Values:
    """Cross-entropy of each image in nats, shape (images,).

    The probability of the true class is clipped to [eps, 1 - eps] with the eps of float64, as
    `sklearn.metrics.log_loss` does, so one image costs at most 36.04.
    """
    eps = np.finfo(np.float64).eps
    true_class = np.where(labels == 1, probabilities, 1 - probabilities)
    return np.asarray(-np.log(np.clip(true_class, eps, 1 - eps)))


def called_malignant(probabilities: Probabilities, threshold: float) -> Outcomes:
    """Whether each image is called malignant: its probability reaches the threshold."""
    called: Outcomes = probabilities >= threshold
    return called


def hits(probabilities: Probabilities, labels: Labels, threshold: float) -> Outcomes:
    """Whether each image is classified rightly."""
    right: Outcomes = called_malignant(probabilities, threshold) == (labels == 1)
    return right


def malignant_hits(probabilities: Probabilities, labels: Labels, threshold: float) -> Outcomes:
    """Whether each malignant image is called malignant."""
    return called_malignant(probabilities[labels == 1], threshold)


def benign_hits(probabilities: Probabilities, labels: Labels, threshold: float) -> Outcomes:
    """Whether each benign image is called benign."""
    return ~called_malignant(probabilities[labels == 0], threshold)


def count(probabilities: Probabilities, labels: Labels) -> tuple[Probabilities, Counts, Counts]:
    """The distinct probabilities, rising, and how many benign and malignant images have each, shape (scores,)."""
    scores, position = np.unique(probabilities, return_inverse=True)
    benign, malignant = (np.bincount(position[labels == label], minlength=scores.size) for label in (0, 1))
    return scores, benign, malignant


def loss(scores: Probabilities, benign: Counts, malignant: Counts) -> Values:
    """Mean of `losses`."""
    total = benign @ losses(scores, np.zeros(scores.size, np.int64)) + malignant @ losses(
        scores, np.ones(scores.size, np.int64)
    )
    return np.asarray(total / (benign.sum(axis=-1) + malignant.sum(axis=-1)))


def balanced_accuracy(scores: Probabilities, benign: Counts, malignant: Counts, threshold: float) -> Values:
    """Mean of sensitivity and specificity; NaN unless both classes are present."""
    called = called_malignant(scores, threshold).astype(np.float64)
    sensitivity, specificity = malignant @ called / malignant.sum(axis=-1), benign @ (1 - called) / benign.sum(axis=-1)
    return np.asarray((sensitivity + specificity) / 2)


def auroc(scores: Probabilities, benign: Counts, malignant: Counts) -> Values:
    """Chance that a malignant image gets a higher probability than a benign one, ties counting half.

    This is the area under the ROC curve (Hanley & McNeil, "The meaning and use of the area under a receiver operating
    characteristic (ROC) curve", Radiology 143, 1982). NaN unless both classes are present.
    """
    beaten = benign.cumsum(axis=-1) - benign / 2  # benign images below each score, ties counting half
    return np.asarray((malignant * beaten).sum(axis=-1) / (benign.sum(axis=-1) * malignant.sum(axis=-1)))


_TABLE = (
    Metric("loss", "loss", "min", "nats", per_image=losses, of_counts=loss, headline=True),
    Metric("accuracy", "accuracy", "max", "share", per_image=hits, thresholded=True, headline=True),
    Metric("balanced_accuracy", "balanced accuracy", "max", "share", of_counts=balanced_accuracy, thresholded=True),
    Metric("auroc", "AUROC", "max", "area", of_counts=auroc, headline=True),
    Metric("sensitivity", "sensitivity", "max", "share", per_image=malignant_hits, thresholded=True),
    Metric("specificity", "specificity", "max", "share", per_image=benign_hits, thresholded=True),
)
METRICS = {metric.name: metric for metric in _TABLE}
"""Every metric by name, in the order of all records."""
HEADLINES = [metric for metric in _TABLE if metric.headline]
