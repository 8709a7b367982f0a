"""Calibration: whether a probability of 30 % means that 30 % are malignant, and how it is made to.

A temperature divides all logits, and a bias is added (Platt, "Probabilistic outputs for support vector machines", 1999;
Guo et al., "On calibration of modern neural networks", ICML 2017). Both are fitted on validation images. They never
change the order of images.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skindist.data.scan import CLASSES
from skindist.evaluation.counts import BINS, Labels, Probabilities, Values, bin_of
from skindist.evaluation.metrics import METRICS
from skindist.evaluation.predictions import Predictions, sigmoid
from skindist.evaluation.resampling import FEWEST

SPREAD = 0.5  # of the bias and of the logarithm of the temperature, in what is held to be likely of any model
LARGEST = 10.0  # temperature, and its reciprocal the smallest


@dataclass(frozen=True)
class Calibration:
    """What makes a calibrated logit of a logit: logit / temperature + bias. Without a fit it changes nothing, and the
    note says why. `fitted_on` is the number of images."""

    temperature: float = 1.0
    bias: float = 0.0
    fitted_on: int = 0
    note: str | None = None

    @property
    def changes_nothing(self) -> bool:
        """Whether it gives each logit as it is."""
        return (self.temperature, self.bias) == (1.0, 0.0)

    def of(self, logits: Values) -> Values:
        """Calibrated logits."""
        return np.asarray(logits / self.temperature + self.bias)

    def apply(self, predictions: Predictions) -> Predictions:
        """The same images with calibrated logits."""
        return replace(predictions, logits=self.of(predictions.logits))


def fit_calibration(validation: Predictions) -> Calibration:
    """The temperature and the bias that these images make most probable, where both are held near 1 and 0: before a
    look at them, the logarithm of the temperature and the bias are normal, with a standard deviation of SPREAD."""
    logits, labels = validation.logits, validation.labels
    fewest = min(int((labels == label).sum()) for label in (0, 1))
    if fewest < FEWEST:
        counts = " and ".join(f"{(labels == label).sum()} {name}" for label, name in enumerate(CLASSES))
        return Calibration(note=f"not calibrated: {counts} validation images; it takes {FEWEST} of each class")
    if logits[labels == 1].mean() <= logits[labels == 0].mean():
        return Calibration(note="not calibrated: on validation the logits say next to nothing of the labels")

    from scipy.optimize import minimize  # seconds of import, for the end of a run

    def loss_and_slopes(at: Values) -> tuple[float, Values]:
        scaled = logits * np.exp(-at[0])
        errors = sigmoid(scaled + at[1]) - labels
        loss = np.logaddexp(0, scaled + at[1]).sum() - (scaled + at[1]) @ labels + at @ at / (2 * SPREAD**2)
        return float(loss), np.array([-(errors @ scaled), errors.sum()]) + at / SPREAD**2

    logarithm, bias = minimize(loss_and_slopes, np.zeros(2), jac=True, method="BFGS").x.tolist()
    temperature = math.exp(logarithm)
    if not 1 / LARGEST <= temperature <= LARGEST:
        beyond = f"above {LARGEST:g}" if temperature > LARGEST else f"below {1 / LARGEST:g}"
        return Calibration(note=f"not calibrated: on validation the temperature would be {beyond}")
    return Calibration(temperature, bias, fitted_on=len(labels))


def reliability(probabilities: Probabilities, labels: Labels) -> list[dict[str, float | int]]:
    """Of each bin: its ends, images in it, their mean probability and the share of malignant ones (NaN without any)."""
    bins = bin_of(probabilities)
    n = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        means, shares = (np.bincount(bins, values, BINS) / n for values in (probabilities, labels))
    return [
        {
            "low": index / BINS,
            "high": (index + 1) / BINS,
            "n": int(n[index]),
            "mean_probability": float(means[index]),
            "malignant_share": float(shares[index]),
        }
        for index in range(BINS)
    ]


def measures(found: Predictions) -> dict[str, float]:
    """How far probabilities are from what came true, by name."""
    return {name: METRICS[name](found.probabilities, found.labels) for name in ("ece", "brier", "loss")}


def describe_calibration(calibration: Calibration, test: Predictions) -> dict[str, Any]:
    """What was fitted, and what it changes on these images, whose logits are uncalibrated."""
    stages = {"before": test, "after": calibration.apply(test)}
    measured = {stage: measures(found) for stage, found in stages.items()}
    bins = {stage: reliability(found.probabilities, found.labels) for stage, found in stages.items()}
    return {**vars(calibration), "test": measured, "reliability": bins}
