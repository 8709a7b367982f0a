"""The stress test: what each disturbance does to pixels, that it depends on nothing but its key, and its figures."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from skindist.evaluation.calibration import Calibration
from skindist.evaluation.frozen import Frozen
from skindist.evaluation.known import Known
from skindist.evaluation.operating_point import Threshold
from skindist.evaluation.predictions import Predictions
from skindist.evaluation.stress import DISTURBANCES, Pixels, disturb, painted, stress_of


def grey(side: int = 64, value: int = 100) -> Pixels:
    return np.full((side, side, 3), value, np.uint8)


def noise(side: int = 64) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)


@pytest.mark.parametrize("name", DISTURBANCES)
@pytest.mark.parametrize("side", [32, 96])
def test_each_changes_the_picture_and_neither_its_shape_nor_its_original(name: str, side: int) -> None:
    picture = noise(side)
    kept = picture.copy()
    found = disturb(picture, name, 0, 0)
    assert found.shape == picture.shape
    assert found.dtype == np.uint8
    assert not np.array_equal(found, picture)
    assert np.array_equal(picture, kept)


@pytest.mark.parametrize("name", DISTURBANCES)
def test_each_is_a_function_of_seed_and_sample(name: str) -> None:
    first = disturb(noise(), name, 0, 5)
    for other in DISTURBANCES:
        disturb(noise(), other, 3, 1)  # whatever was drawn before
    assert np.array_equal(disturb(noise(), name, 0, 5), first)


@pytest.mark.parametrize("name", ["ink", "ruler", "dark corners", "hair", "shifted crop"])
def test_two_samples_are_disturbed_in_two_ways(name: str) -> None:
    assert not np.array_equal(disturb(noise(), name, 0, 1), disturb(noise(), name, 0, 2))
    assert not np.array_equal(disturb(noise(), name, 0, 1), disturb(noise(), name, 1, 1))


def test_light_and_colour_by_hand() -> None:
    assert disturb(grey(value=100), "darker light", 0, 0).tolist() == grey(value=60).tolist()
    casts = {tuple(disturb(grey(value=100), "colour cast", 0, sample)[0, 0].tolist()) for sample in range(20)}
    assert casts == {(110, 100, 90), (90, 100, 110)}
    assert disturb(grey(value=250), "colour cast", 0, 0).max() == 255  # cut off, not wrapped around


def test_dark_corners_are_black_and_the_middle_is_as_it_was() -> None:
    found = disturb(grey(64), "dark corners", 0, 0)
    assert found[0, 0].tolist() == found[-1, -1].tolist() == [0, 0, 0]
    assert (found[16:48, 16:48] == 100).all()


def test_a_ruler_lies_along_one_edge() -> None:
    changed = (disturb(grey(112), "ruler", 0, 0) != 100).any(axis=2)
    edges = [changed[:16].any(), changed[-16:].any(), changed[:, :16].any(), changed[:, -16:].any()]
    assert any(edges)
    assert not changed[20:-20, 20:-20].any()


def test_ink_is_violet_and_leaves_the_middle_alone() -> None:
    found = disturb(grey(112, 200), "ink", 0, 0)
    assert (found[40:72, 40:72] == 200).all()
    red, green, blue = found[(found != 200).any(axis=2)].mean(axis=0)
    assert blue > red > green


def test_hair_is_thin_and_dark() -> None:
    changed = (disturb(grey(112, 200), "hair", 0, 0) != 200).any(axis=2)
    assert 0.02 < changed.mean() < 0.25


def test_a_shifted_crop_of_a_flat_picture_is_the_picture() -> None:
    assert np.array_equal(disturb(grey(), "shifted crop", 0, 0), grey())


def test_a_line_covers_what_it_crosses_and_nothing_else() -> None:
    found = painted(grey(16), [[(0.0, 8.0), (16.0, 8.0)]], 4, (0, 0, 0), 0.5)
    assert found[8, 8].tolist() == [50, 50, 50]
    assert (found[:5] == 100).all()
    assert (found[12:] == 100).all()


def test_figures_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    plain = Predictions(np.arange(5), np.array([-3.0, -2.0, -1.0, 1.0, 2.0]), labels)
    changed = Predictions(np.arange(5), np.array([-3.0, 3.0, -1.0, -2.0, 2.0]), labels)
    frozen = Frozen(Calibration(), Threshold(0.5, "fixed", 0.95))
    known = Known(labels, np.arange(5).astype(str), [], [])
    (same, other) = stress_of(frozen, plain, {"nothing": plain, "hair": changed}, known, 0)
    assert (same["name"], same["flipped"], same["change"]["value"], same["n"]) == ("nothing", 0, 0, 5)
    assert (same["change"]["low"], same["change"]["high"]) == (0, 0)
    assert other["flipped"] == 2 / 5  # the second and the fourth
    assert (other["sensitivity"], other["specificity"]) == (1 / 2, 2 / 3)
    assert other["auroc"]["value"] == roc_auc_score(labels, changed.logits) == 3 / 6
    assert other["change"]["value"] == 3 / 6 - 1
    assert other["change"]["low"] <= -0.5 <= other["change"]["high"] <= 0
