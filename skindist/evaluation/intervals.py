"""95 % confidence intervals of the metrics: how far a figure may lie from what more images of the same kind would show.

Where images belong to groups (one lesion, one patient), groups are resampled: images of one group say nearly the same.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from skindist.evaluation.counts import Labels, Probabilities, Values, called_malignant
from skindist.evaluation.metrics import DEFAULT_THRESHOLD, METRICS, Metric, check, every_image
from skindist.evaluation.resampling import RESAMPLES, Groups, Ranking, Sample, sample_of

CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2
Z = NormalDist().inv_cdf(1 - TAIL)
ROUNDING = 12  # decimals, beyond which resamples do not differ
PARTS = ("sensitivity", "specificity")  # of which other metrics are made
Ends = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval; all three figures are NaN where the metric is undefined."""

    value: float
    low: float
    high: float
    n: int
    """Images the figure rests on: the malignant ones for sensitivity, those called malignant for PPV, else all."""
    interval: str = "bootstrap"
    """How the interval was computed."""


def wilson(successes: float, n: float) -> Ends:
    """95 % score interval of a share (Wilson, "Probable inference, the law of succession, and statistical inference",
    J Am Stat Assoc 22, 1927). Neither number need be whole: grouped images count for fewer.

    Returns (low, high) in [0, 1], or (NaN, NaN) for n = 0.
    Raises ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: successes must be from 0 to n")
    if n == 0:
        return math.nan, math.nan
    share, spread = successes / n, Z**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt((share * (1 - share) + spread / 4) / n)
    return (0.0 if share == 0 else middle - half), (1.0 if share == 1 else middle + half)


def ratio(first: Ends, second: Ends, values: Ends) -> Ends:
    """Interval of first / second, from the intervals and the values of both, which lie in [0, 1] (MOVER: Donner & Zou,
    "Closed-form confidence intervals for functions of the normal mean and standard deviation", Stat Methods Med Res 21,
    2012; Newcombe, Stat Methods Med Res 25, 2016). The upper end is infinite where second may be 0."""
    (l1, u1), (l2, u2), (p1, p2) = first, second, values
    product = p1 * p2
    lower = product - math.sqrt(max(0.0, product**2 - l1 * u2 * (2 * p1 - l1) * (2 * p2 - u2)))
    upper = product + math.sqrt(max(0.0, product**2 - u1 * l2 * (2 * p1 - u1) * (2 * p2 - l2)))
    above, below = u2 * (2 * p2 - u2), l2 * (2 * p2 - l2)
    return (lower / above if above else 0.0), (upper / below if below > 0 else math.inf)


def mean(first: Ends, second: Ends, values: Ends) -> Ends:
    """Interval of the mean of two independent shares, from the intervals and the values of both (MOVER, as `ratio`)."""
    value = sum(values) / 2
    below = math.hypot(values[0] - first[0], values[1] - second[0]) / 2
    above = math.hypot(first[1] - values[0], second[1] - values[1]) / 2
    return value - below, value + above


def estimates(
    probabilities: ArrayLike,
    labels: ArrayLike,
    seed: int,
    resamples: int = RESAMPLES,
    threshold: float = DEFAULT_THRESHOLD,
    *,
    groups: Groups | None = None,
    prevalence: float | None = None,
    names: Collection[str] = METRICS.keys(),
) -> dict[str, Estimate]:
    """Metrics of METRICS by name, each with its 95 % interval.

    Shares that rest on images that stand alone get Wilson's interval. Shares of grouped images, and what tells the
    classes apart (as the AUROC), get it for as many images as the spread of resamples shows (`_over_resamples`). What
    is made of sensitivity and specificity gets the one that follows from theirs: balanced accuracy (`mean`), and PPV
    and NPV at a stated prevalence (`ratio`). All else gets the percentile bootstrap (Efron & Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapter 13), and the ECE the basic bootstrap (`_basic`). Where several images
    belong to one group, whole groups are drawn.

    Args:
        probabilities: probability of malignant for each image, shape (images,).
        labels: 0 (benign) or 1 (malignant) for each image, shape (images,).
        seed: of the resampling; the same seed gives the same intervals.
        resamples: how many resamples the bootstrap draws.
        threshold: the probability from which on an image is called malignant.
        groups: what each image belongs to, shape (images,); None: each image stands alone.
        prevalence: the share of malignant images at which PPV and NPV are stated; None: that of the images.
        names: of the metrics that are wanted.

    Raises:
        ValueError: as `metrics.check` does, for fewer than one resample, or not one group for each image.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    given = p, y = check(probabilities, labels)
    if groups is not None and len(groups) != y.size:
        raise ValueError(f"there must be one group for each image, not {len(groups)} for {y.size}")
    order = np.lexsort((y, p))  # what order the images come in does not matter
    p, y = p[order], y[order]
    sample = sample_of(y, None if groups is None else np.asarray(groups)[order])
    parts = PARTS if any(_is_made_of_parts(METRICS[name], prevalence) for name in names) else ()
    metrics = [metric for name, metric in METRICS.items() if name in names or name in parts]
    metrics.sort(key=lambda metric: _is_made_of_parts(metric, prevalence))  # these last
    resampled = [metric for metric in metrics if _is_resampled(metric, sample, prevalence)]
    drawn = _bootstrap(resampled, p, sample, threshold, seed, resamples) if resampled else {}
    found: dict[str, Estimate] = {}
    called = called_malignant(p, threshold)
    for metric in metrics:
        value = metric(*given, threshold, prevalence)
        counted = (metric.rests_on or every_image)(y, called)
        n, units = int(counted.sum()), len(set(sample.units[counted].tolist()))
        if _is_made_of_parts(metric, prevalence):
            low, high, interval = *_of_parts(metric, found, prevalence, value), "mover"
        elif metric.rests_on and units == n:
            low, high, interval = *wilson(round(value * n) if n else 0, n), "wilson"
        elif metric.rests_on:
            low, high, interval = *_over_resamples(value, drawn[metric.name], n, units), "wilson over groups"
        elif metric.perfect:
            shares = value / metric.perfect, drawn[metric.name] / metric.perfect
            low, high = (metric.perfect * end for end in _over_resamples(*shares, n, _pairs(sample)))
            interval = f"wilson over {'groups' if sample.grouped else 'resamples'}"
        elif metric.resampling_raises:
            low, high, interval = *_basic(value, drawn[metric.name]), f"basic {sample.kind}"
        else:
            low, high, interval = *_quantiles(value, drawn[metric.name]), sample.kind
        found[metric.name] = Estimate(value, low, high, n, interval)
    return {name: found[name] for name in METRICS if name in names}


