"""Several runs side by side on one page: `skindist report RUN RUN ...`. Where runs were tested on the same images, the
difference of their AUROCs has an interval of its own: both are computed on the same resamples of these images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from skindist.config import marked
from skindist.data.duplicates import connected
from skindist.errors import UserError
from skindist.evaluation import bands
from skindist.evaluation.intervals import Estimate, difference
from skindist.evaluation.metrics import METRICS, UNDEFINED
from skindist.evaluation.resampling import FEWEST, sample_of
from skindist.report import plots
from skindist.report.html import Table, attempt, render, write_page
from skindist.report.scores import Scores, read_scores
from skindist.run.folder import Run

DRAWN = 5  # ROC curves in one plot
Order = NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """One of the runs: what it is called on the page, and what it left."""

    name: str
    results: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    test: Scores | None


@dataclass(frozen=True)
class Pair:
    """Two runs, and the AUROC of the first minus that of the second, or why there is no such figure."""

    first: str
    second: str
    difference: Estimate | None
    said: str


def write_runs_page(runs: Sequence[Run], page: Path, named: bool = True) -> Path:
    """Write the page and return where.

    Args:
        named: whether it names the run folders and other local paths.

    Raises:
        UserError: a folder holds no finished run, one is given twice, or the page cannot be written there.
    """
    places = [run.path.resolve() for run in runs]
    if twice := [str(place) for place, count in Counter(places).items() if count > 1]:
        raise UserError(f"{twice[0]}: the same run twice; give other runs to compare")
    sides = [read_side(run, name) for run, name in zip(runs, names(runs, named), strict=True)]
    pairs = [compare(*two) for two in combinations(sides, 2)]
    return write_page(
        page,
        render(
            "runs.html",
            lenient=True,
            sides=sides,
            named=named,
            pairs=pairs,
            roc=draw(sides),
            metrics=list(METRICS),
            settings=different_settings(sides, named),
        ),
    )


def names(runs: Sequence[Run], named: bool) -> list[str]:
    """What to call each run: its folder, with as many parents as it takes to tell them apart, or its number."""
    if not named:
        return [f"run {number}" for number in range(1, len(runs) + 1)]
    parts = [run.path.resolve().parts for run in runs]
    depth = next(n for n in range(1, 99) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(p[-depth:]) for p in parts]


def read_side(run: Run, name: str) -> Side:
    """What a run left. Raises UserError where it is no finished run."""
    return Side(name, run.results(), attempt(run.saved_config) or {}, attempt(lambda: read_scores(run, "test")))


def compare(one: Side, other: Side) -> Pair:
    """The paired difference of two runs that were tested on the same images."""
    if one.test is None or other.test is None:
        return Pair(one.name, other.name, None, "the test predictions of one are missing")
    orders = in_one_order(one.test, other.test)
    if orders is None:
        return Pair(one.name, other.name, None, "tested on other images or labels: their figures cannot be paired")
    if not one.test.both_classes:
        return Pair(one.name, other.name, None, "AUROC takes test images of both classes")
    ordered = list(zip((one.test, other.test), orders, strict=True))
    groupings = [np.array(test.groups)[order] for test, order in ordered if test.groups]
    labels, groups = one.test.labels[orders[0]], join(groupings)
    if sample_of(labels, groups).fewest < FEWEST:
        return Pair(one.name, other.name, None, f"too few test images: it takes {FEWEST} groups of each class")
    first, second = (test.probabilities[order] for test, order in ordered)
    found = difference(first, second, labels, 0, groups)
    if found.low <= 0 <= found.high:
        said = "no clear difference"
    else:
        said = f"{one.name if found.value > 0 else other.name} is better"
    if not groupings:
        said += ", if each image stands alone: there is no split.csv to tell which belong together"
    return Pair(one.name, other.name, found, said)


def in_one_order(one: Scores, other: Scores) -> tuple[Order, Order] | None:
    """The order of each run's images, (N,), in which both have the same ones, whichever run comes first; None unless
    both tested the same images (by SHA-256, or by path where a run does not tell) with the same labels."""
    hashed = one.hashes is not None and other.hashes is not None
    keys = [np.array((s.hashes if hashed else s.paths) or ()) for s in (one, other)]
    orders = [np.lexsort((s.probabilities, s.labels, key)) for s, key in zip((one, other), keys, strict=True)]
    for here, there in (keys, (one.labels, other.labels)):
        if not np.array_equal(here[orders[0]], there[orders[1]]):
            return None
    return orders[0], orders[1]


def join(groupings: Sequence[NDArray[np.str_]]) -> NDArray[np.int64] | None:
    """The group of each image, (N,), where images belong together that do so in any of the groupings, directly or
    through others; None without a grouping."""
    if not groupings:
        return None
    joined = np.unique(groupings[0], return_inverse=True)[1]
    for grouping in groupings[1:]:  # each image ties its group in one to its group in the other
        ties = np.stack([joined, joined.size + np.unique(grouping, return_inverse=True)[1]], axis=1)
        joined = connected(ties, 2 * joined.size)[joined]
    return joined


def draw(sides: Sequence[Side]) -> Markup | None:
    """The ROC curves over each other, if they are of the same images. The plot has no room for names: it counts."""
    tests = [side.test for side in sides if side.test and side.test.both_classes]
    if len(tests) < len(sides) or len(sides) > DRAWN or any(in_one_order(tests[0], test) is None for test in tests[1:]):
        return None
    curves = [bands.roc(test.probabilities, test.labels, test.groups, 0) for test in tests]
    return plots.roc("roc", {f"run {number}": curve for number, curve in enumerate(curves, start=1)})


def different_settings(sides: Sequence[Side], named: bool) -> Table | None:
    """The settings in which those runs differ that have them; local paths only where names are wanted."""
    saved = [(section, key) for side in sides for section, values in side.settings.items() for key in values]
    rows = []
    for section, key in dict.fromkeys(saved):
        values = [str((side.settings.get(section) or {}).get(key, UNDEFINED)) for side in sides]
        if len({*values} - {UNDEFINED}) > 1 and (named or (section, key) not in marked("path")):
            rows.append([f"{section}.{key}", *values])
    return Table(["setting", *(side.name for side in sides)], rows) if rows else None
