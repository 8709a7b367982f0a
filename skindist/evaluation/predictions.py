"""What a model says of the images of a split."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictions:
    """Every image of a split once, in the order of its sample ids: ids, probability of malignant, label, each (N,)."""

    ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]
