"""Functions of samples as counts, many samples at once: how a metric is computed a thousand times in a second.

A sample is the distinct probabilities of its images, rising, shape (scores,), and how many benign and how many
malignant images have each, shape (samples, scores) or (scores,). A metric that a sample cannot define is NaN.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float64]
Labels = NDArray[np.int64]
Outcomes = NDArray[np.bool_]
Values = NDArray[np.float64]
Counts = NDArray[np.int64] | NDArray[np.float64]

BINS = 10
"""Bins of equal width, from 0 to 1, in which calibration is judged."""
MIN_SENSITIVITY = 0.8
"""Where the partial AUROC begins."""
TINY = float(np.finfo(np.float64).tiny)  # a divisor instead of 0, where what is divided is 0 too


def losses(probabilities: Probabilities, labels: Labels) -> Values:
    """Cross-entropy of each image in nats, shape (images,).

    The probability of the true class is clipped to [eps, 1 - eps] with the eps of float64, as
    `sklearn.metrics.log_loss` does, so one image costs at most 36.04.
    """
    eps = np.finfo(np.float64).eps
    true_class = np.where(labels == 1, probabilities, 1 - probabilities)
    return np.asarray(-np.log(np.clip(true_class, eps, 1 - eps)))


def called_malignant(probabilities: Probabilities, threshold: float) -> Outcomes:
    """Whether each image is called malignant: its probability reaches the threshold."""
    called: Outcomes = probabilities >= threshold
    return called


def count(probabilities: Probabilities, labels: Labels) -> tuple[Probabilities, Counts, Counts]:
    """The distinct probabilities, rising, and how many benign and malignant images have each, shape (scores,)."""
    scores, position = np.unique(probabilities, return_inverse=True)
    benign, malignant = (np.bincount(position[labels == label], minlength=scores.size) for label in (0, 1))
    return scores, benign, malignant


def mean_of(per_image: Callable[..., Values]) -> Callable[[Probabilities, Counts, Counts], Values]:
    """The mean over images of what depends on probability and label, as a function of counts."""

    def mean(scores: Probabilities, benign: Counts, malignant: Counts) -> Values:
        of_label = [per_image(scores, np.full(scores.size, label)) for label in (0, 1)]
        return np.asarray((benign @ of_label[0] + malignant @ of_label[1]) / _total(benign, malignant))

    return mean


def accuracy(scores: Probabilities, benign: Counts, malignant: Counts, threshold: float) -> Values:
    """Share of the images that are classified rightly."""
    tp, fp, fn, tn = _outcomes(scores, benign, malignant, threshold)
    return np.asarray((tp + tn) / (tp + fp + fn + tn))


def sensitivity(scores: Probabilities, benign: Counts, malignant: Counts, threshold: float) -> Values:
    """Share of the malignant images that are called malignant."""
    tp, _, fn, _ = _outcomes(scores, benign, malignant, threshold)
    return np.asarray(tp / (tp + fn))


def specificity(scores: Probabilities, benign: Counts, malignant: Counts, threshold: float) -> Values:
    """Share of the benign images that are called benign."""
    _, fp, _, tn = _outcomes(scores, benign, malignant, threshold)
    return np.asarray(tn / (tn + fp))


def balanced_accuracy(scores: Probabilities, benign: Counts, malignant: Counts, threshold: float) -> Values:
    """Mean of sensitivity and specificity; NaN unless both classes are present."""
    found, cleared = (share(scores, benign, malignant, threshold) for share in (sensitivity, specificity))
    return np.asarray((found + cleared) / 2)


def ppv(
    scores: Probabilities, benign: Counts, malignant: Counts, threshold: float, prevalence: float | None = None
) -> Values:
    """Positive predictive value: share of malignant ones among the images that are called malignant, in the sample or
    in a population with the given share of malignant images (Bayes' rule)."""
    tp, fp, _, _ = _outcomes(scores, benign, malignant, threshold)
    of_benign, of_malignant = _weights(benign, malignant, prevalence)
    return np.asarray(tp * of_malignant / (tp * of_malignant + fp * of_benign))


def npv(
    scores: Probabilities, benign: Counts, malignant: Counts, threshold: float, prevalence: float | None = None
) -> Values:
    """Negative predictive value: share of benign ones among the images that are called benign, as `ppv`."""
    _, _, fn, tn = _outcomes(scores, benign, malignant, threshold)
    of_benign, of_malignant = _weights(benign, malignant, prevalence)
    return np.asarray(tn * of_benign / (tn * of_benign + fn * of_malignant))


def f1(scores: Probabilities, benign: Counts, malignant: Counts, threshold: float) -> Values:
    """Harmonic mean of PPV and sensitivity (van Rijsbergen, "Information Retrieval", 1979): twice the malignant images
    that are found, by those that are called malignant plus those that are. NaN without a malignant image."""
    tp, fp, fn, _ = _outcomes(scores, benign, malignant, threshold)
    return np.asarray(np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan))


