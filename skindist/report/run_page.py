"""The page of a run: what its test figures are worth, for a clinician and an engineer, as one HTML file.

`skindist report RUN` writes it, and so does every run at its end. Only what the run folder holds is shown; a part that
is missing there (the run is older, or its test set has one class only) is one sentence on the page.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from skindist.data.split import PARTS, leaked
from skindist.evaluation import bands
from skindist.evaluation.metrics import DEFAULT_THRESHOLD, METRICS
from skindist.evaluation.operating_point import confusion_matrix
from skindist.report import history, plots
from skindist.report.html import Table, attempt, render, thumbnail, write_page
from skindist.report.mistakes import mistakes
from skindist.report.scores import Scores, read_scores
from skindist.report.words import crossed, figure_text, title
from skindist.run.folder import Run

WIDE = 1280  # pixels of a picture over the whole width of the page
FigureRow = tuple[str, Mapping[str, Any], float | None]
log = logging.getLogger("skindist")


def write_run_page(run: Run, page: Path | None = None, pictures: bool = True) -> Path:
    """Write the page, to `report.html` in the run folder unless told otherwise; return where.

    Args:
        pictures: whether it shows pictures of patients, and names files and folders.

    Raises:
        UserError: the folder holds no finished run, or the page cannot be written there.
    """
    return write_page(page or run.report, run_page(run, pictures))


def draw_run_page(run: Run) -> None:
    """Write the page of a run that has just ended. The run is whole without it: a failure is said, and no more."""
    try:
        write_run_page(run)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        log.warning(f"the page could not be drawn ({what}); skindist report {run.path} tries again")


def run_page(run: Run, pictures: bool = True) -> str:
    """The page as HTML. Raises UserError where the folder holds no finished run."""
    results = run.results()
    settings = attempt(run.saved_config) or {}
    test = attempt(lambda: read_scores(run, "test"))
    point = results.get("operating_point", {})
    threshold, prevalence = point.get("threshold", DEFAULT_THRESHOLD), point.get("prevalence")
    data_folder = (settings.get("data") or {}).get("path")
    events = attempt(run.metrics) or []
    cases = mistakes(run, test, threshold, Path(data_folder) if data_folder else None) if test and pictures else []
    return render(
        "run.html",
        script="threshold.js",
        lenient=True,
        results=results,
        name=run.path.resolve().name if pictures else None,
        model=(settings.get("model") or {}).get("name", "a model"),
        pictures=pictures,
        matrix=confusion_matrix(test.probabilities, test.labels, threshold) if test else None,
        cases=cases,
        shown=any(case.thumbnail for _, members in cases for case in members),
        explained=any(case.explained for _, members in cases for case in members),
        figures=figure_rows(results.get("test", {}), benign := all_benign(test, prevalence)),
        benign_baseline=benign,
        test_read=test is not None,
        grouped=test is not None and test.groups is not None,
        scores=held_by_the_page(test, point) if test and test.both_classes else None,
        drawn=draw(results, test, events),
        fitted=is_calibrated(results),
        elsewhere="model" in results,
        recalibrated=recalibrated_table(results),
        subgroups={name: list(rows) for name, rows in groupby(results.get("subgroups") or [], itemgetter("column"))},
        stress=stress_table(results.get("stress") or []),
        stress_picture=thumbnail(run.stress_picture, WIDE) if pictures and run.stress_picture.exists() else None,
        members=history.members_table(results, pictures),
        seeds=history.seeds_table(results),
        crossed=crossed(member["fold"] for member in results.get("members") or []),
        doubted=len(attempt(run.doubted_labels) or []),
        story=history.early_stopping_story(results.get("early_stopping"), settings, events),
        epochs=history.epoch_table(events),
        parts=history.parts_table(results.get("images", {})),
        leaks=attempt(lambda: leaked(run.split())),
        reasons=history.quarantine_table(run, pictures),
        changed=history.changed_settings(settings, pictures),
        repeat=history.repeat_command(run, results, settings, pictures),
        facts=history.facts(results),
    )


def all_benign(test: Scores | None, prevalence: float | None) -> dict[str, float]:
    """What each metric gives to a rule that calls every image benign, where that says something."""
    if test is None:
        return {}
    nothing = np.zeros(test.labels.size)
    wanted = {name: metric for name, metric in METRICS.items() if metric.unit == "share" or name == "auroc"}
    values = {name: metric(nothing, test.labels, prevalence=prevalence) for name, metric in wanted.items()}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def figure_rows(split: Mapping[str, Any], benign: Mapping[str, float]) -> list[FigureRow]:
    """Key, estimate and what calling all benign gives, for each figure of the split."""
    return [
        (name, value, benign.get(name)) for name, value in split.items() if isinstance(value, dict) and "value" in value
    ]


def held_by_the_page(test: Scores, point: Mapping[str, Any]) -> dict[str, Any]:
    """What the script computes with: the probabilities of each class from the highest on, and where it starts."""
    lists = {name: sorted(test.of(name).tolist(), reverse=True) for name in ("malignant", "benign")}
    here = float(test.labels.mean())
    frozen, prevalence = point.get("threshold", DEFAULT_THRESHOLD), point.get("prevalence") or here
    return {**lists, "frozen": frozen, "prevalence": prevalence, "here": here}


def draw(results: Mapping[str, Any], test: Scores | None, events: Sequence[Mapping[str, Any]]) -> dict[str, Markup]:
    """The plots by name; those that have nothing to show are left out."""
    drawn = {}
    if test and test.both_classes:
        p, y, groups = test.probabilities, test.labels, test.groups
        threshold = (results.get("operating_point") or {}).get("threshold", DEFAULT_THRESHOLD)
        at = {name: METRICS[name](p, y, threshold) for name in ("sensitivity", "specificity", "ppv")}
        roc = plots.roc("roc", {"this model": bands.roc(p, y, groups, seed=0)})
        drawn["roc"] = plots.with_mark(roc, 1 - at["specificity"], at["sensitivity"])
        band = {"this model": bands.precision_recall(p, y, groups, seed=0)}
        precision_recall = plots.precision_recall("precision-recall", band, float(y.mean()))
        drawn["precision-recall"] = plots.with_mark(precision_recall, at["sensitivity"], at["ppv"])
        spread = plots.histogram("spread", test.of("malignant").tolist(), test.of("benign").tolist())
        drawn["spread"] = plots.with_mark(spread, threshold)
    if reliability := (results.get("calibration") or {}).get("reliability"):
        bins = reliability if is_calibrated(results) else {"this model": reliability["after"]}
        drawn["reliability"] = plots.reliability("reliability", bins)
    best = (results.get("early_stopping") or {}).get("best_epoch")
    for name in ("loss", "auroc"):
        series = {split: history.points(events, f"{split}/{name}") for split in ("train", "val")}
        if series["val"]:
            labels = {PARTS[split]: line for split, line in series.items()}
            drawn[f"curve-{name}"] = plots.curve(f"curve-{name}", title(name), labels, best)
    return drawn


def is_calibrated(results: Mapping[str, Any]) -> bool:
    """Whether the probabilities are other ones than the model gives."""
    calibration = results.get("calibration") or {}
    return calibration.get("temperature", 1) != 1 or bool(calibration.get("bias"))


def recalibrated_table(results: Mapping[str, Any]) -> Table | None:
    """The frozen threshold and calibration beside those that were fitted on half of the images, and their figures."""
    found = results.get("recalibrated")
    if not found:
        return None
    frozen, refitted = ({**fixed(of), **found[name]} for of, name in ((results, "frozen"), (found, "refitted")))
    rows = [[title(name), cell(frozen[name], name), cell(refitted[name], name)] for name in frozen]
    return Table(["figure", "frozen", "fitted here"], rows)


def fixed(of: Mapping[str, Any]) -> dict[str, Any]:
    """Threshold, temperature and bias of a run, or of a refit, with the threshold's interval where it has one."""
    of = {**(of.get("operating_point") or {}), **(of.get("calibration") or {}), **of}
    low, high = of.get("threshold_interval") or (None, None)
    value = of.get("threshold")
    threshold = value if low is None else {"value": value, "low": low, "high": high}
    return {"threshold": threshold, "temperature": of.get("temperature"), "bias": of.get("bias")}


def stress_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """What each change to the pictures does, under the names that the results give it."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[cell(row.get(key), key) for key in keys] for row in rows]
    return Table([title(key) for key in keys], lines) if rows else None


def cell(value: Any, key: str) -> str:
    """A value of the results in words: an estimate with its interval, a number, a text."""
    if isinstance(value, Mapping) and "value" in value:
        parts = [cell(value.get(part), key) for part in ("value", "low", "high")]
        return parts[0] if value["value"] is None else f"{parts[0]} ({parts[1]} to {parts[2]})"
    return value if isinstance(value, str) else figure_text(value, key)