def auroc_of(probabilities: ArrayLike, labels: ArrayLike, seed: int, groups: Groups | None = None) -> Estimate:
    """The AUROC alone, as `estimates` gives it."""
    return estimates(probabilities, labels, seed, groups=groups, names=["auroc"])["auroc"]


def difference(
    first: Probabilities, second: Probabilities, labels: Labels, seed: int, groups: Groups | None = None
) -> Estimate:
    """The AUROC of one set of probabilities less that of another, of the same images: both on the same resamples.

    Each has shape (images,). NaN unless both classes are present.
    """
    auroc, sample = METRICS["auroc"], sample_of(labels, groups)
    rankings = [Ranking(probabilities, labels) for probabilities in (first, second)]
    value = auroc(first, labels) - auroc(second, labels)
    with np.errstate(invalid="ignore"):
        drawn = [
            np.subtract(*(auroc.of_counts(*ranking.counts(weights)) for ranking in rankings))
            for weights in sample.weights(seed)
        ]
    return Estimate(value, *_quantiles(value, np.concatenate(drawn)), labels.size, sample.kind)


def _is_made_of_parts(metric: Metric, prevalence: float | None) -> bool:
    """Whether its interval follows from those of sensitivity and specificity."""
    return metric.name == "balanced_accuracy" or (metric.at_prevalence and prevalence is not None)


