"""The operating point against hand-computed ones, and each case in which there is little to choose from."""

import math

import numpy as np
import pytest

from skindist.evaluation.intervals import Estimate, estimates, wilson
from skindist.evaluation.operating_point import Threshold, at_threshold, choose_threshold


def choose(malignant: list[float], benign: list[float], target: float, groups: list[str] | None = None) -> Threshold:
    p, y = np.array(malignant + benign), np.array([1] * len(malignant) + [0] * len(benign))
    return choose_threshold(p, y, target, 0, groups)


TWENTY = [(index + 1) / 25 for index in range(20)]  # 0.04 to 0.80


@pytest.mark.parametrize(
    ("target", "value"),
    [(0.95, 0.06), (0.951, 0.03), (0.9, 0.10), (0.5, 0.42), (0.01, 0.78), (1.0, 0.03)],
)
def test_the_threshold_reaches_the_target_and_calls_no_more_malignant(target: float, value: float) -> None:
    """Of 20 malignant images, 19 are 95 %: the threshold lies between the lowest two."""
    found = choose(TWENTY, [0.02, 0.9], target)
    assert found.value == pytest.approx(value)
    assert (found.chosen, found.target_sensitivity) == ("validation", target)
    p, y = np.array([*TWENTY, 0.02]), np.array([1] * 20 + [0])
    assert estimates(p, y, 0, threshold=found.value)["sensitivity"].value >= target
    beyond = np.nextafter(min(score for score in TWENTY if score > value), 1)
    assert estimates(p, y, 0, threshold=beyond)["sensitivity"].value < target


def test_no_image_lies_at_the_threshold() -> None:
    """A benign image lies next below the malignant one; without any image below, it is 0."""
    assert choose([0.4, 0.8], [0.1, 0.3], 1.0).value == pytest.approx(0.35)
    assert choose([0.4, 0.8], [0.9], 1.0).value == pytest.approx(0.2)
    assert choose([0.4, 0.8], [0.4], 1.0).value == pytest.approx(0.2), "a tie is no lower one"


def test_there_is_no_number_between_two_neighbours() -> None:
    lower, score = np.nextafter(0.4, 0), 0.4
    assert choose([score], [lower], 1.0).value == score


def test_55_of_100_images_are_55_percent() -> None:
    """Though 0.55 * 100 is a little more than 55 to a computer."""
    assert choose([(index + 1) / 100 for index in range(100)], [0.001], 0.55).value == pytest.approx(0.455)


def test_the_order_of_the_images_does_not_matter() -> None:
    assert choose(TWENTY[::-1], [0.9, 0.02], 0.95).value == choose(TWENTY, [0.02, 0.9], 0.95).value


def test_the_interval_is_that_of_the_quantile() -> None:
    """The 95th highest of 100: which image has that place in a resample is binomial, within about 4 places."""
    scores = [(index + 1) / 100 for index in range(100)]
    found = choose(scores, [0.001], 0.95)
    assert found.interval is not None
    low, high = found.interval
    assert found.value == pytest.approx(0.055)
    assert (low, high) == pytest.approx((0.02, 0.11), abs=0.011)
    few = choose(scores[::10], [0.001], 0.95).interval
    assert few is not None
    assert few[1] - few[0] > 2 * (high - low)


def test_few_malignant_images_or_groups_have_no_interval() -> None:
    assert choose(TWENTY[:10], [0.001], 0.9).interval is not None
    assert choose(TWENTY[:9], [0.001], 0.9).interval is None
    assert choose(TWENTY, [0.001], 0.9, [str(index // 3) for index in range(21)]).interval is None
    assert choose(TWENTY[:1], [0.001], 0.9).note is not None
    assert str(choose(TWENTY[:1], [0.001], 0.9).note).startswith("only 1 malignant validation image: ")


def test_the_interval_resamples_groups() -> None:
    scores = [(index + 1) / 100 for index in range(100)]
    apart = choose(scores, [0.001], 0.8).interval
    together = choose(scores, [0.001], 0.8, [str(index // 10) for index in range(101)]).interval
    assert apart is not None
    assert together is not None
    assert together[1] - together[0] > 1.5 * (apart[1] - apart[0])


def test_ties_are_called_malignant_together_and_said() -> None:
    found = choose([0.3] * 10 + [0.6] * 20, [0.1], 0.7)
    assert found.value == pytest.approx(0.2)
    assert found.note == "10 malignant validation images tie right above the threshold, so the target is exceeded"


def test_few_malignant_images_are_said() -> None:
    note = choose(TWENTY[:6], [0.02], 0.95).note
    assert note is not None
    assert note.startswith("only 6 malignant validation images: to reach the target none may be missed")
    assert choose(TWENTY, [0.02], 0.95).note is None
    assert choose(TWENTY, [0.02], 1.0).note is None, "that none may be missed is what was asked for"


def test_a_target_that_costs_everything_is_said() -> None:
    assert choose([0.1, 0.5], [0.2, 0.3], 0.5).note is None
    note = choose([0.1] + [0.5] * 19, [0.2, 0.3], 0.99).note
    assert note is not None
    assert note.endswith("the target is reached only by calling every validation image malignant")


def test_no_malignant_image_leaves_the_threshold_at_one_half() -> None:
    found = choose([], [0.2, 0.3], 0.95)
    assert found == Threshold(
        0.5, "fixed", 0.95, None, "no validation image is malignant: no threshold can be chosen, 0.5 is taken"
    )
    assert choose([], [], 0.95) == found


def test_no_benign_image_is_said() -> None:
    found = choose(TWENTY, [], 0.95)
    assert found.value == pytest.approx(0.06)
    assert found.chosen == "validation"
    assert found.note == "no validation image is benign: what the threshold costs in specificity is unknown"


def test_what_the_threshold_gives() -> None:
    p, y = np.array([0.1, 0.4, 0.6, 0.2, 0.5, 0.9]), np.array([0, 0, 0, 1, 1, 1])
    found = at_threshold(p, y, 0.4, seed=0)
    assert found["sensitivity"] == Estimate(2 / 3, *wilson(2, 3), n=3, interval="wilson")
    assert found["ppv"] == Estimate(2 / 4, *wilson(2, 4), n=4, interval="wilson")
    low, high = wilson(2, 4)
    assert found["number_needed_to_biopsy"] == Estimate(2, 1 / high, 1 / low, n=4, interval="wilson")
    rare = at_threshold(p, y, 0.4, seed=0, prevalence=0.01)
    assert rare["ppv"].value == pytest.approx(2 / 3 * 0.01 / (2 / 3 * 0.01 + 2 / 3 * 0.99))
    assert rare["number_needed_to_biopsy"].value == pytest.approx(100)
    assert (rare["sensitivity"], rare["specificity"]) == (found["sensitivity"], found["specificity"])


def test_what_cannot_be_said_of_a_threshold_is_nan_or_infinite() -> None:
    p, y = np.array([0.1, 0.4, 0.6]), np.array([0, 0, 0])
    found = at_threshold(p, y, 0.5, seed=0)
    assert math.isnan(found["sensitivity"].value)
    assert found["ppv"].value == 0
    assert found["number_needed_to_biopsy"].value == math.inf, "no biopsy finds anything"
    assert math.isnan(at_threshold(p, y, 0.9, seed=0)["number_needed_to_biopsy"].value), "there is no biopsy"
