"""The metrics of a classifier that tells benign (0) from malignant (1): each is one row of METRICS, made of functions.

Whatever prints, plots, stores or bounds metrics reads that table. A metric that a set cannot define (the sensitivity of
a set without malignant images) is NaN.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from skindist.evaluation import counts
from skindist.evaluation.counts import Labels, Outcomes, Probabilities, Values, count, losses

DEFAULT_THRESHOLD = 0.5
"""The operating threshold where none is chosen."""
UNDEFINED = "undefined"
FORMATS = {"share": "z.1%", "nats": "z.4f", "area": "z.3f"}  # of a value, by its unit; z: never -0.000


@dataclass(frozen=True)
class Metric:
    """All there is to know of a metric. Its functions take the threshold too, by name, if it is `thresholded`, and the
    prevalence if it is `at_prevalence`."""

    name: str
    title: str
    direction: Literal["min", "max"]
    unit: Literal["share", "nats", "area"]
    of_counts: Callable[..., Values]
    """Of samples as `count` gives them, many at once, counts of shape (samples, scores): the metric of each."""
    rests_on: Callable[[Labels, Outcomes], Outcomes] | None = None
    """Of a share of images: which of them it is a share of, by their labels and whether each is called malignant."""
    thresholded: bool = False
    at_prevalence: bool = False
    """Whether it depends on the share of malignant images, and can be stated for another share than the set's own."""
    perfect: float | None = None
    """The value of a perfect model, for what tells the classes apart, from 0 to that."""
    resampling_raises: bool = False
    """Whether a resample's value is above the sample's on average, as the sample's is above the truth."""
    headline: bool = False
    """Whether it is shown after each epoch and drawn as a curve."""

    def __call__(
        self,
        probabilities: Probabilities,
        labels: Labels,
        threshold: float = DEFAULT_THRESHOLD,
        prevalence: float | None = None,
    ) -> float:
        with np.errstate(invalid="ignore", divide="ignore"):  # an absent class gives 0 / 0: the NaN that is wanted
            given = {"prevalence": prevalence} if self.at_prevalence else {}
            return float(self.of_counts(*count(probabilities, labels), **self.at(threshold), **given))

    def at(self, threshold: float) -> dict[str, float]:
        """The threshold as the keyword argument that the functions take, or nothing."""
        return {"threshold": threshold} if self.thresholded else {}

    def text(self, value: float | None) -> str:
        """A value as it is printed; null is what JSON has for NaN."""
        return UNDEFINED if value is None or np.isnan(value) else f"{value:{FORMATS[self.unit]}}"

    def said(self, figure: Mapping[str, Any]) -> str:
        """An estimate as it is printed, with its interval: "0.811 (0.766 to 0.853)"."""
        value, low, high = (self.text(figure[part]) for part in ("value", "low", "high"))
        return value if value == UNDEFINED else f"{value} ({low} to {high})"


def check(probabilities: ArrayLike, labels: ArrayLike, prevalence: float | None = None) -> tuple[Probabilities, Labels]:
    """Return both as the arrays that the metrics take, float64 and int64, each of shape (images,).

    Raises ValueError unless there is one probability in [0, 1] and one label, 0 or 1, for each image, and the
    prevalence, if any, is above 0 and below 1.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim != 1 or p.shape != y.shape:
        raise ValueError(f"probabilities and labels must have the same shape (images,), not {p.shape} and {y.shape}")
    if not np.all((p >= 0) & (p <= 1)):  # NaN fails both comparisons
        raise ValueError("probabilities must be finite and lie in [0, 1]")
    if not np.all((y == 0) | (y == 1)):
        raise ValueError("labels must be 0 (benign) or 1 (malignant)")
    if prevalence is not None and not 0 < prevalence < 1:
        raise ValueError(f"the prevalence is a share above 0 and below 1, not {prevalence}")
    return p, y.astype(np.int64)


def every_image(labels: Labels, called: Outcomes) -> Outcomes:
    """What a share of all images rests on."""
    return np.full(labels.size, True)


def squared_errors(probabilities: Probabilities, labels: Labels) -> Values:
    """Squared distance of each probability from its label, shape (images,)."""
    return np.asarray((probabilities - labels) ** 2)


_TABLE = (
    Metric("loss", "loss", "min", "nats", counts.mean_of(losses), headline=True),
    Metric("accuracy", "accuracy", "max", "share", counts.accuracy, every_image, thresholded=True, headline=True),
    Metric("balanced_accuracy", "balanced accuracy", "max", "share", counts.balanced_accuracy, thresholded=True),
    Metric("auroc", "AUROC", "max", "area", counts.auroc, perfect=1.0, headline=True),
    Metric("sensitivity", "sensitivity", "max", "share", counts.sensitivity, lambda y, _: y == 1, thresholded=True),
    Metric("specificity", "specificity", "max", "share", counts.specificity, lambda y, _: y == 0, thresholded=True),
    Metric("ppv", "PPV", "max", "share", counts.ppv, lambda _, called: called, thresholded=True, at_prevalence=True),
    Metric("npv", "NPV", "max", "share", counts.npv, lambda _, called: ~called, thresholded=True, at_prevalence=True),
    Metric("f1", "F1", "max", "area", counts.f1, thresholded=True, perfect=1.0),
    Metric("auprc", "AUPRC", "max", "area", counts.auprc, perfect=1.0),
    Metric("partial_auroc", "partial AUROC", "max", "area", counts.partial_auroc, perfect=1 - counts.MIN_SENSITIVITY),
    Metric("brier", "Brier score", "min", "area", counts.mean_of(squared_errors)),
    Metric("ece", "ECE", "min", "area", counts.ece, resampling_raises=True),
)
METRICS = {metric.name: metric for metric in _TABLE}
"""Every metric by name, in the order of all records."""
HEADLINES = [metric for metric in _TABLE if metric.headline]
