"""Calibration: a known temperature and bias are found again, the order stays, and few images change nothing."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from skindist.evaluation.calibration import Calibration, describe_calibration, fit_calibration, reliability
from skindist.evaluation.metrics import METRICS
from skindist.evaluation.predictions import Predictions, sigmoid


def predictions(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> Predictions:
    return Predictions(np.arange(len(logits)), logits, labels)


def draw(n: int, temperature: float, bias: float = 0.0, seed: int = 0) -> Predictions:
    """Logits that are `temperature` times too large, and lack a bias."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-1, 1.5, n)
    return predictions((true - bias) * temperature, (rng.random(n) < sigmoid(true)).astype(np.int64))


@pytest.mark.parametrize(("temperature", "bias"), [(0.4, 0.0), (1.0, 0.7), (3.0, -0.5)])
def test_what_was_done_to_logits_is_found_again(temperature: float, bias: float) -> None:
    found = fit_calibration(draw(20_000, temperature, bias))
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.bias == pytest.approx(bias, abs=0.05)
    assert (found.fitted_on, found.note) == (20_000, None)


def test_no_other_temperature_and_bias_are_more_probable() -> None:
    """Searched for without slopes, in another form: a log-likelihood and two normal densities."""
    data = draw(300, 2.0, 0.5)

    def cost(at: NDArray[np.float64]) -> float:
        temperature, bias = math.exp(at[0]), at[1]
        likelihood = -300 * log_loss(data.labels, sigmoid(data.logits / temperature + bias))
        return -float(likelihood + norm.logpdf(math.log(temperature), 0, 0.5) + norm.logpdf(bias, 0, 0.5))

    best = minimize(cost, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10}).x
    found = fit_calibration(data)
    assert (math.log(found.temperature), found.bias) == pytest.approx(tuple(best), abs=1e-4)


def test_classes_that_separate_have_a_finite_temperature() -> None:
    """Steeper logits have a lower loss without end."""
    found = fit_calibration(predictions(LOGITS, (np.arange(40) >= 20).astype(np.int64)))
    assert 0.3 < found.temperature < 0.5
    assert found.bias == pytest.approx(0, abs=1e-6)


def test_on_other_images_loss_brier_and_ece_fall() -> None:
    found = describe_calibration(fit_calibration(draw(1_000, 3.0)), draw(5_000, 3.0, seed=1))
    for name in ("ece", "brier", "loss"):
        assert found["test"]["after"][name] < found["test"]["before"][name]
    assert found["test"]["after"]["ece"] < 0.04 < found["test"]["before"]["ece"]


@pytest.mark.parametrize("temperature", [0.2, 3.0])
def test_the_order_stays(temperature: float) -> None:
    before = draw(500, temperature, 0.5)
    after = fit_calibration(before).apply(before)
    assert np.array_equal(np.argsort(before.logits, kind="stable"), np.argsort(after.logits, kind="stable"))
    assert METRICS["auroc"](before.probabilities, before.labels) == METRICS["auroc"](after.probabilities, after.labels)
    assert np.array_equal(before.ids, after.ids)


LOGITS = np.linspace(-3, 3, 40)
ALTERNATE = np.arange(40) % 2
TWO_WRONG = ((np.arange(40) >= 20) ^ (np.arange(40) % 39 == 0)).astype(np.int64)  # the first and the last


@pytest.mark.parametrize(
    ("labels", "logits", "said"),
    [
        (np.zeros(40, np.int64), LOGITS, "not calibrated: 40 benign and 0 malignant validation images; it takes 10"),
        (np.ones(40, np.int64), LOGITS, "not calibrated: 0 benign and 40 malignant validation images"),
        ((np.arange(40) >= 31).astype(np.int64), LOGITS, "31 benign and 9 malignant"),
        (np.tile(TWO_WRONG, 50), np.tile(LOGITS, 50) / 30, "the temperature would be below 0.1"),
        (np.tile(TWO_WRONG, 50), np.tile(LOGITS, 50) * 100, "the temperature would be above 10"),
        ((np.arange(40) < 20).astype(np.int64), LOGITS, "say next to nothing of the labels"),
        (ALTERNATE, np.zeros(40), "say next to nothing of the labels"),
        (ALTERNATE[:5], LOGITS[:5], "3 benign and 2 malignant"),
        (ALTERNATE[:0], LOGITS[:0], "0 benign and 0 malignant"),
    ],
    ids=[
        "no malignant",
        "no benign",
        "few",
        "too small",
        "too large",
        "turned round",
        "all alike",
        "5 images",
        "none",
    ],
)
def test_nothing_is_changed_without_evidence(labels: NDArray[np.int64], logits: NDArray[np.float64], said: str) -> None:
    found = fit_calibration(predictions(logits, labels))
    assert found.bias == 0
    assert (found.temperature, found.fitted_on) == (1, 0)
    assert found.note is not None
    assert said in found.note
    data = predictions(logits, labels)
    assert np.array_equal(found.apply(data).logits, logits)


def test_ten_images_of_a_class_are_enough() -> None:
    labels = (np.arange(40) >= 30).astype(np.int64)
    assert fit_calibration(predictions(LOGITS, labels)).fitted_on == 40


def test_reliability_agrees_with_scikit_learn() -> None:
    data = draw(400, 1.0)
    bins = reliability(data.probabilities, data.labels)
    shares, means = calibration_curve(data.labels, data.probabilities, n_bins=10)
    filled = [row for row in bins if row["n"]]
    assert [row["malignant_share"] for row in filled] == pytest.approx(list(shares))
    assert [row["mean_probability"] for row in filled] == pytest.approx(list(means))
    assert [(row["low"], row["high"]) for row in bins] == [(i / 10, (i + 1) / 10) for i in range(10)]
    error = sum(row["n"] * abs(row["malignant_share"] - row["mean_probability"]) for row in filled) / 400
    assert error == pytest.approx(METRICS["ece"](data.probabilities, data.labels))


def test_a_probability_of_1_is_in_the_last_bin() -> None:
    counts = [row["n"] for row in reliability(np.array([0.0, 0.1, 0.95, 1.0]), np.array([0, 0, 1, 1]))]
    assert counts == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2]


def test_probabilities_of_huge_logits_do_not_overflow() -> None:
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0, 0.5, 1]
    assert Calibration(temperature=0.1).apply(predictions(np.array([900.0]), np.array([1]))).probabilities == 1
