"""The bands of the ROC and the precision-recall curve: by hand, and by how often they hold the true curve."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, norm

from skindist.evaluation.bands import GRID, Band, precision_recall, roc

SEED = 0


def drawn(seed: int, n: int = 300, skill: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images whose logits are normal, those of malignant ones (a third) higher by `skill`."""
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % 3 == 0).astype(np.int64)
    return norm.cdf(rng.normal(size=n) + skill * y), y


def test_by_hand() -> None:
    """One malignant image above both benign ones, one between them: no resample has another value at either end."""
    p, y = np.array([0.9, 0.5, 0.7, 0.1]), np.array([1, 1, 0, 0])
    band = roc(p, y, None, SEED)
    assert list(zip(band.x, band.y, strict=True)) == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    assert (band.low[0], band.high[0]) == (0, 1), "with no false alarm, none to both of the malignant are found"
    assert (band.low[-1], band.high[-1]) == (1, 1)
    curve = precision_recall(p, y, None, SEED)
    assert list(zip(curve.x, curve.y, strict=True)) == [(0.5, 1), (0.5, 0.5), (1, pytest.approx(2 / 3)), (1, 0.5)]


def test_images_that_tie_are_called_together() -> None:
    p, y = np.full(40, 0.3), np.arange(40) % 2
    band = roc(p, y, None, SEED)
    assert (band.low[:-1] == 0).all()
    assert (band.high[:-1] == 0).all()
    curve = precision_recall(p, y, None, SEED)
    ends = (binom.ppf([0.025, 0.975], 40, 0.5) / 40).repeat(GRID.size)
    assert np.concatenate([curve.low, curve.high]) == pytest.approx(ends, abs=0.03), "the share of malignant images"


@pytest.mark.parametrize("make", [roc, precision_recall])
def test_the_band_holds_what_it_is_of(make: Callable[..., Band]) -> None:
    p, y = drawn(1)
    band = make(p, y, None, SEED)
    assert ((band.low <= band.high) & (band.low >= 0) & (band.high <= 1)).all()
    again = make(p, y, None, SEED)
    assert (band.low == again.low).all()


def test_the_band_covers_the_true_curve_as_often_as_it_says() -> None:
    """At some points, over many samples; grouped images too, where a band that ignores groups is too narrow."""
    at = [10, 30, 50, 70]
    truth = norm.cdf(1.0 + norm.ppf(GRID[at]))
    single: list[Any] = []
    grouped: list[Any] = []
    ignored: list[Any] = []
    for seed in range(120):
        p, y = drawn(seed, 200)
        band = roc(p, y, None, SEED)
        single.append((band.low[at] <= truth) & (truth <= band.high[at]))
        p, y, groups = p[:100].repeat(4), y[:100].repeat(4), np.arange(100).repeat(4)
        for found, known in ((grouped, groups), (ignored, None)):
            band = roc(p, y, known, SEED)
            found.append((band.low[at] <= truth) & (truth <= band.high[at]))
    assert 0.90 < np.mean(single) < 0.99
    assert 0.89 < np.mean(grouped) < 0.99
    assert np.mean(ignored) < 0.8


def test_the_band_of_the_ppv_counts_with_another_share_of_malignant_images() -> None:
    """If all resamples have the share of the set, it holds the PPV at 90 % sensitivity in 86 of 100 such sets."""
    at = [30, 50, 70, 90]
    alarms = norm.sf(norm.isf(GRID[at]) + 1.5)
    truth = 0.3 * GRID[at] / (0.3 * GRID[at] + 0.7 * alarms)
    covered: list[Any] = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        y = (rng.random(200) < 0.3).astype(np.int64)
        band = precision_recall(norm.cdf(rng.normal(size=200) + 1.5 * y), y, None, SEED)
        covered.append((band.low[at] <= truth) & (truth <= band.high[at]))
    assert ((np.mean(covered, axis=0) > 0.89) & (np.mean(covered, axis=0) < 0.99)).all(), np.mean(covered, axis=0)
