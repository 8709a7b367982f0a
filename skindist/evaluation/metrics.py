"""Metrics of a classifier that tells benign (0) from malignant (1), as plain functions and as `evaluate` modules.

Nothing is downloaded, and with `keep_in_memory=True` nothing is written, so any number of processes can compute at
once. A metric that a set cannot define (the sensitivity of a set without malignant images) is NaN.
"""

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Probabilities = NDArray[np.float64]
Labels = NDArray[np.int64]

THRESHOLD = 0.5
"""An image is called malignant when its probability reaches this."""


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


def losses(probabilities: Probabilities, labels: Labels) -> NDArray[np.float64]:
    """Cross-entropy of each image in nats, shape (images,).

    The probability of the true class is clipped to [eps, 1 - eps] with the eps of float64, as
    `sklearn.metrics.log_loss` does, so one image costs at most 36.04.
    """
    eps = np.finfo(np.float64).eps
    true_class = np.where(labels == 1, probabilities, 1 - probabilities)
    return np.asarray(-np.log(np.clip(true_class, eps, 1 - eps)))


def hits(probabilities: Probabilities, labels: Labels) -> NDArray[np.bool_]:
    """Whether each image is classified rightly at THRESHOLD, shape (images,)."""
    right: NDArray[np.bool_] = (probabilities >= THRESHOLD) == (labels == 1)
    return right


def loss(probabilities: Probabilities, labels: Labels) -> float:
    """Mean cross-entropy in nats, clipped as in `losses`."""
    return _mean(losses(probabilities, labels))


def accuracy(probabilities: Probabilities, labels: Labels) -> float:
    """Share of the images that are classified rightly."""
    return _mean(hits(probabilities, labels))


def balanced_accuracy(probabilities: Probabilities, labels: Labels) -> float:
    """Mean of sensitivity and specificity; NaN unless both classes are present."""
    return (sensitivity(probabilities, labels) + specificity(probabilities, labels)) / 2


def auroc(probabilities: Probabilities, labels: Labels) -> float:
    """Chance that a malignant image gets a higher probability than a benign one, ties counting half.

    This is the area under the ROC curve (Hanley & McNeil, "The meaning and use of the area under a receiver operating
    characteristic (ROC) curve", Radiology 143, 1982). NaN unless both classes are present.
    """
    malignant = labels == 1
    positives, negatives = int(malignant.sum()), int((~malignant).sum())
    if not positives or not negatives:
        return float("nan")
    wins = rankdata(probabilities)[malignant].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def sensitivity(probabilities: Probabilities, labels: Labels) -> float:
    """Share of the malignant images that are called malignant; NaN without malignant images."""
    return _mean(hits(probabilities, labels)[labels == 1])


def specificity(probabilities: Probabilities, labels: Labels) -> float:
    """Share of the benign images that are called benign; NaN without benign images."""
    return _mean(hits(probabilities, labels)[labels == 0])


METRICS: dict[str, Callable[[Probabilities, Labels], float]] = {
    "loss": loss,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "auroc": auroc,
    "sensitivity": sensitivity,
    "specificity": specificity,
}


class BinaryMetric(evaluate.Metric):  # type: ignore[misc]
    """One of METRICS as an `evaluate` module: `BinaryMetric("auroc", keep_in_memory=True)`.

    Predictions are probabilities of malignant, references are labels; the result is `{"auroc": value}`.
    Raises KeyError for a name that METRICS lacks and, when computing, ValueError as `check` does.
    """

    def _info(self) -> evaluate.EvaluationModuleInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
        return evaluate.EvaluationModuleInfo(
            description=METRICS[self.config_name].__doc__,
            citation="",
            inputs_description="predictions: probabilities of malignant; references: 0 (benign) or 1 (malignant).",
            features=datasets.Features(features),
        )

    def _build_data_dir(self) -> str:
        # evaluate makes its cache folder even for a metric that is kept in memory
        return "" if self.keep_in_memory else str(super()._build_data_dir())

    def _compute(self, *, predictions: ArrayLike, references: ArrayLike, **_: Any) -> dict[str, float]:
        return {self.config_name: METRICS[self.config_name](*check(predictions, references))}


def compute(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Every metric of METRICS by name, through `evaluate`.

    Args:
        probabilities: probability of malignant for each image, shape (images,).
        labels: 0 (benign) or 1 (malignant) for each image, shape (images,).

    Raises:
        ValueError: as `check` does.
    """
    p, y = check(probabilities, labels)  # first, for evaluate would cut a label of 0.5 to 0
    metrics = evaluate.combine({name: BinaryMetric(name, keep_in_memory=True) for name in METRICS})
    return dict(metrics.compute(predictions=p, references=y))


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else float("nan")
