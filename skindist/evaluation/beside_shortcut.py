"""The model beside the baseline that never sees the lesion, on the same test images: is it better than the shortcut?"""

from dataclasses import asdict
from typing import Any

import numpy as np

from skindist.evaluation.intervals import Estimate, auroc_of, difference
from skindist.evaluation.known import OTHER, UNKNOWN, Known
from skindist.evaluation.metrics import METRICS
from skindist.evaluation.predictions import Predictions
from skindist.evaluation.resampling import FEWEST
from skindist.evaluation.shortcut import shortcut_of_test

BETTER, NOT_BETTER, UNTOLD = (
    "clearly better than the shortcut", "not clearly better than the shortcut", "cannot be told",
)  # fmt: skip
STRONG = 0.7  # AUROC: a baseline that surely scores more explains much of any model's
PART = "but the shortcut is strong here, and part of the model's AUROC may come from it"


def compare_with_shortcut(test: Predictions, known: Known, train: Known | str, seed: int) -> dict[str, Any]:
    """The baseline that never sees the lesion, beside the model on the same test images.

    Args:
        train: what is known of the images to train it on; else why there are none.
    """
    within = within_sources(test, known, seed)
    baseline = train if isinstance(train, str) else shortcut_of_test(train, known, seed)
    if isinstance(baseline, str):
        nothing: dict[str, Any] = {"auroc": None, "difference": None, "families": {}, "within_source": within}
        return nothing | {"verdict": UNTOLD, "note": baseline}
    everything = baseline.pop("all")
    own, its = (auroc_of(p, test.labels, seed, known.groups) for p in (test.probabilities, everything))
    gain = difference(test.probabilities, everything, test.labels, seed, known.groups)
    why = why_not_better(own, its, gain, within)
    return {
        "auroc": asdict(its),
        "difference": asdict(gain),
        "families": {name: METRICS["auroc"](p, test.labels) for name, p in baseline.items()},
        "within_source": within,
        "verdict": NOT_BETTER if why else BETTER,
        "note": why or (PART if its.low > STRONG else None),
    }


def within_sources(test: Predictions, known: Known, seed: int) -> list[dict[str, Any]]:
    """The model's AUROC among the images of each source: it cannot come from what tells the sources apart."""
    sources = known.sources()
    rows: list[dict[str, Any]] = []
    for source in sorted(set(sources.tolist())) if sources is not None else []:
        members = np.flatnonzero(sources == source)
        p, y = test.probabilities[members], test.labels[members]
        enough = min(int((y == label).sum()) for label in (0, 1)) >= FEWEST
        auroc = asdict(auroc_of(p, y, seed, known.groups[members])) if enough else None
        rows.append({"source": source, "n": len(members), "malignant": int(y.sum()), "auroc": auroc})
    return rows


def why_not_better(own: Estimate, its: Estimate, gain: Estimate, within: list[dict[str, Any]]) -> str | None:
    """Why a model is not clearly better than the shortcut; None if it is.

    Three things are asked of it: an AUROC surely above chance; one surely above the baseline's, on the same images;
    and, among images of one source, at least half of what it is above chance in all.
    """
    if own.high < 0.5:
        return "the model itself is surely below chance: labels may be swapped, or these images may be of another kind"
    if own.low <= 0.5:
        return "the model itself is not surely above chance"
    if gain.high < 0:
        return f"the shortcut is better, by {-gain.value:.3f} ({-gain.high:.3f} to {-gain.low:.3f})"
    if gain.low <= 0:
        return f"the difference of {gain.value:.3f} ({gain.low:.3f} to {gain.high:.3f}) may be chance"
    told = [row for row in within if row["auroc"] and row["source"] not in (OTHER, UNKNOWN)]  # these are several
    if told:
        pairs = np.array([row["malignant"] * (row["n"] - row["malignant"]) for row in told], np.float64)
        mean = float(pairs @ np.array([row["auroc"]["value"] for row in told])) / pairs.sum()
        if mean - 0.5 < (own.value - 0.5) / 2:
            return f"among images of one source its AUROC is only {mean:.2f}: what it knows may be the source"
    return None
