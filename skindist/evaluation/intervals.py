"""95 % confidence intervals of the metrics: how far a figure may lie from what more images of the same kind would show.

Images are taken as independent. Where several come from one patient or lesion, the true intervals are wider.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from skindist.evaluation.metrics import DEFAULT_THRESHOLD, METRICS, Counts, Labels, Probabilities, Values, check, count

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


def estimates(
    probabilities: ArrayLike, labels: ArrayLike, seed: int, resamples: int = 2000, threshold: float = DEFAULT_THRESHOLD
) -> dict[str, Estimate]:
    """Every metric of METRICS by name, with its 95 % interval.

    Shares get Wilson's interval. The others get the percentile bootstrap (Efron & Tibshirani, "An Introduction to the
    Bootstrap", 1993, chapter 13), resampled within each class so that no resample loses one. A bootstrap shows only
    what the sample holds: where the classes separate perfectly, the AUROC gets the interval [1, 1], however few the
    images.

    Args:
        probabilities: probability of malignant for each image, shape (images,).
        labels: 0 (benign) or 1 (malignant) for each image, shape (images,).
        seed: of the resampling; the same seed gives the same intervals.
        resamples: how many resamples the bootstrap draws.
        threshold: the probability from which on an image is called malignant.

    Raises:
        ValueError: as `metrics.check` does, or for fewer than one resample.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    p, y = check(probabilities, labels)
    ends, found = _bootstrap(p, y, threshold, np.random.default_rng(seed), resamples), {}
    for name, metric in METRICS.items():
        n = y.size
        if metric.per_image and not metric.of_counts:
            outcomes = metric.per_image(p, y, **metric.at(threshold))
            ends[name], n = wilson(int(outcomes.sum()), outcomes.size), outcomes.size
        found[name] = Estimate(metric(p, y, threshold), *ends[name], n)
    return found


def _bootstrap(
    p: Probabilities, y: Labels, threshold: float, rng: np.random.Generator, resamples: int
) -> dict[str, tuple[float, float]]:
    """Percentile intervals (low, high) of the metrics that are no shares."""
    statistics = {m.name: partial(m.of_counts, **m.at(threshold)) for m in METRICS.values() if m.of_counts}
    scores, *classes = count(p, y)
    rows = max(1, _CELLS // max(1, scores.size))
    values = []
    for start in range(0, resamples, rows):
        drawn = [_draw(counts, min(rows, resamples - start), rng) for counts in classes]
        with np.errstate(invalid="ignore"):  # an absent class gives 0 / 0: the NaN that is wanted
            values.append([statistic(scores, *drawn) for statistic in statistics.values()])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(values, axis=1), [tail, 1 - tail], axis=1).tolist()
    return dict(zip(statistics, zip(low, high, strict=True), strict=True))


def _draw(counts: Counts, rows: int, rng: np.random.Generator) -> Values:
    """Resample one class: how often each score occurs in each resample, shape (rows, scores)."""
    n = int(counts.sum())
    if n == 0:
        return np.zeros((rows, counts.size))
    return rng.multinomial(n, counts / n, size=rows).astype(np.float64)
