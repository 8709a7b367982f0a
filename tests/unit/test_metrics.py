"""Metrics against hand-computed figures and scikit-learn, and `evaluate` kept offline and off the disk."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import evaluate
import numpy as np
import pytest
from sklearn import metrics as sk

from skindist.evaluation.metrics import HEADLINES, METRICS
from skindist.evaluation.modules import BinaryMetric, compute
from skindist.recipe import EarlyStoppingConfig

HAND_COMPUTED = {
    "one tie between the classes": (
        [0.1, 0.4, 0.4, 0.8],
        [0, 0, 1, 1],
        {
            "loss": -math.log(0.9 * 0.6 * 0.4 * 0.8) / 4,
            "accuracy": 3 / 4,
            "balanced_accuracy": 3 / 4,
            "auroc": 3.5 / 4,
            "sensitivity": 1 / 2,
            "specificity": 1,
            "ppv": 1,
            "npv": 2 / 3,
            "f1": 2 / 3,
            "auprc": (1 + 2 / 3) / 2,
            "partial_auroc": 0.4 * 1.2 / 4,
            "brier": 0.57 / 4,
            "ece": 0.5 / 4,
        },
    ),
    "0.5 is malignant": (
        [0.5, 0.5, 0.2, 0.9, 0.5, 0.3],
        [1, 0, 0, 1, 1, 0],
        {
            "loss": -math.log(0.5 * 0.5 * 0.8 * 0.9 * 0.5 * 0.7) / 6,
            "accuracy": 5 / 6,
            "balanced_accuracy": 5 / 6,
            "auroc": 8 / 9,
            "sensitivity": 1,
            "specificity": 2 / 3,
            "ppv": 3 / 4,
            "npv": 1,
            "f1": 6 / 7,
            "auprc": 2.5 / 3,
            "partial_auroc": 0.6 * 2.15 / 9,
            "brier": 0.89 / 6,
            "ece": 1.1 / 6,
        },
    ),
    "all tied": (
        [0.7] * 5,
        [0, 1, 0, 0, 1],
        {
            "loss": -math.log(0.3**3 * 0.7**2) / 5,
            "accuracy": 2 / 5,
            "balanced_accuracy": 1 / 2,
            "auroc": 1 / 2,
            "sensitivity": 1,
            "specificity": 0,
            "ppv": 2 / 5,
            "npv": math.nan,
            "f1": 4 / 7,
            "auprc": 2 / 5,
            "partial_auroc": 0.02,
            "brier": 1.65 / 5,
            "ece": 1.5 / 5,
        },
    ),
    "certain, and once wrong": (
        [0.0, 1.0, 1.0, 1.0],
        [0, 0, 1, 1],
        {
            "loss": 52 * math.log(2) / 4,  # eps of float64 is 2**-52
            "accuracy": 3 / 4,
            "balanced_accuracy": 3 / 4,
            "auroc": 3 / 4,
            "sensitivity": 1,
            "specificity": 1 / 2,
            "ppv": 2 / 3,
            "npv": 1,
            "f1": 4 / 5,
            "auprc": 2 / 3,
            "partial_auroc": 0.4 * 1.1 / 4,
            "brier": 1 / 4,
            "ece": 1 / 4,
        },
    ),
    "no malignant image": (
        [0.2, 0.6, 0.2, 0.2],
        [0, 0, 0, 0],
        {
            "loss": -math.log(0.8**3 * 0.4) / 4,
            "accuracy": 3 / 4,
            "balanced_accuracy": math.nan,
            "auroc": math.nan,
            "sensitivity": math.nan,
            "specificity": 3 / 4,
            "ppv": 0,
            "npv": 1,
            "f1": math.nan,
            "auprc": math.nan,
            "partial_auroc": math.nan,
            "brier": 0.48 / 4,
            "ece": 1.2 / 4,
        },
    ),
    "no benign image": (
        [0.2, 0.6, 0.9, 0.9],
        [1, 1, 1, 1],
        {
            "loss": -math.log(0.2 * 0.6 * 0.9**2) / 4,
            "accuracy": 3 / 4,
            "balanced_accuracy": math.nan,
            "auroc": math.nan,
            "sensitivity": 3 / 4,
            "specificity": math.nan,
            "ppv": 1,
            "npv": 0,
            "f1": 6 / 7,
            "auprc": 1,
            "partial_auroc": math.nan,
            "brier": 0.82 / 4,
            "ece": 1.4 / 4,
        },
    ),
    "no image": ([], [], dict.fromkeys(METRICS, math.nan)),
}


@pytest.mark.parametrize("case", HAND_COMPUTED)
def test_compute_gives_the_hand_computed_figures(case: str) -> None:
    probabilities, labels, expected = HAND_COMPUTED[case]
    result = compute(probabilities, labels)
    assert list(result) == list(METRICS)
    assert result == pytest.approx(expected, nan_ok=True)


def test_the_threshold_moves_what_depends_on_it_and_nothing_else() -> None:
    probabilities, labels = [0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1]
    expected = {"accuracy": 3 / 4, "balanced_accuracy": 3 / 4, "sensitivity": 1, "specificity": 1 / 2}
    expected |= {"ppv": 2 / 3, "npv": 1, "f1": 4 / 5}
    assert compute(probabilities, labels, threshold=0.4) == compute(probabilities, labels) | expected
    assert {name for name, metric in METRICS.items() if metric.thresholded} == set(expected)


def test_a_module_takes_a_threshold() -> None:
    module = BinaryMetric("specificity", keep_in_memory=True)
    assert module.compute(predictions=[0.1, 0.3, 0.6], references=[0, 0, 0], threshold=0.2) == {"specificity": 1 / 3}


def test_predictive_values_can_be_stated_for_a_rarer_disease() -> None:
    """Sensitivity 2/2 and specificity 1/2; of 1,000 people 100 are ill: 100 found, 450 called in vain, 450 cleared."""
    found = compute([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1], threshold=0.4, prevalence=0.1)
    assert found["ppv"] == pytest.approx(100 / 550)
    assert found["npv"] == 1
    assert compute([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1], prevalence=0.1)["npv"] == pytest.approx(900 / (900 + 50))
    assert {name for name, metric in METRICS.items() if metric.at_prevalence} == {"ppv", "npv"}
    half = compute([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1], threshold=0.4, prevalence=0.5)
    assert half == pytest.approx(compute([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1], threshold=0.4))


def test_early_stopping_monitors_metrics_in_their_direction() -> None:
    """But no PPV or NPV: where nothing is called malignant, these are undefined."""
    monitors = get_args(get_type_hints(EarlyStoppingConfig)["monitor"])
    assert {monitor.removeprefix("val/") for monitor in monitors} == METRICS.keys() - {"ppv", "npv", "f1", "ece"}
    for monitor in monitors:
        config = EarlyStoppingConfig(monitor=monitor)
        assert config.mode == METRICS[config.metric].direction


def test_headlines_print_as_their_unit_asks() -> None:
    said = {metric.title: metric.text(0.98765) for metric in HEADLINES}
    assert said == {"loss": "0.9877", "accuracy": "98.8%", "AUROC": "0.988"}


def test_what_rounds_to_nothing_has_no_sign() -> None:
    assert METRICS["auroc"].text(-0.0002) == "0.000"


def test_a_model_is_judged_without_torch() -> None:
    """Whoever has only the predictions of a run needs numpy, scipy and scikit-learn alone."""
    code = """