def _is_resampled(metric: Metric, sample: Sample, prevalence: float | None) -> bool:
    return not _is_made_of_parts(metric, prevalence) and (sample.grouped or not metric.rests_on)


def _bootstrap(
    metrics: Sequence[Metric], p: Probabilities, sample: Sample, threshold: float, seed: int, resamples: int
) -> dict[str, Values]:
    """Each metric of each resample, (resamples,)."""
    statistics = [partial(metric.of_counts, **metric.at(threshold)) for metric in metrics]
    ranking, values = Ranking(p, sample.labels), []
    with np.errstate(invalid="ignore", divide="ignore"):  # an absent class gives 0 / 0: the NaN that is wanted
        for weights in sample.weights(seed, resamples):
            counts = ranking.counts(weights)
            values.append([statistic(*counts) for statistic in statistics])
    return {metric.name: drawn for metric, drawn in zip(metrics, np.concatenate(values, axis=1), strict=True)}


def _quantiles(value: float, drawn: Values) -> Ends:
    """The central 95 % of the resamples in which the metric is defined."""
    defined = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not defined.size:
        return math.nan, math.nan
    low, high = np.quantile(defined, [TAIL, 1 - TAIL]).tolist()
    return low, high


def _basic(value: float, drawn: Values) -> Ends:
    """The basic bootstrap (Davison & Hinkley, "Bootstrap Methods and their Application", 1997, chapter 5), for what
    chance makes larger. A resample has the chance of two draws, sqrt(2) times that of one. So where the truth is 0, the
    sample is raised by 1 + sqrt(2) times as much as a resample is beside it, and the lower end allows for that."""
    low, high = _quantiles(value, drawn)
    if math.isnan(low):
        return low, high
    raised = float(np.nanmean(drawn)) - value
    return max(0.0, 2 * value - high - math.sqrt(2) * raised), min(1.0, max(value, 2 * value - low))


def _over_resamples(value: float, drawn: Values, images: int, units: int) -> Ends:
    """Wilson's interval for as many images that stand alone as would vary like a figure from 0 to 1 does in resamples
    (the effective sample size: Kish, "Survey Sampling", 1965), at most as many as there are.

    Resamples of few units vary too little, by (units - 1) / units. Where they show no spread, each unit is one image.
    """
    if math.isnan(value) or np.isnan(drawn).all():
        return math.nan, math.nan
    value, spread = min(value, 1.0), float(np.nanvar(drawn.round(ROUNDING)))
    n = min(value * (1 - value) / spread * (units - 1) / units, images) if spread and units > 1 else units
    return wilson(value * n, n) if n else (0.0, 1.0)


def _pairs(sample: Sample) -> int:
    """How many pairs of a malignant and a benign unit there are, no unit in two of them: so many independent chances to
    take one for the other. Where one class is absent, how many units there are."""
    units = len(set(sample.units.tolist()))
    return min(sample.fewest, units // 2) if sample.fewest else units


def _of_parts(metric: Metric, found: dict[str, Estimate], prevalence: float | None, value: float) -> Ends:
    """Interval of the balanced accuracy, or of PPV or NPV at a prevalence: their odds are a ratio of shares, times odds
    of the prevalence."""
    if math.isnan(value):
        return math.nan, math.nan
    hit, right = (found[name] for name in PARTS)
    if prevalence is None or not metric.at_prevalence:
        return mean((hit.low, hit.high), (right.low, right.high), (hit.value, right.value))
    odds = prevalence / (1 - prevalence)
    if metric.name == "npv":
        hit, right, odds = right, hit, 1 / odds
    ends = ratio((hit.low, hit.high), (1 - right.high, 1 - right.low), (hit.value, 1 - right.value))
    low, high = (1.0 if math.isinf(end) else odds * end / (1 + odds * end) for end in ends)
    return low, high
