"""The ROC and the precision-recall curve of a set, each with a band: a 95 % interval of the curve at each point by
itself, by bootstrap."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from skindist.evaluation.counts import Labels, Probabilities, Values
from skindist.evaluation.intervals import TAIL
from skindist.evaluation.resampling import Groups, Ranking, sample_of

GRID = np.linspace(0, 1, 101)
RESAMPLES = 500
ROUNDING = 1e-12  # shares that differ by less are the same


@dataclass(frozen=True)
class Band:
    """A curve through `x` and `y`, and its band from `low` to `high` at the points `grid`, which rise from 0 to 1."""

    x: Values
    y: Values
    grid: Values
    low: Values
    high: Values


def roc(p: Probabilities, y: Labels, groups: Groups | None, seed: int) -> Band:
    """Sensitivity (y) over 1 - specificity (x). Both classes must be there.

    The band is that of the sensitivity where so many benign images may be called malignant ("vertical averaging":
    Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27, 2006).
    """
    false_alarms, found, _ = roc_curve(y, p)
    return Band(false_alarms, found, GRID, *_limits(_sensitivity, p, y, groups, seed))


def precision_recall(p: Probabilities, y: Labels, groups: Groups | None, seed: int) -> Band:
    """PPV (y) over sensitivity (x), at the set's own malignant share. Both classes must be there.

    The band is that of the PPV at the first threshold that reaches the sensitivity.
    """
    precision, recall, _ = precision_recall_curve(y, p)
    known = recall > 0  # where nothing is found the PPV is 0, undefined, or 1 by convention
    return Band(recall[known][::-1], precision[known][::-1], GRID, *_limits(_ppv, p, y, groups, seed))


def _sensitivity(benign: Values, malignant: Values) -> Values:
    """At the last threshold whose false alarms are no more than each of GRID, (101,). Both (S,), from the highest."""
    alarms = np.concatenate([[0.0], benign.cumsum() / benign.sum()])
    found = np.concatenate([[0.0], malignant.cumsum() / malignant.sum()])
    values: Values = found[np.searchsorted(alarms, GRID + ROUNDING, side="right") - 1]
    return values


def _ppv(benign: Values, malignant: Values) -> Values:
    """At the first threshold whose sensitivity is no less than each of GRID and above 0, (101,)."""
    found, called = malignant.cumsum(), (benign + malignant).cumsum()
    first = np.searchsorted(found / found[-1], np.maximum(GRID - ROUNDING, ROUNDING))
    values: Values = found[first] / called[first]
    return values


def _limits(
    curve: Callable[[Values, Values], Values],
    p: Probabilities,
    y: Labels,
    groups: Groups | None,
    seed: int,
) -> tuple[Values, Values]:
    """The band of a curve, low and high, each (101,)."""
    ranking, curves = Ranking(p, y), []
    for weights in sample_of(y, groups).weights(seed, RESAMPLES):
        _, benign, malignant = ranking.counts(weights)
        pairs = zip(benign[:, ::-1], malignant[:, ::-1], strict=True)
        curves += [curve(*pair) for pair in pairs if all(counts.any() for counts in pair)]
    low, high = np.quantile(np.stack(curves), [TAIL, 1 - TAIL], axis=0)
    return low, high
