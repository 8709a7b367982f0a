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

from skindist.config import EarlyStoppingConfig
from skindist.evaluation.metrics import HEADLINES, METRICS
from skindist.evaluation.modules import BinaryMetric, compute

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
    assert compute(probabilities, labels, threshold=0.4) == compute(probabilities, labels) | expected
    assert {name for name, metric in METRICS.items() if metric.thresholded} == set(expected)


def test_a_module_takes_a_threshold() -> None:
    module = BinaryMetric("specificity", keep_in_memory=True)
    assert module.compute(predictions=[0.1, 0.3, 0.6], references=[0, 0, 0], threshold=0.2) == {"specificity": 1 / 3}


def test_early_stopping_may_monitor_every_metric_in_its_direction() -> None:
    monitors = get_args(get_type_hints(EarlyStoppingConfig)["monitor"])
    assert monitors == tuple(f"val/{name}" for name in METRICS)
    assert [EarlyStoppingConfig(monitor=monitor).mode for monitor in monitors] == [
        metric.direction for metric in METRICS.values()
    ]


def test_headlines_print_as_their_unit_asks() -> None:
    said = {metric.title: metric.text(0.98765) for metric in HEADLINES}
    assert said == {"loss": "0.9877", "accuracy": "98.8%", "AUROC": "0.988"}


def test_the_table_imports_no_framework() -> None:
    code = (
        "import sys, skindist.evaluation.figures; print({'torch', 'datasets', 'evaluate', 'pandas'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


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
        },
        rel=1e-12,
    )


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
