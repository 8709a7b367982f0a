"""The figures of a split against hand-computed ones."""

import numpy as np
from scipy.special import logit

from skindist.evaluation.intervals import estimates
from skindist.evaluation.judgement import figures
from skindist.evaluation.metrics import METRICS
from skindist.evaluation.operating_point import confusion_matrix
from skindist.evaluation.predictions import Predictions

FOUND = Predictions(np.arange(5), logit([0.1, 0.6, 0.2, 0.3, 0.9]), np.array([0, 0, 0, 1, 1]))


def test_confusion_matrix_counts_at_the_threshold() -> None:
    at_half = {"benign": {"benign": 2, "malignant": 1}, "malignant": {"benign": 1, "malignant": 1}}
    assert confusion_matrix(FOUND.probabilities, FOUND.labels, 0.5) == at_half
    at_its_value = {"benign": {"benign": 2, "malignant": 1}, "malignant": {"benign": 0, "malignant": 2}}
    assert confusion_matrix(FOUND.probabilities, FOUND.labels, FOUND.probabilities[3]) == at_its_value


def test_figures_are_plain_values_of_every_metric_and_the_confusion_matrix() -> None:
    found = figures(FOUND.probabilities, FOUND.labels, 0.3, seed=2)
    expected = estimates(FOUND.probabilities, FOUND.labels, seed=2, threshold=0.3)
    assert list(found) == [*METRICS, "confusion_matrix", "threshold"]
    assert found["confusion_matrix"] == confusion_matrix(FOUND.probabilities, FOUND.labels, 0.3)
    assert found["threshold"] == 0.3
    for name, estimate in expected.items():
        assert found[name] == vars(estimate)
