"""What a model says of the images of a split."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictions:
    """Every image of a split once, in the order of its sample ids: ids, logits (malignant minus benign), labels, each
    (N,). Raises ValueError for a logit that is not finite."""

    ids: NDArray[np.int64]
    logits: NDArray[np.float64]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not np.isfinite(self.logits).all():
            raise ValueError(f"logits must be finite: that of image {self.ids[~np.isfinite(self.logits)][0]} is not")

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Probability of malignant, (N,): the softmax of both logits."""
        return sigmoid(self.logits)


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-logit)) for each, without overflow."""
    smaller = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, smaller) / (1 + smaller))
