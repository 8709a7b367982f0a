"""95 % confidence intervals of the metrics: how far a figure may lie from what more images of the same kind would show.

Images are taken as independent. Where several come from one patient or lesion, the true intervals are wider.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from skindist.evaluation.metrics import METRICS, Labels, Probabilities, check, hits, losses

CONFIDENCE = 0.95

_CELLS = 200_000  # scores times resamples in one chunk: arrays of 1.6 MB, which stay in the cache of a core


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval; all three figures are NaN where the metric is undefined."""

    value: float
    low: float
    high: float
    n: int
    """Images the figure rests on: the malignant ones for sensitivity, the benign ones for specificity, else all."""


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of a share (Wilson, "Probable inference, the law of succession, and statistical inference",
    J Am Stat Assoc 22, 1927).

    Returns (low, high) in [0, 1], or (NaN, NaN) for n = 0.
    Raises ValueError unless 0 <= successes <= n and 0 < confidence < 1.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: successes must be from 0 to n")
    if n == 0:
        return float("nan"), float("nan")
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def estimates(probabilities: ArrayLike, labels: ArrayLike, seed: int, resamples: int = 2000) -> dict[str, Estimate]:
    """Every metric of METRICS by name, with its 95 % interval.

    Accuracy, sensitivity and specificity are shares and get Wilson's interval. Loss, balanced accuracy and AUROC get
    the percentile bootstrap (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13), resampled
    within each class so that no resample loses one. A bootstrap shows only what the sample holds: where the classes
    separate perfectly, the AUROC gets the interval [1, 1], however few the images.

    Args:
        probabilities: probability of malignant for each image, shape (images,).
        labels: 0 (benign) or 1 (malignant) for each image, shape (images,).
        seed: of the resampling; the same seed gives the same intervals.
        resamples: how many resamples the bootstrap draws.

    Raises:
        ValueError: as `metrics.check` does, or for fewer than one resample.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    p, y = check(probabilities, labels)
    right = hits(p, y)
    shares = {"accuracy": right, "sensitivity": right[y == 1], "specificity": right[y == 0]}
    intervals = {name: wilson(int(share.sum()), share.size) for name, share in shares.items()}
    intervals |= _bootstrap(p, y, np.random.default_rng(seed), resamples)
    return {
        name: Estimate(metric(p, y), *intervals[name], n=shares.get(name, y).size) for name, metric in METRICS.items()
    }


def _bootstrap(p: Probabilities, y: Labels, rng: np.random.Generator, resamples: int) -> dict[str, tuple[float, float]]:
    """Percentile intervals (low, high) of the metrics that are no shares."""
    scores, position = np.unique(p, return_inverse=True)
    benign, malignant = (np.bincount(position[y == label], minlength=scores.size) for label in (0, 1))
    rows = max(1, _CELLS // max(1, scores.size))
    chunks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    values = np.concatenate([_statistics(scores, _draw(benign, n, rng), _draw(malignant, n, rng)) for n in chunks])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0).tolist()
    return dict(zip(("loss", "balanced_accuracy", "auroc"), zip(low, high, strict=True), strict=True))


def _draw(counts: NDArray[np.int64], rows: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Resample one class: how often each score occurs in each resample, shape (rows, scores)."""
    n = int(counts.sum())
    if n == 0:
        return np.zeros((rows, counts.size))
    return rng.multinomial(n, counts / n, size=rows).astype(np.float64)


def _statistics(
    scores: Probabilities, benign: NDArray[np.float64], malignant: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Loss, balanced accuracy and AUROC of each resample, shape (rows, 3), from sorted scores and their counts."""
    zeros, ones = np.zeros(scores.size, np.int64), np.ones(scores.size, np.int64)
    negatives, positives = benign.sum(axis=1), malignant.sum(axis=1)
    beaten = benign.cumsum(axis=1) - benign / 2  # benign images below each score, ties counting half
    with np.errstate(invalid="ignore"):  # an absent class gives 0 / 0: the NaN that is wanted
        loss = (benign @ losses(scores, zeros) + malignant @ losses(scores, ones)) / (negatives + positives)
        specificity = benign @ hits(scores, zeros).astype(np.float64) / negatives
        sensitivity = malignant @ hits(scores, ones).astype(np.float64) / positives
        auroc = (malignant * beaten).sum(axis=1) / (negatives * positives)
    return np.stack([loss, (sensitivity + specificity) / 2, auroc], axis=1)
