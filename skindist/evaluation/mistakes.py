"""Where a model errs: the mistakes that it was surest of, and the images nearest to its threshold."""

import numpy as np
from numpy.typing import NDArray

from skindist.evaluation.counts import Labels, Outcomes, Probabilities, called_malignant

MISSED, FALSE_ALARM, UNCERTAIN = "missed", "false alarm", "least certain"


def telling_cases(probabilities: Probabilities, labels: Labels, threshold: float, most: int) -> dict[str, list[int]]:
    """The positions of up to `most` images of each kind, the most telling first.

    "missed": malignant, called benign, the lowest probability first. "false alarm": benign, called malignant, the
    highest first. "least certain": nearest to the threshold, of those that are not among the others.
    """
    called = called_malignant(probabilities, threshold)
    rising = np.argsort(probabilities, kind="stable")
    nearest = np.argsort(np.abs(probabilities - threshold), kind="stable")
    missed = _first(rising, (labels == 1) & ~called, most)
    alarms = _first(np.argsort(-probabilities, kind="stable"), (labels == 0) & called, most)
    others = np.ones(labels.size, np.bool_)
    others[missed + alarms] = False
    return {MISSED: missed, FALSE_ALARM: alarms, UNCERTAIN: _first(nearest, others, most)}


def _first(order: NDArray[np.int64], which: Outcomes, most: int) -> list[int]:
    found: list[int] = order[which[order]][:most].tolist()
    return found