def auroc(scores: Probabilities, benign: Counts, malignant: Counts) -> Values:
    """Chance that a malignant image gets a higher probability than a benign one, ties counting half.

    This is the area under the ROC curve (Hanley & McNeil, "The meaning and use of the area under a receiver operating
    characteristic (ROC) curve", Radiology 143, 1982). NaN unless both classes are present.
    """
    below, same, malignant = _ranked(benign, malignant)
    return np.asarray((malignant * (below + same / 2)).sum(axis=-1) / (benign.sum(axis=-1) * malignant.sum(axis=-1)))


def partial_auroc(scores: Probabilities, benign: Counts, malignant: Counts) -> Values:
    """Area under the ROC curve above 80 % sensitivity, from 0 to 0.2: the score of the ISIC 2024 challenge (Kurtansky
    et al., "The SLICE-3D dataset", Scientific Data 11, 2024). NaN unless both classes are present.

    It is the area between the curve and the line of 80 % sensitivity. The share of malignant images that are missed
    is the abscissa here, and the specificity the ordinate.
    """
    below, same, malignant = _ranked(benign, malignant)
    every = malignant.sum(axis=-1, keepdims=True)
    missed = malignant.cumsum(axis=-1) - malignant  # malignant images below each score
    within = np.clip((1 - MIN_SENSITIVITY) * every - missed, 0, malignant)  # those of the score that may be missed
    reached = within / np.maximum(malignant, TINY)
    return np.asarray((within * (below + reached * same / 2)).sum(axis=-1) / (benign.sum(axis=-1) * every[..., 0]))


def auprc(scores: Probabilities, benign: Counts, malignant: Counts) -> Values:
    """Area under the precision-recall curve as average precision: the mean, over the malignant images, of the PPV at
    each one's probability, as `sklearn.metrics.average_precision_score`. NaN without a malignant image."""
    below, _, malignant = _ranked(benign, malignant)
    every = malignant.sum(axis=-1, keepdims=True)
    found = every - malignant.cumsum(axis=-1) + malignant  # from each score on
    called = found + benign.sum(axis=-1, keepdims=True) - below
    return np.asarray((malignant * found / np.maximum(called, TINY)).sum(axis=-1) / every[..., 0])


def bin_of(probabilities: Probabilities) -> NDArray[np.int64]:
    """The bin of calibration of each probability, from 0 to BINS - 1; each holds its lower end, the last one 1 too."""
    return np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)


def ece(scores: Probabilities, benign: Counts, malignant: Counts) -> Values:
    """Expected calibration error: the distance between mean probability and share of malignant images in each of ten
    bins, weighted by the images in it (Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning",
    AAAI 2015)."""
    bins = (bin_of(scores)[:, None] == np.arange(BINS)).astype(np.float64)
    excess = benign @ (bins * scores[:, None]) + malignant @ (bins * (scores[:, None] - 1))
    return np.asarray(np.abs(excess).sum(axis=-1) / _total(benign, malignant))


def _total(benign: Counts, malignant: Counts) -> Values:
    """Images in each sample."""
    return np.asarray(benign.sum(axis=-1) + malignant.sum(axis=-1), np.float64)


def _ranked(benign: Counts, malignant: Counts) -> tuple[Counts, Counts, Counts]:
    """Of each score that a malignant image has: how many benign images lie below, how many benign and how many
    malignant ones have it."""
    at = np.flatnonzero(np.atleast_2d(malignant).any(axis=0))
    same = benign[..., at]
    return benign.cumsum(axis=-1)[..., at] - same, same, malignant[..., at]


def _outcomes(
    scores: Probabilities, benign: Counts, malignant: Counts, threshold: float
) -> tuple[Values, Values, Values, Values]:
    """How many true positives, false positives, false negatives and true negatives each sample has."""
    called = called_malignant(scores, threshold).astype(np.float64)
    tp, fp = np.asarray(malignant @ called), np.asarray(benign @ called)
    return tp, fp, malignant.sum(axis=-1) - tp, benign.sum(axis=-1) - fp


def _weights(benign: Counts, malignant: Counts, prevalence: float | None) -> tuple[Values | float, Values | float]:
    """How much one benign and one malignant image count for."""
    if prevalence is None:
        return 1.0, 1.0
    return (1 - prevalence) / benign.sum(axis=-1), prevalence / malignant.sum(axis=-1)
