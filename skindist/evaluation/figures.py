"""The figures of a split, as results.json holds them."""

from dataclasses import asdict
from typing import Any

from skindist.data.scan import CLASSES
from skindist.evaluation.counts import Labels, Probabilities, called_malignant
from skindist.evaluation.intervals import estimates
from skindist.evaluation.predictions import Predictions
from skindist.evaluation.resampling import Groups


def figures(
    predictions: Predictions,
    threshold: float,
    seed: int,
    groups: Groups | None = None,
    prevalence: float | None = None,
) -> dict[str, Any]:
    """Every metric by name with its interval, as `intervals.estimates` gives it, the confusion matrix, and the
    threshold that both are at."""
    found = estimates(
        predictions.probabilities,
        predictions.labels,
        seed,
        threshold=threshold,
        groups=groups,
        prevalence=prevalence,
    )
    matrix = confusion_matrix(predictions.probabilities, predictions.labels, threshold)
    metrics = {name: asdict(estimate) for name, estimate in found.items()}
    return {**metrics, "confusion_matrix": matrix, "threshold": threshold}


def confusion_matrix(probabilities: Probabilities, labels: Labels, threshold: float) -> dict[str, dict[str, int]]:
    """Counts by true class, then by predicted class."""
    guesses = called_malignant(probabilities, threshold)
    return {
        true: {guess: int(((labels == t) & (guesses == g)).sum()) for g, guess in enumerate(CLASSES)}
        for t, true in enumerate(CLASSES)
    }
