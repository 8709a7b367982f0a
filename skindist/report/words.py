"""What a run says to people, in a line or a few."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from skindist.evaluation.metrics import HEADLINES, METRICS, UNDEFINED
from skindist.evaluation.operating_point import chosen_for
from skindist.wording import plural

OTHERS = {
    "count": ",", "flipped": ".1%", "n": ",", "number_needed_to_biopsy": ".1f", "prevalence": ".1%", "share": ".1%",
    "threshold": ".3g",
}  # fmt: skip
"""How figures are printed that are no metrics of METRICS; with three decimals otherwise, and 0 without a sign."""

TITLES = {
    "change": "change of AUROC", "flipped": "called otherwise", "n": "images", "name": "pictures with",
    "number_needed_to_biopsy": "biopsies for one malignant lesion",
}  # fmt: skip
"""What they are called."""


def describe_epoch(
    epoch: int, metrics: Mapping[str, float], images_per_second: float | None, is_best: bool, counts: bool
) -> str:
    """The validation metrics of a finished epoch, and whether it is the best so far, or too early a one to be so."""
    said = [f"{metric.title} {metric.text(metrics[metric.name])}" for metric in HEADLINES]
    speed = [f"{images_per_second:.1f} images/s"] if images_per_second else []
    note = " (best so far)" if is_best else "" if counts else " (does not count yet)"
    return f"epoch {epoch}: val {', '.join(said + speed)}{note}"


def describe_results(results: Mapping[str, Any]) -> str:
    """How a run ended, and what its best epoch scores on the test set."""
    stop = results["early_stopping"]
    reason = f"{'stopped early after ' if stop['stopped_early'] else ''}{plural(stop['epochs'], 'epoch')}"
    first = stop.get("first_epoch", 1)
    early = f" (epochs before number {first} did not count)" if first > 1 else ""
    return (
        f"{reason}; best {stop['monitor']} {stop['best']:.4f} in epoch {stop['best_epoch']}{early}\n"
        f"{describe_test(results['test'], 'accuracy', 'auroc', 'sensitivity', 'specificity')}\n"
        f"{describe_operating_point(results['operating_point'])}\n{results['verdict']}"
    )


def describe_evaluation(results: Mapping[str, Any]) -> str:
    """What a saved model is worth on other images."""
    lines = [describe_test(results["test"], "accuracy", "auroc"), describe_operating_point(results["operating_point"])]
    notes = [results[key]["note"] for key in ("seen_in_training", "differences")]
    if unsaid := [note for note in notes if note[1:] not in results["verdict"]]:
        lines.append(f"training images: {'; '.join(unsaid)}")
    return "\n".join([*lines, results["verdict"]])


def describe_test(test: Mapping[str, Any], *names: str) -> str:
    """These figures of the test images."""
    said = ", ".join(describe_figure(name, test[name]) for name in names)
    return f"test, {plural(test['accuracy']['n'], 'image')}, with 95 % intervals: {said}"


def describe_ensemble(results: Mapping[str, Any]) -> str:
    """What the ensemble is worth, for the console."""
    held_out = results["val"]["auroc"]
    count = plural(held_out["n"], "image")
    where = "out of fold" if crossed(member["fold"] for member in results["members"]) else "validation"
    said = f"{where}, {count}: {describe_figure('auroc', held_out)}"
    return f"{plural(len(results['members']), 'member')}; {said}\n{results['verdict']}"


def describe_places(figures: Path, page: Path) -> str:
    """Where the figures are, and what they are worth, if that page could be drawn."""
    return f"all figures: {figures}{f'; what they are worth: {page}' if page.exists() else ''}"


def describe_operating_point(point: Mapping[str, Any]) -> str:
    """The threshold, where it comes from, and what it gives on the test images."""
    said = [describe_figure(name, point["test"][name]) for name in ("sensitivity", "specificity", "ppv", "npv")]
    biopsies = point["test"]["number_needed_to_biopsy"]["value"]
    many = f"{biopsies:.1f}" if biopsies else "an unknown number of"
    return (
        f"operating point: threshold {figure_text(point['threshold'], 'threshold')}, {origin_of_threshold(point)}\n"
        f"  on test: {', '.join(said)}; {many} images called malignant for each one that is, at "
        f"{prevalence_in_words(point)}"
    )


def prevalence_in_words(point: Mapping[str, Any]) -> str:
    """The share of malignant images for which PPV and NPV are stated."""
    if point["prevalence"] is None:
        return "the test set's own prevalence"
    return f"a prevalence of {figure_text(point['prevalence'], 'prevalence')}"


def origin_of_threshold(point: Mapping[str, Any]) -> str:
    """Where a threshold comes from: its keys "chosen", "target_sensitivity" and "note"."""
    if point["chosen"] == "validation":
        return chosen_for(point["target_sensitivity"])
    return f"fixed: {point['note'] or 'this model has no operating point of its own'}"


def describe_figure(name: str, figure: Mapping[str, Any]) -> str:
    """A metric with its interval: "AUROC 0.811 (0.766 to 0.853)"."""
    return f"{METRICS[name].title} {METRICS[name].said(figure)}"


def figure_text(value: object, name: str) -> str:
    """A figure as it is printed: a metric, or another number of results.json by its key."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return UNDEFINED
    if name in METRICS:
        return METRICS[name].text(value)
    if name == "threshold" and value > 0.999:  # which three digits would make 1
        return f"{value:.6g}"
    return f"{value:{OTHERS.get(name, 'z.3f')}}"


def title(name: str) -> str:
    """What people call a figure of results.json, by its key."""
    return METRICS[name].title if name in METRICS else TITLES.get(name, name.replace("_", " "))


def crossed(folds: Iterable[int | None]) -> bool:
    """Whether the members of an ensemble, whose folds these are, have validation images of their own: each image has
    then the word of some of them alone."""
    return len(set(folds)) > 1
