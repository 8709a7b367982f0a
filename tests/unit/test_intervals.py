"""Intervals against hand-computed figures, a plain bootstrap and the coverage they promise."""

import math
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm

from skindist.evaluation.intervals import Estimate, difference, estimates, mean, ratio, wilson
from skindist.evaluation.metrics import METRICS

TRUE_AUROC = float(norm.cdf(1 / math.sqrt(2)))
BOOTSTRAPPED = ("loss", "balanced_accuracy", "auroc", "f1", "auprc", "partial_auroc", "brier")


def draw(n: int, seed: int, decimals: int = 17) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A classifier of n images, half of them malignant, whose AUROC in the long run is `TRUE_AUROC`."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return norm.cdf(rng.normal(labels - 0.5)).round(decimals), labels


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (920, 1000, 0.902, 0.935),
        (488, 530, 0.895, 0.941),
        (152, 165, 0.870, 0.953),
        (4, 4, 0.510, 1.0),  # 4 / (4 + 1.96 ** 2)
        (0, 4, 0.0, 0.490),
        (2, 4, 0.150, 0.850),  # 1/2 -+ 1.96 / (2 sqrt(4 + 1.96 ** 2))
    ],
)
def test_wilson_gives_the_hand_computed_figures(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-4)


@pytest.mark.parametrize(("n", "low", "high"), [(1000, 0.902, 0.935), (530, 0.894, 0.940), (165, 0.868, 0.952)])
def test_wilson_at_92_percent(n: int, low: float, high: float) -> None:
    around = [math.floor(0.92 * n), math.floor(0.92 * n) + 1]
    lows, highs = zip(*(wilson(successes, n) for successes in around), strict=True)
    interpolated = np.interp(0.92 * n, around, lows), np.interp(0.92 * n, around, highs)
    assert interpolated == pytest.approx((low, high), abs=6e-4)


def test_wilson_without_images_is_nan() -> None:
    assert all(math.isnan(end) for end in wilson(0, 0))