import sys

class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {"torch", "datasets", "evaluate", "accelerate", "timm", "pandas"}:
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import skindist.evaluation.judgement
from skindist.evaluation.intervals import estimates
print(estimates([0.1, 0.9], [0, 1], seed=0)["auroc"].value)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1.0\n", "")


def isic_2024(labels: Any, probabilities: Any) -> float:
    """The score as the challenge's own code computes it, from the scaled partial area of scikit-learn."""
    most = 0.2
    scaled = sk.roc_auc_score(1 - labels, 1 - probabilities, max_fpr=most)
    return float(0.5 * most**2 + (most - 0.5 * most**2) / (1 - 0.5) * (scaled - 0.5))


def expected_calibration_error(labels: Any, probabilities: Any) -> float:
    """Bin by bin."""
    which = np.digitize(probabilities, np.arange(1, 10) / 10)
    bins = [which == index for index in range(10) if (which == index).any()]
    return float(sum(abs(probabilities[b].mean() - labels[b].mean()) * b.mean() for b in bins))


@pytest.mark.parametrize("decimals", [1, 17])  # with many ties, and with none
def test_compute_agrees_with_scikit_learn(decimals: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    probabilities = rng.random(300).round(decimals)
    predicted = probabilities >= 0.5
    assert compute(probabilities, labels) == pytest.approx(
        {
            "loss": sk.log_loss(labels, probabilities),
            "accuracy": sk.accuracy_score(labels, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
            "auroc": sk.roc_auc_score(labels, probabilities),
            "sensitivity": sk.recall_score(labels, predicted),
            "specificity": sk.recall_score(labels, predicted, pos_label=0),
            "ppv": sk.precision_score(labels, predicted),
            "npv": sk.precision_score(labels, predicted, pos_label=0),
            "f1": sk.f1_score(labels, predicted),
            "auprc": sk.average_precision_score(labels, probabilities),
            "partial_auroc": isic_2024(labels, probabilities),
            "brier": sk.brier_score_loss(labels, probabilities),
            "ece": expected_calibration_error(labels, probabilities),
        },
        rel=1e-12,
    )


def test_samples_at_once_give_what_each_gives_alone() -> None:
    """The functions of counts take many samples, and agree with those of images."""
    rng = np.random.default_rng(5)
    scores = np.sort(rng.random(40).round(2))
    scores = np.unique(scores)
    benign, malignant = (rng.integers(0, 3, (7, scores.size)) for _ in range(2))
    for metric in METRICS.values():
        together = metric.of_counts(scores, benign, malignant, **metric.at(0.4))
        for sample in range(7):
            p = np.concatenate([scores.repeat(benign[sample]), scores.repeat(malignant[sample])])
            y = np.repeat([0, 1], [benign[sample].sum(), malignant[sample].sum()])
            assert together[sample] == pytest.approx(metric(p, y, 0.4), rel=1e-12), metric.name


def test_evaluate_loses_no_precision() -> None:
    rng = np.random.default_rng(1)
    probabilities, labels = rng.random(50), rng.integers(0, 2, 50)
    assert compute(probabilities, labels) == {name: metric(probabilities, labels) for name, metric in METRICS.items()}


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([0.1, 0.2], [0], "shape"),
        ([[0.1], [0.2]], [[0], [1]], "shape"),
        ([0.1, math.nan], [0, 1], "finite"),
        ([0.1, math.inf], [0, 1], "finite"),
        ([0.1, 1.1], [0, 1], r"\[0, 1\]"),
        ([-0.1, 1.0], [0, 1], r"\[0, 1\]"),
        ([0.1, 0.2], [0, 2], "labels"),
        ([0.1, 0.2], [0.0, 0.5], "labels"),
    ],
)
def test_compute_refuses_what_is_no_probability_or_label(probabilities: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute(probabilities, labels)


@pytest.mark.parametrize("prevalence", [0.0, 1.0, 5.0, math.nan])
def test_compute_refuses_what_is_no_prevalence(prevalence: float) -> None:
    """5 for 5 % would make a PPV of 500 %."""
    with pytest.raises(ValueError, match="above 0 and below 1"):
        compute([0.2, 0.8, 0.6, 0.4], [0, 1, 0, 1], prevalence=prevalence)


def test_modules_combine_and_take_batches() -> None:
    combined = evaluate.combine([BinaryMetric(name, keep_in_memory=True) for name in ("auroc", "accuracy")])
    combined.add_batch(predictions=[0.1, 0.4], references=[0, 0])
    combined.add_batch(predictions=[0.4, 0.8], references=[1, 1])
    assert combined.compute() == {"auroc": 0.875, "accuracy": 0.75}


def test_a_module_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match="probabilities"):
        BinaryMetric("auroc", keep_in_memory=True).compute(predictions=[0.5, math.nan], references=[0, 1])


def test_compute_works_offline_and_leaves_the_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("network access")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    compute([0.2, 0.8], [0, 1])
    assert np.random.random() == expected


def test_compute_prints_nothing_and_leaves_no_file(tmp_path: Path) -> None:
    places = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME")}
    script = "from skindist.evaluation.modules import compute; compute([0.2, 0.8], [0, 1])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path), **places},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # torch makes its own folder where transformers is installed, which evaluate imports then
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")] == []
