"""What a model says of the images of a split."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictions:
    """Every image of a split once, in the order of its sample ids: ids, logits (malignant minus benign), labels, each
    (N,)."""

    ids: NDArray[np.int64]
    logits: NDArray[np.float64]
    labels: NDArray[np.int64]

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Probability of malignant, (N,): the softmax of both logits."""
        return sigmoid(self.logits)


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-logit)) for each, without overflow."""
    smaller = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, smaller) / (1 + smaller))
