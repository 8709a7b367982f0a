"""What a threshold and a calibration fitted on half of new images would give on the other half.

It is never mixed with the frozen figures: those say what the model is worth as it is.
"""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skindist.config import EvaluationConfig
from skindist.data.scan import CLASSES
from skindist.errors import UserError
from skindist.evaluation.calibration import measures
from skindist.evaluation.frozen import Frozen, freeze
from skindist.evaluation.known import Known
from skindist.evaluation.operating_point import at_threshold
from skindist.evaluation.predictions import Predictions
from skindist.randomness import Stream, generator


def recalibrate(
    frozen: Frozen, found: Predictions, known: Known, config: EvaluationConfig, seed: int
) -> dict[str, Any]:
    """Fit on one half, show both this and the frozen judgement on the other.

    Returns:
        "fitted_on" and "shown_on", images by class; "threshold", "threshold_interval", "temperature", "bias" and
        "note" of what was fitted; "frozen" and "refitted", each with the estimates of the operating point and the
        numbers of the calibration on the half that is shown.

    Raises:
        UserError: there is no image of a class, or all are of one group, so that no half can have some of them.
    """
    first = halves(known, seed)
    fitted, shown = ((_part(found, half), _known(known, half)) for half in (first, ~first))
    new = freeze(*fitted, config, seed)
    notes = [note for note in (new.threshold.note, new.calibration.note) if note]
    return {
        "fitted_on": _counts(known.labels[first]),
        "shown_on": _counts(known.labels[~first]),
        "threshold": new.threshold.value,
        "threshold_interval": new.threshold.interval,
        "temperature": new.calibration.temperature,
        "bias": new.calibration.bias,
        "note": "; ".join(notes) or None,
        "frozen": _shown(frozen, *shown, config, seed),
        "refitted": _shown(new, *shown, config, seed),
    }


def halves(known: Known, seed: int) -> NDArray[np.bool_]:
    """Which images are in the first half, (N,): whole groups, those with a malignant image and the others dealt out
    in turn, in random order."""
    first = np.zeros(len(known.labels), np.bool_)
    malignant = set(known.groups[known.labels == 1].tolist())
    for label, names in enumerate([sorted(set(known.groups.tolist()) - malignant), sorted(malignant)]):
        order = generator(seed, Stream.HALVES, label).permutation(len(names))
        first |= np.isin(known.groups, [names[index] for index in order[::2]])
    for label, name in enumerate(CLASSES):
        of_class = known.labels == label
        if len(set(first[of_class].tolist())) < 2:
            why = (
                f"all {name} images are of one group, which cannot be halved"
                if of_class.any()
                else f"no image is {name}"
            )
            raise UserError(f"--recalibrate: {why}; leave it out")
    return first


def _shown(frozen: Frozen, found: Predictions, known: Known, config: EvaluationConfig, seed: int) -> dict[str, Any]:
    calibrated = frozen.calibration.apply(found)
    p, y = calibrated.probabilities, calibrated.labels
    point = at_threshold(p, y, frozen.threshold.value, seed, known.groups, config.prevalence)
    return {name: asdict(estimate) for name, estimate in point.items()} | measures(calibrated)


def _part(found: Predictions, members: NDArray[np.bool_]) -> Predictions:
    return Predictions(found.ids[members], found.logits[members], found.labels[members])


def _known(known: Known, members: NDArray[np.bool_]) -> Known:
    facts, metadata = list(compress(known.facts, members)), list(compress(known.metadata, members))
    return Known(known.labels[members], known.groups[members], facts, metadata)


def _counts(labels: NDArray[np.int64]) -> Mapping[str, int]:
    return {name: int((labels == label).sum()) for label, name in enumerate(CLASSES)}
