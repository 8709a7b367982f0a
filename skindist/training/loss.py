"""What a step makes smaller: cross-entropy, with weights for the classes if asked."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def class_weights(labels: Sequence[int], power: float) -> Tensor | None:
    """Each class's share of the images to the power of minus `power`, (2,) float32, with a mean of 1 over the images.

    Returns:
        None for a power of 0: all weigh the same.
    """
    if power == 0:
        return None
    shares_K = np.bincount(labels, minlength=2) / len(labels)
    weights_K = shares_K**-power
    return torch.tensor(weights_K / (shares_K @ weights_K), dtype=torch.float32)


def summed_loss(logits_BK: Tensor, labels_B: Tensor, smoothing: float, weights_K: Tensor | None = None) -> Tensor:
    """The cross-entropy of all images of a batch added up, in the precision of the logits.

    With weights, a model would learn that the rare class is more frequent than it is. So what the weights add to the
    logits is added here, and the model learns what is left: its own probabilities keep the classes' true shares (as
    prior correction does after training; King and Zeng 2001, "Logistic regression in rare events data").

    Args:
        logits_BK: (B, 2).
        labels_B: (B,) int64.
        weights_K: (2,), on the same device.
    """
    if weights_K is None:
        return cross_entropy(logits_BK, labels_B, reduction="sum", label_smoothing=smoothing)
    losses_B = cross_entropy(logits_BK + weights_K.log(), labels_B, reduction="none", label_smoothing=smoothing)
    return (losses_B * weights_K[labels_B]).sum()
