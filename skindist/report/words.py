"""What a run says to people, in a line or a few."""

import math
from collections.abc import Mapping
from typing import Any

from skindist.evaluation.metrics import HEADLINES, METRICS
from skindist.wording import plural

UNDEFINED = "\u2013"  # a dash
OTHERS = {
    "count": ",",
    "number_needed_to_biopsy": ".1f",
    "npv": ".1%",
    "ppv": ".1%",
    "prevalence": ".1%",
    "share": ".1%",
}
"""How figures are printed that are no metrics of METRICS; with three decimals otherwise."""


def describe_epoch(epoch: int, metrics: Mapping[str, float], images_per_second: float | None, is_best: bool) -> str:
    """The validation metrics of a finished epoch."""
    said = [f"{metric.title} {metric.text(metrics[metric.name])}" for metric in HEADLINES]
    speed = [f"{images_per_second:.1f} images/s"] if images_per_second else []
    return f"epoch {epoch}: val {', '.join(said + speed)}{' (best so far)' if is_best else ''}"


def describe_results(results: Mapping[str, Any]) -> str:
    """How a run ended, and what its best epoch scores on the test set."""
    stop, test = results["early_stopping"], results["test"]
    reason = f"{'stopped early after ' if stop['stopped_early'] else ''}{plural(stop['epochs'], 'epoch')}"
    said = [describe_figure(name, test[name]) for name in ("accuracy", "auroc", "sensitivity", "specificity")]
    return (
        f"{reason}; best {stop['monitor']} {stop['best']:.4f} in epoch {stop['best_epoch']}\n"
        f"test, {plural(test['accuracy']['n'], 'image')}, with 95 % intervals: {', '.join(said)}"
    )


def describe_figure(name: str, figure: Mapping[str, float]) -> str:
    """A metric with its interval: "AUROC 0.811 (0.766 to 0.853)"."""
    value, low, high = (METRICS[name].text(figure[part]) for part in ("value", "low", "high"))
    return f"{METRICS[name].title} {value} ({low} to {high})"


def figure_text(value: object, name: str) -> str:
    """A figure as it is printed: a metric, or another number of results.json by its key; a dash where it is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return UNDEFINED
    return METRICS[name].text(value) if name in METRICS else f"{value:{OTHERS.get(name, '.3f')}}"
