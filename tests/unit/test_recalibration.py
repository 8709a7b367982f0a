"""A refit on half of new images: who is in which half, and what is shown of whom."""

import numpy as np
import pytest

from skindist.config import EvaluationConfig
from skindist.data.inspection import Facts
from skindist.errors import UserError
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.frozen import Frozen
from skindist.evaluation.known import Known
from skindist.evaluation.operating_point import Threshold
from skindist.evaluation.predictions import Predictions
from skindist.evaluation.recalibration import halves, recalibrate


def known(labels: list[int], groups: list[str]) -> Known:
    facts = [Facts("", width=100, height=100, colours=(100.0,) * 9)] * len(labels)
    return Known(np.array(labels), np.array(groups), facts, [{}] * len(labels))


def test_halves_hold_whole_groups_of_both_classes() -> None:
    labels = [0] * 40 + [1] * 10 + [1, 1, 0] * 5
    groups = [f"b{i}" for i in range(40)] + [f"m{i}" for i in range(10)] + [f"g{i // 3}" for i in range(15)]
    first = halves(known(labels, groups), 0)
    sides = {group: {bool(side) for side, name in zip(first, groups, strict=True) if name == group} for group in groups}
    assert all(len(side) == 1 for side in sides.values())
    assert first[:40].sum() == 20
    assert sum(True in sides[name] for name in set(groups[40:])) == 8  # of 15 groups with a malignant image
    assert np.array_equal(first, halves(known(labels, groups), 0))
    assert not np.array_equal(first, halves(known(labels, groups), 1))


def test_a_class_of_one_group_cannot_be_halved() -> None:
    with pytest.raises(UserError, match="--recalibrate: all malignant images are of one group"):
        halves(known([0, 0, 1, 1], ["a", "b", "c", "c"]), 0)
    with pytest.raises(UserError, match="--recalibrate: no image is malignant; leave it out"):
        halves(known([0, 0], ["a", "b"]), 0)


def test_what_is_shown_is_of_the_other_half_with_each_judgement() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [200, 100])
    logits = 3 * (rng.normal(size=300) + np.where(labels == 1, 1.2, -1.2)) - 2  # too sure, and too low
    found, of = Predictions(np.arange(300), logits, labels), known(labels.tolist(), [str(i) for i in range(300)])
    frozen = Frozen(Calibration(), Threshold(0.5, "validation", 0.9))
    told = recalibrate(frozen, found, of, EvaluationConfig(sensitivity=0.9), 0)
    shown = ~halves(of, 0)
    assert told["fitted_on"] == told["shown_on"] == {"benign": 100, "malignant": 50}
    assert told["frozen"]["sensitivity"]["value"] == (logits[shown & (labels == 1)] >= 0).mean()
    again = 1 / (1 + np.exp(-(logits[shown] / told["temperature"] + told["bias"])))
    assert told["refitted"]["sensitivity"]["value"] == (again[labels[shown] == 1] >= told["threshold"]).mean()
    assert told["refitted"]["sensitivity"]["value"] > told["frozen"]["sensitivity"]["value"]
    # These logits are 3 z - 2, and the true log-odds of z are 2.4 z - ln 2: 0.8 logit + 0.91
    assert told["temperature"] == pytest.approx(1 / 0.8, rel=0.15)
    assert told["bias"] == pytest.approx(0.91, abs=0.2)
    assert told["refitted"]["loss"] < told["frozen"]["loss"]


def test_groups_and_prevalence_count_on_the_half_that_is_shown() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile([0, 0, 1, 1], 50)
    found = Predictions(np.arange(200), rng.normal(size=200) + labels, labels)
    lesions = [str(at // 2) for at in range(200)]
    frozen = Frozen(Calibration(), Threshold(0.5, "validation", 0.9))
    told = recalibrate(frozen, found, known(labels.tolist(), lesions), EvaluationConfig(prevalence=0.02), 0)
    assert told["frozen"]["sensitivity"]["interval"] == "wilson over groups"
    assert told["frozen"]["ppv"]["interval"] == "mover"


def test_why_nothing_was_fitted_is_said() -> None:
    labels = np.array([0] * 30 + [1] * 8)
    found = Predictions(np.arange(38), np.arange(38) / 10, labels)
    frozen = Frozen(Calibration(), Threshold(0.5, "validation", 0.9))
    told = recalibrate(frozen, found, known(labels.tolist(), [str(at) for at in range(38)]), EvaluationConfig(), 0)
    assert "not calibrated: 15 benign and 4 malignant validation images" in told["note"]
