"""Subgroups: the same figures among the images of one age band, sex, site, skin tone, source or size."""

from dataclasses import asdict
from typing import Any

from skindist.evaluation.intervals import Estimate, estimates
from skindist.evaluation.known import Known
from skindist.evaluation.predictions import Predictions
from skindist.evaluation.resampling import FEWEST

NEEDS = {"auroc": (0, 1), "sensitivity": (1,), "specificity": (0,)}  # figures, and the classes that they rest on


def subgroups(test: Predictions, known: Known, threshold: float, seed: int) -> list[dict[str, Any]]:
    """Each value of each column, in the order of the columns and values, with its figures at the threshold.

    A figure that rests on fewer than FEWEST images of a class is None, and the note is then "too few".
    """
    rows = []
    for column, values in known.columns().items():
        for value in sorted(set(values.tolist())):
            members = values == value
            counts = [int((test.labels[members] == label).sum()) for label in (0, 1)]
            names = [name for name, needed in NEEDS.items() if all(counts[label] >= FEWEST for label in needed)]
            found: dict[str, Estimate] = estimates(
                test.probabilities[members],
                test.labels[members],
                seed,
                threshold=threshold,
                groups=known.groups[members],
                names=names,
            )
            figures = {name: asdict(found[name]) if name in found else None for name in NEEDS}
            note = None if len(names) == len(NEEDS) else "too few"
            rows.append(
                {"column": column, "value": value, "n": sum(counts), "malignant": counts[1], **figures, "note": note}
            )
    return rows