@pytest.mark.parametrize(("successes", "n"), [(5, 4), (1, 0), (-1, 4)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="must"):
        wilson(successes, n)


@pytest.mark.parametrize(("n", "decimals"), [(8, 1), (30, 1), (300, 2), (301, 17)])
def test_estimates_hold_the_metric_inside_the_interval(n: int, decimals: int) -> None:
    probabilities, labels = draw(n, seed=n, decimals=decimals)
    result = estimates(probabilities, labels, seed=0, resamples=500)
    assert list(result) == list(METRICS)
    for name, estimate in result.items():
        assert estimate.value == METRICS[name](probabilities, labels)
        assert estimate.low <= estimate.value <= estimate.high


def test_estimates_name_the_images_they_rest_on() -> None:
    result = estimates([0.1, 0.6, 0.2, 0.3, 0.9], [0, 0, 0, 1, 1], seed=0, resamples=10)
    assert {name: estimate.n for name, estimate in result.items()} == {
        "loss": 5,
        "accuracy": 5,
        "balanced_accuracy": 5,
        "auroc": 5,
        "sensitivity": 2,
        "specificity": 3,
        "ppv": 2,
        "npv": 3,
        "f1": 5,
        "auprc": 5,
        "partial_auroc": 5,
        "brier": 5,
        "ece": 5,
    }
    assert result["accuracy"] == Estimate(3 / 5, *wilson(3, 5), n=5, interval="wilson")
    assert result["sensitivity"] == Estimate(1 / 2, *wilson(1, 2), n=2, interval="wilson")
    assert result["specificity"] == Estimate(2 / 3, *wilson(2, 3), n=3, interval="wilson")


def test_estimates_take_the_threshold() -> None:
    probabilities, labels = [0.2, 0.8, 0.4, 0.9], [0, 0, 1, 1]
    low, high = (estimates(probabilities, labels, seed=0, threshold=threshold) for threshold in (0.3, 0.5))
    assert low["sensitivity"] == Estimate(1, *wilson(2, 2), n=2, interval="wilson")
    assert low["accuracy"] == Estimate(3 / 4, *wilson(3, 4), n=4, interval="wilson")
    assert low["balanced_accuracy"] == Estimate(3 / 4, *mean(wilson(2, 2), wilson(1, 2), (1, 1 / 2)), 4, "mover")
    assert high["balanced_accuracy"] == Estimate(1 / 2, *mean(wilson(1, 2), wilson(1, 2), (1 / 2, 1 / 2)), 4, "mover")
    assert (low["loss"], low["auroc"]) == (high["loss"], high["auroc"])


def test_bootstrap_of_few_images_gives_the_hand_computed_figures() -> None:
    # A class of 2 images is twice its worse one in 1/4 of the resamples, and counts for 0 to 4 images in 1, 4, 6, 4 and
    # 1 of 16. So the highest loss, of the worse benign image alone, is in 1/64: less than 2.5 %. The next one too.
    result = estimates([0.2, 0.8, 0.4, 0.9], [0, 0, 1, 1], seed=0)
    worst, best = -math.log(0.2**3 * 0.4) / 4, -math.log(0.8 * 0.9**3) / 4
    assert (result["loss"].low, result["loss"].high) == pytest.approx((best, worst))
    # Of the AUROC, 3/4, a resample makes 1, 3/4, 1/2 or 0 in 7, 4, 4 and 1 of 16. Their variance is 5/64, and of two
    # pairs twice as much is due: 1.2 images that stand alone vary like that.
    assert (result["auroc"].low, result["auroc"].high) == pytest.approx(wilson(0.9, 1.2), abs=0.01)
    # One of two images each: both shares are 0.5 (0.0945 to 0.9055), so their mean varies by 1 / sqrt(2) of that.
    ends = result["balanced_accuracy"].low, result["balanced_accuracy"].high
    assert ends == pytest.approx((0.5 - 0.4055 / math.sqrt(2), 0.5 + 0.4055 / math.sqrt(2)), abs=5e-4)


def test_perfect_separation_of_few_images_is_not_certain() -> None:
    """Three pairs that share no image are all ranked rightly, as three images of three that are classified rightly."""
    p, y = [0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0, 0, 0, 1, 1, 1]
    result = estimates(p, y, seed=0, resamples=100)
    auroc = result["auroc"]
    assert (auroc.value, auroc.high, auroc.n, auroc.interval) == (1, 1, 6, "wilson over resamples")
    assert auroc.low == pytest.approx(wilson(3, 3)[0])
    assert result["accuracy"].low == pytest.approx(0.610, abs=5e-4)
    wrong = estimates(p, y[::-1], seed=0, names=["auroc"])["auroc"]
    assert (wrong.value, wrong.low) == (0, 0)
    partial = result["partial_auroc"]  # 0.2 in all resamples, but for rounding errors
    assert (partial.low, partial.high) == pytest.approx((0.2 * wilson(3, 3)[0], 0.2))
    assert wrong.high == pytest.approx(wilson(0, 3)[1])


@pytest.mark.parametrize(
    ("groups", "pairs"),
    [("aabbcc", 1), ("aabcde", 2), ("abcabc", 1), ("aaaaaa", 0), ("abcdea", 2)],
)
def test_perfect_separation_of_groups_counts_pairs_that_share_none(groups: str, pairs: int) -> None:
    """The first three images are benign: "aabbcc" has benign ones in a and b, malignant ones in b and c."""
    found = estimates([0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0, 0, 0, 1, 1, 1], seed=0, groups=list(groups), names=["auroc"])
    assert found["auroc"].low == pytest.approx(wilson(pairs, pairs)[0] if pairs else 0)


def test_one_malignant_image_says_next_to_nothing_of_the_ranking() -> None:
    """Of 201 images one benign one is above it. Resamples of the benign ones alone vary by less than 0.01."""
    p, y = np.linspace(0, 1, 201), np.zeros(201, np.int64)
    y[199] = 1
    auroc = estimates(p, y, seed=0, names=["auroc"])["auroc"]
    assert auroc.value == 0.995
    assert auroc.low < 0.25


def test_the_mean_of_two_shares_gives_the_hand_computed_figures() -> None:
    assert mean((0.7, 0.9), (0.5, 0.8), (0.8, 0.6)) == pytest.approx(
        (0.7 - math.sqrt(0.02) / 2, 0.7 + math.sqrt(0.05) / 2)
    )


@pytest.mark.parametrize("decimals", [1, 17])  # with many ties, and with none
def test_bootstrap_agrees_with_a_plain_one(decimals: int) -> None:
    probabilities, labels = draw(100, seed=3, decimals=decimals)
    rng = np.random.default_rng(4)
    values: dict[str, list[float]] = {name: [] for name in BOOTSTRAPPED}
    for _ in range(1500):
        rows = rng.choice(100, 100)
        for name in BOOTSTRAPPED:
            values[name].append(METRICS[name](probabilities[rows], labels[rows]))
    result = estimates(probabilities, labels, seed=5, resamples=4000)
    for name in BOOTSTRAPPED:
        low, high = np.quantile(values[name], [0.025, 0.975])
        width = high - low
        assert (result[name].low, result[name].high) == pytest.approx((low, high), abs=0.08 * width)


def test_bootstrap_covers_the_truth_about_95_times_in_100() -> None:
    covered = 0
    for seed in range(200):
        estimate = estimates(*draw(80, seed), seed=seed, resamples=300)["auroc"]
        covered += estimate.low <= TRUE_AUROC <= estimate.high
    assert 180 <= covered <= 199


def test_intervals_cover_the_truth_of_sets_whose_share_of_malignant_images_varies() -> None:
    """If all resamples have the share of the set, they hold the loss in 84 and the Brier in 83 of 100 sets."""
    names = ("loss", "brier", "f1", "auprc", "auroc", "balanced_accuracy", "ece")

    def drawn(n: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        rng = np.random.default_rng(seed)
        labels = (rng.random(n) < 0.2).astype(np.int64)
        return expit(1.6 * (rng.normal(size=n) + 1.6 * labels - 0.8) - math.log(4)), labels  # calibrated

    truth = {name: METRICS[name](*drawn(500_000, 10**6)) for name in names}
    covered = dict.fromkeys(names, 0)
    for seed in range(200):
        for name, estimate in estimates(*drawn(200, seed), seed, 300, names=names).items():
            covered[name] += estimate.low <= truth[name] <= estimate.high
    assert covered.pop("ece") >= 170, "the true ECE is 0"
    assert all(178 <= hits <= 198 for hits in covered.values()), covered


def draw_grouped(lesions: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """One to five images of each lesion, a third of them malignant; what is odd about a lesion is so in all its
    images."""
    rng = np.random.default_rng(seed)
    of_lesion, groups = rng.random(lesions) < 1 / 3, np.arange(lesions).repeat(rng.integers(1, 6, lesions))
    labels, noise = of_lesion[groups].astype(np.int64), rng.normal(size=lesions)[groups]
    logits = 1.5 * labels - 1.2 + 0.9 * noise + math.sqrt(1 - 0.9**2) * rng.normal(size=groups.size)
    return expit(logits), labels, groups


def test_intervals_of_grouped_images_cover_the_truth_and_those_that_ignore_the_groups_do_not() -> None:
    names = tuple(name for name in METRICS if name != "ece")
    p, y, _ = draw_grouped(200_001, seed=10**6)
    truth = {name: METRICS[name](p, y) for name in names}
    covered = {grouped: dict.fromkeys(names, 0) for grouped in (True, False)}
    for seed in range(100):
        p, y, lesions = draw_grouped(150, seed)
        for grouped, hits in covered.items():
            found = estimates(p, y, seed, 300, groups=lesions if grouped else None, names=names)
            for name, estimate in found.items():
                hits[name] += estimate.low <= truth[name] <= estimate.high
    assert all(87 <= hits <= 100 for hits in covered[True].values()), covered
    assert np.mean([*covered[True].values()]) >= 92
    assert np.mean([*covered[False].values()]) <= 86, "three times as many images are not three times the evidence"


def test_the_interval_of_the_ece_ends_at_1() -> None:
    """All ten are surely malignant and one is so: the gap is 0.9. In 7 % of resamples three or more are so, and the
    gap is at most 0.7: as far above 0.9 would be 1.1."""
    found = estimates([1.0] * 10, [0] * 9 + [1], seed=0, names=["ece"])["ece"]
    assert found.value == pytest.approx(0.9)
    assert found.high == 1.0


def test_groups_change_the_intervals_but_not_the_figures() -> None:
    p, y, lesions = draw_grouped(30, seed=0)
    apart, together = estimates(p, y, 0), estimates(p, y, 0, groups=lesions)
    assert {n: (e.value, e.n) for n, e in apart.items()} == {n: (e.value, e.n) for n, e in together.items()}
    assert (together["auroc"].interval, together["sensitivity"].interval) == (
        "wilson over groups",
        "wilson over groups",
    )
    assert (apart["auroc"].interval, apart["sensitivity"].interval) == ("wilson over resamples", "wilson")
    assert (apart["ece"].interval, together["ece"].interval) == ("basic bootstrap", "basic group bootstrap")
    assert estimates(p, y, 0, groups=[f"lesion {i}" for i in range(len(y))]) == apart, "each image stands alone"


def test_a_share_of_grouped_images_that_is_0_or_1_counts_groups() -> None:
    p, y, groups = [0.1] * 6 + [0.9] * 6, [0] * 6 + [1] * 6, [*"aabbcc", *"dddeee"]
    found = estimates(p, y, seed=0, groups=groups)
    assert found["sensitivity"] == Estimate(1, *wilson(2, 2), n=6, interval="wilson over groups")
    assert found["specificity"] == Estimate(1, *wilson(3, 3), n=6, interval="wilson over groups")
    assert found["ppv"] == Estimate(1, *wilson(2, 2), n=6, interval="wilson over groups")


def test_where_no_malignant_image_is_found_the_accuracy_does_not_look_sure() -> None:
    p, y, lesions = [0.1] * 20, [0] * 17 + [1] * 3, [*range(19), 18]
    found = estimates(p, y, seed=0, groups=lesions)
    assert found["sensitivity"] == Estimate(0, *wilson(0, 2), n=3, interval="wilson over groups")
    assert found["accuracy"].low < wilson(17, 20)[0], "two of the images that are called wrongly are of one lesion"
    assert found["accuracy"].high > wilson(17, 20)[1]


@pytest.mark.parametrize(("alike", "images"), [(True, 100), (False, 500)])
def test_a_share_of_grouped_images_counts_as_many_as_do_not_repeat_each_other(alike: bool, images: int) -> None:
    """Five images of each of 100 patients, of which a patient's are all called rightly or wrongly, or in every mix."""
    rng = np.random.default_rng(0)
    right = (rng.permutation(100) < 80).repeat(5) if alike else rng.permutation(500) < 400
    found = estimates(np.where(right, 0.1, 0.9), np.zeros(500), seed=0, groups=np.arange(100).repeat(5))["accuracy"]
    assert (found.low, found.high) == pytest.approx(wilson(images * 4 // 5, images), abs=0.01)
    assert found.interval == "wilson over groups"


def test_a_share_of_images_that_stand_alone_is_wilsons_though_others_are_grouped() -> None:
    p, y, lesions = [0.1] * 20 + [0.9] * 5, [0] * 15 + [1] * 10, [0, 0, *range(2, 25)]
    found = estimates(p, y, seed=0, groups=lesions)
    assert found["sensitivity"] == Estimate(0.5, *wilson(5, 10), n=10, interval="wilson")
    assert found["specificity"].interval == "wilson over groups"
    assert found["accuracy"].low < wilson(20, 25)[0] + 0.01


def test_grouped_images_never_count_for_more_than_there_are() -> None:
    """Each lesion has one image that is called rightly: resamples show no more spread than four tosses."""
    p, y = [0.1, 0.9] * 10 + [0.1], [0] * 21
    found = estimates(p, y, seed=0, groups=[*np.arange(10).repeat(2), 10])["specificity"]
    low, high = wilson(11, 21)
    assert found.low <= low + 1e-9
    assert found.high >= high - 1e-9


def test_wilson_takes_shares_of_numbers_that_are_not_whole() -> None:
    """By hand, for 3 of 4.5: z = 1.959964; (2/3 + z^2/9) / (1 + z^2/4.5) +- ..."""
    z, n, share = 1.959963985, 4.5, 2 / 3
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert wilson(3, 4.5) == pytest.approx(((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)))


def test_the_accuracy_of_grouped_images_counts_with_another_share_of_malignant_ones() -> None:
    """One in five malignant images is found, nearly no benign one is wrong, and one image has a copy."""
    rng, covered = np.random.default_rng(0), 0
    for seed in range(100):
        y = (rng.random(200) < 0.2).astype(int)
        p = np.where(rng.random(200) < np.where(y == 1, 0.2, 0.02), 0.9, 0.1)
        accuracy = estimates(p, y, seed, 300, groups=[0, 0, *range(198)], names=["accuracy"])["accuracy"]
        covered += accuracy.low <= 0.2 * 0.2 + 0.8 * 0.98 <= accuracy.high
    assert 90 <= covered <= 99


def test_a_group_may_hold_both_classes() -> None:
    """A patient with a benign and a malignant lesion is drawn as a whole."""
    p, y, patients = [0.2, 0.8, 0.4, 0.9, 0.1, 0.3], [0, 0, 1, 1, 0, 1], [*"aabbcc"]
    found = estimates(p, y, seed=0, groups=patients)
    assert found["auroc"].low <= found["auroc"].value <= found["auroc"].high
    assert not any(math.isnan(x) for e in found.values() for x in (e.value, e.low, e.high))


@pytest.mark.parametrize("name", ["ppv", "npv"])
def test_predictive_values_at_a_prevalence_have_the_interval_of_the_ratio(name: str) -> None:
    """Against a parametric bootstrap of sensitivity and specificity, which are independent."""
    probabilities = np.array([0.2] * 170 + [0.8] * 30 + [0.2] * 10 + [0.8] * 70)
    labels = np.array([0] * 200 + [1] * 80)
    found = estimates(probabilities, labels, seed=0, prevalence=0.05, names=[name])[name]
    rng = np.random.default_rng(0)
    hit, right = rng.binomial(80, 70 / 80, 100_000) / 80, rng.binomial(200, 170 / 200, 100_000) / 200
    parts = (hit * 0.05, (1 - right) * 0.95) if name == "ppv" else (right * 0.95, (1 - hit) * 0.05)
    low, high = np.quantile(parts[0] / (parts[0] + parts[1]), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert found.interval == "mover"


def test_no_false_alarm_in_few_images_does_not_make_the_ppv_certain() -> None:
    found = estimates([0.1] * 20 + [0.9] * 5, [0] * 20 + [1] * 5, seed=0, prevalence=0.02, names=["ppv", "npv"])
    assert (found["ppv"].value, found["ppv"].high) == (1, 1)
    assert found["ppv"].low < 0.15, "at 2 %, with up to 16 % false alarms"
    assert found["npv"].low < found["npv"].value == 1


def test_the_ratio_gives_the_hand_computed_figures() -> None:
    low, high = ratio((0.5, 0.8), (0.2, 0.4), (0.7, 0.3))
    assert low == pytest.approx((0.21 - math.sqrt(0.21**2 - 0.5 * 0.4 * 0.9 * 0.2)) / (0.4 * 0.2))
    assert high == pytest.approx((0.21 + math.sqrt(0.21**2 - 0.8 * 0.2 * 0.6 * 0.4)) / (0.2 * 0.4))
    assert ratio((0.5, 0.8), (0.0, 0.4), (0.7, 0.0))[1] == math.inf


def test_the_paired_difference_is_that_of_the_same_resamples() -> None:
    probabilities, labels = draw(200, seed=2)
    same = difference(probabilities, probabilities**3, labels, seed=0)
    assert (same.value, same.low, same.high) == (0, 0, 0), "the same order of the images"
    other, _ = draw(200, seed=3)
    apart = difference(probabilities, other, labels, seed=0)
    assert apart.low < apart.value < apart.high
    assert apart.interval == "bootstrap"
    assert difference(probabilities, other, labels, 0, np.arange(200) // 4 * 2 + labels).interval == "group bootstrap"
    rng, drawn = np.random.default_rng(1), []
    for _ in range(2000):
        rows = np.concatenate([rng.choice(np.flatnonzero(labels == label), 100) for label in (0, 1)])
        drawn.append(METRICS["auroc"](probabilities[rows], labels[rows]) - METRICS["auroc"](other[rows], labels[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (apart.low, apart.high) == pytest.approx((low, high), abs=0.08 * (high - low))


def test_the_seed_decides_the_intervals() -> None:
    probabilities, labels = draw(60, seed=1)
    first = estimates(probabilities, labels, seed=2, resamples=200)
    assert estimates(probabilities, labels, seed=2, resamples=200) == first
    assert estimates(probabilities, labels, seed=3, resamples=200)["auroc"] != first["auroc"]


def test_the_order_of_the_images_does_not_matter() -> None:
    probabilities, labels = draw(60, seed=1)
    forwards = estimates(probabilities, labels, seed=2, resamples=200)
    backwards = estimates(probabilities[::-1], labels[::-1], seed=2, resamples=200)
    assert backwards["auroc"].low == pytest.approx(forwards["auroc"].low)
    assert backwards["loss"].high == pytest.approx(forwards["loss"].high)


def test_intervals_narrow_with_more_images() -> None:
    few, many = (estimates(*draw(n, seed=1), seed=0, resamples=300) for n in (50, 1000))
    assert all(many[name].high - many[name].low < few[name].high - few[name].low for name in METRICS)


@pytest.mark.parametrize(
    ("labels", "undefined"),
    [
        ([0, 0, 0], {"balanced_accuracy", "auroc", "sensitivity", "ppv", "f1", "auprc", "partial_auroc"}),
        ([1, 1, 1], {"balanced_accuracy", "auroc", "specificity", "npv", "partial_auroc"}),
        ([], set(METRICS)),
    ],
)
def test_an_absent_class_makes_nan(labels: list[int], undefined: set[str]) -> None:
    probabilities = [0.2, 0.3, 0.4] if labels == [0, 0, 0] else [0.6, 0.7, 0.8]
    result = estimates(probabilities[: len(labels)], labels, seed=0, resamples=50)
    for name, estimate in result.items():
        assert [math.isnan(x) for x in (estimate.value, estimate.low, estimate.high)] == [name in undefined] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1], [0, 1], 0), "shape"),
        (([0.1, math.nan], [0, 1], 0), "finite"),
        (([0.1, 0.9], [0, 3], 0), "labels"),
        (([0.1, 0.9], [0, 1], 0, 0), "resamples"),
    ],
)
def test_estimates_refuse_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimates(*arguments)


def test_memory_is_bounded_and_time_short() -> None:
    probabilities, labels = draw(10_000, seed=0)
    tracemalloc.start()
    start = time.perf_counter()
    estimates(probabilities, labels, seed=0, resamples=400)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6  # the resamples at once would be 32 MB in each array
    assert seconds < 10  # loose, for a busy machine: 0.3 on an idle one
