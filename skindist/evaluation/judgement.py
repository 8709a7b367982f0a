"""The judgement of a trained model: what it is worth on the test images, in figures and in two sentences.

It takes to them what `frozen.freeze` has fixed on validation. Pure functions of predictions and of what is known of the
images: no network, no file, no process.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from skindist.config import EvaluationConfig
from skindist.evaluation.beside_shortcut import UNTOLD, compare_with_shortcut
from skindist.evaluation.calibration import describe_calibration
from skindist.evaluation.counts import Labels, Probabilities
from skindist.evaluation.frozen import Frozen
from skindist.evaluation.intervals import estimates
from skindist.evaluation.known import Known
from skindist.evaluation.metrics import DEFAULT_THRESHOLD, METRICS
from skindist.evaluation.operating_point import at_threshold, chosen_for, confusion_matrix
from skindist.evaluation.predictions import Predictions
from skindist.evaluation.resampling import Groups
from skindist.evaluation.subgroups import subgroups
from skindist.wording import plural


def judge(
    frozen: Frozen,
    validation: tuple[Predictions, Known] | None,
    test: tuple[Predictions, Known],
    train: Known | str,
    config: EvaluationConfig,
    seed: int,
) -> dict[str, Any]:
    """What results.json says of a model: the parts "val", "test", "operating_point", "calibration", "subgroups",
    "shortcut" and "verdict", as the page on the run folder describes them.

    Args:
        frozen: what was fixed on validation.
        validation: predictions as the model gives them, and what is known of the images; None: not at hand.
        test: the same of the test images.
        train: what is known of the training images, for the shortcut baseline; else why it has none.
        config: the prevalence at which PPV and NPV are stated.
        seed: of all resampling.
    """
    parts = {"test": test} | ({"val": validation} if validation else {})
    found: dict[str, Any] = {}
    points: dict[str, Any] = {}
    for name, (predictions, known) in parts.items():
        calibrated, groups = frozen.calibration.apply(predictions), known.groups
        p, y = calibrated.probabilities, calibrated.labels
        found[name] = figures(p, y, DEFAULT_THRESHOLD, seed, groups, config.prevalence)
        at = at_threshold(p, y, frozen.threshold.value, seed, groups, config.prevalence)
        points[name] = {name: asdict(estimate) for name, estimate in at.items()}
    calibrated, known = frozen.calibration.apply(test[0]), test[1]
    found |= {
        "operating_point": {
            "threshold": frozen.threshold.value,
            "chosen": frozen.threshold.chosen,
            "target_sensitivity": frozen.threshold.target_sensitivity,
            "threshold_interval": frozen.threshold.interval,
            "note": frozen.threshold.note,
            "prevalence": config.prevalence,
            "validation": points.get("val"),
            "test": points["test"],
        },
        "calibration": describe_calibration(frozen.calibration, test[0]),
        "subgroups": subgroups(calibrated, known, frozen.threshold.value, seed),
        "shortcut": compare_with_shortcut(calibrated, known, train, seed),
    }
    return found | {"verdict": verdict(found)}


def figures(
    p: Probabilities,
    y: Labels,
    threshold: float,
    seed: int,
    groups: Groups | None = None,
    prevalence: float | None = None,
) -> dict[str, Any]:
    """Every metric by name with its interval, the confusion matrix, and the threshold that both are at."""
    found = estimates(p, y, seed, threshold=threshold, groups=groups, prevalence=prevalence)
    metrics = {name: asdict(estimate) for name, estimate in found.items()}
    return {**metrics, "confusion_matrix": confusion_matrix(p, y, threshold), "threshold": threshold}


def verdict(found: Mapping[str, Any]) -> str:
    """Two plain sentences on the figures of the test images: how well they are told apart, and whether that may come
    from something else than the lesions."""
    test, point, shortcut = found["test"], found["operating_point"], found["shortcut"]
    n, hit = test["auroc"]["n"], point["test"]
    if math.isnan(test["auroc"]["value"]):
        return (
            f"The test set holds {plural(n, 'image')}, all of one class, so nothing can be said of how well the model "
            "tells malignant from benign. Whether it is better than a shortcut cannot be told."
        )
    chosen = point["chosen"] == "validation"
    origin = chosen_for(point["target_sensitivity"]) if chosen else f"fixed at {point['threshold']:.6g}"
    first = (
        f"On {plural(n, 'test image')} the model has an AUROC of {METRICS['auroc'].said(test['auroc'])}; with the "
        f"threshold {origin} it finds {METRICS['sensitivity'].said(hit['sensitivity'])} of the malignant ones and "
        f"clears {METRICS['specificity'].said(hit['specificity'])} of the benign ones."
    )
    if shortcut["verdict"] == UNTOLD:
        return f"{first} Whether it is better than a shortcut cannot be told: {shortcut['note']}."
    its = METRICS["auroc"].said(shortcut["auroc"])
    second = f"It is {shortcut['verdict']}: a model that never looks at the lesion has an AUROC of {its} there"
    return f"{first} {second}{'; ' + shortcut['note'] if shortcut['note'] else ''}."
