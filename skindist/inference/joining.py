"""`skindist ensemble`: several runs as one model, judged once.

Its operating point is chosen on out-of-fold predictions: of each image, what those runs say that did not train on it.
With runs of one split these are the validation images; with all folds of a cross-validation, every image but those of
the test part.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logit

from skindist.config import Config, in_common
from skindist.data.loading import sample_ids
from skindist.data.prepare import Prepared, prepare_again
from skindist.data.scan import CLASSES
from skindist.data.split import Row, count_rows
from skindist.errors import UserError
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.differences import summarize
from skindist.evaluation.frozen import Frozen
from skindist.evaluation.intervals import estimates
from skindist.evaluation.judgement import judge
from skindist.evaluation.known import Known
from skindist.evaluation.operating_point import choose_threshold
from skindist.evaluation.predictions import Predictions
from skindist.files import finite, refuse_occupied, whole_folder
from skindist.inference.description import Description, called, read_description, unlike
from skindist.inference.saved_model import build_module, load_weights, save_ensemble
from skindist.prediction.outcome import known_of, prediction_rows, tell_leaks, versions
from skindist.randomness import Stream, derived_seed
from skindist.recipe import DataConfig
from skindist.report.model_card import model_card
from skindist.report.run_page import draw_run_page
from skindist.report.scores import read_scores
from skindist.report.words import crossed
from skindist.run.folder import Run

SURE = 1e-16  # a probability is at least so far from 0 and from 1
DOUBTED = 100  # labels that are listed, beginning with the most doubted
SECTIONS = ("data", "model", "optim", "train", "early_stopping", "evaluation")
OWN = ("path", "metadata", "cache_dir", "fold", "folds")  # of "data": where its images were read, and no fold
FEWER = (
    "it was chosen on what only those members say of an image that did not train on it; the mean of all members lies "
    "closer together, so expect a sensitivity above the target, and a specificity below that of the choice"
)
Scores = Mapping[str, float]
log = logging.getLogger("skindist")


@dataclass(frozen=True)
class Member:
    """A finished run, and what it says of its validation and test images: probabilities by path."""

    run: Run
    config: Config
    description: Description
    rows: list[Row]
    results: dict[str, Any]
    scores: Mapping[str, Scores]


def join_runs(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Make one model of several runs, and write it, its figures and its page as a folder of its own.

    Args:
        folders: of finished runs on the same images, with the same test part.
        out: new or empty folder.

    Returns:
        What its results.json holds.

    Raises:
        UserError: a folder is no finished run, or given twice, the runs do not fit together, or there is no place for
            the ensemble.
    """
    refuse_occupied(out)
    for number, folder in enumerate(folders):
        if any(folder.resolve() == other.resolve() for other in folders[:number]):
            raise UserError(f"{folder}: is given twice; its voice would count twice")
    members = [read_member(Run(folder)) for folder in folders]
    refuse_what_does_not_fit(members)
    first = members[0]
    rows = common_rows(members)
    data = replace(prepare_again(first.config.data, rows), quarantine=first.run.quarantine())
    config = replace(first.config, data=replace(first.config.data, fold=None, folds=DataConfig.folds))
    held_out, test = (predicted(rows, [member.scores[part] for member in members]) for part in ("val", "test"))
    seed = derived_seed(config.run.seed, Stream.BOOTSTRAP)
    known = {name: known_of(data, found.ids.tolist()) for name, found in (("val", held_out), ("test", test))}
    trained = known_of(data, sample_ids(rows, "train"))
    frozen = frozen_on(members, held_out, known["val"], config.evaluation.sensitivity, seed)
    judged = judge(frozen, (held_out, known["val"]), (test, known["test"]), trained, config.evaluation, seed)
    tell_leaks(judged, rows)
    results: dict[str, Any] = finite(judged | of_members(members, data, held_out, seed))
    with whole_folder(out) as folder:
        run = Run(folder)
        run.write_settings(shared_settings(config, members))
        run.write_images(rows, data.quarantine)
        for part, found in (("val", held_out), ("test", test)):
            run.write_predictions(part, *prediction_rows(found, Calibration(), data))
        run.write_doubted(doubted(rows, held_out))
        card = model_card(config, results, called(member.description for member in members))
        save_ensemble(run.model, [member.run.model for member in members], frozen, summarize(trained), card)
        run.write_results(results)
    draw_run_page(Run(out))
    return results


def read_member(run: Run) -> Member:
    """A run as a member. Raises UserError where it is not finished, damaged, or is no run of its own."""
    results, description = run.results(), read_description(run.model)
    if "members" in results or "early_stopping" not in results:
        raise UserError(f"{run.path}: is not a run of the main job; give the folders of single runs")
    said = {part: read_scores(run, part) for part in ("val", "test")}
    scores = {part: dict(zip(found.paths, found.probabilities.tolist(), strict=True)) for part, found in said.items()}
    rows = run.split()
    for part, found in scores.items():
        if found.keys() != {row.path for row in rows if row.split == part}:
            raise UserError(f"{run.path}: its predictions of {part} are not those of the images in its split.csv")
    load_weights(run.model, build_module(description))  # which says so if they are damaged
    return Member(run, run.config(), description, rows, results, scores)


def refuse_what_does_not_fit(members: Sequence[Member]) -> None:
    """Raise UserError unless the runs see the same pixels of the same images, and test on the same ones."""
    if len(members) < 2:
        raise UserError("one run is no ensemble: give two or more")
    first = members[0]
    for other in members[1:]:
        pair = f"{first.run.path} and {other.run.path}"
        if why := unlike(first.description, [other.description]):
            raise UserError(f"{pair} cannot be one ensemble: {why}")
        if contents(first.rows) != contents(other.rows):
            raise UserError(f"{pair} cannot be one ensemble: they were trained on other images")
        for key in ("sensitivity", "prevalence"):
            asked = [getattr(member.config.evaluation, key) for member in (first, other)]
            if asked[0] != asked[1]:
                raise UserError(f"{pair} cannot be one ensemble: --evaluation.{key} is {asked[0]} and {asked[1]}")
        if contents(first.rows, "test") != contents(other.rows, "test"):
            raise UserError(
                f"{pair} cannot be one ensemble: their test images are not the same; with a folder that is not split, "
                "--data.fold gives all seeds one test part"
            )


def contents(rows: Sequence[Row], part: str | None = None) -> set[tuple[str, str, int]]:
    """Path, bytes and label of all images, or of those in one part."""
    return {(row.path, row.sha256, row.label) for row in rows if part in (None, row.split)}


def shared_settings(config: Config, members: Sequence[Member]) -> dict[str, dict[str, Any]]:
    """The config of the ensemble by section: its own settings, and those on which all members agree."""
    own = {key: getattr(config.data, key) for key in OWN}
    agreed = in_common([replace(member.config, data=replace(member.config.data, **own)) for member in members])
    return {name: agreed[name] for name in SECTIONS}


def common_rows(members: Sequence[Member]) -> list[Row]:
    """The images of all runs: "train" for those that any run was trained on, "val" for those that none was."""
    trained = {row.path for member in members for row in member.rows if row.split == "train"}
    return [replace(row, split="train") if row.path in trained else row for row in members[0].rows]


def predicted(rows: Sequence[Row], scores: Sequence[Scores]) -> Predictions:
    """The mean probability of each image over those runs that have one, in the order of the rows."""
    of_path: dict[str, list[float]] = defaultdict(list)
    for run in scores:
        for path, probability in run.items():
            of_path[path].append(probability)
    ids = [number for number, row in enumerate(rows) if row.path in of_path]
    means = np.array([np.mean(of_path[rows[number].path]) for number in ids])
    logits, labels = logit(means.clip(SURE, 1 - SURE)), np.array([rows[number].label for number in ids])
    return Predictions(np.array(ids), logits, labels)


def frozen_on(members: Sequence[Member], held_out: Predictions, known: Known, sensitivity: float, seed: int) -> Frozen:
    """The threshold that reaches the wanted sensitivity on out-of-fold predictions, and how they are calibrated."""
    fitted = sum(not member.description.frozen.calibration.changes_nothing for member in members)
    calibrated = (
        "calibrated ones" if fitted == len(members) else f"ones, of which {fitted} of {len(members)} are calibrated"
    )
    threshold = choose_threshold(held_out.probabilities, held_out.labels, sensitivity, seed, known.groups)
    fewer = FEWER if crossed(member.config.data.fold for member in members) else None
    note = "; ".join(filter(None, (threshold.note, fewer))) or None
    return Frozen(Calibration(note=f"the mean of the members' {calibrated}"), replace(threshold, note=note))


def of_members(members: Sequence[Member], data: Prepared, held_out: Predictions, seed: int) -> dict[str, Any]:
    """What results.json says beside the judgement, in which "val" are the out-of-fold predictions."""
    counts, labels = count_rows(data.rows), held_out.labels
    counts["val"] = {name: int((labels == label).sum()) for label, name in enumerate(CLASSES)}
    return {
        "members": [describe_member(member) for member in members],
        "by_seed": by_seed(members, data, seed),
        "stress": [],
        "images": counts,
        "left_out": len(data.quarantine),
        "train_seconds": sum(member.results["train_seconds"] for member in members),
        "versions": versions(),
    }


def describe_member(member: Member) -> dict[str, Any]:
    """What a run adds, in a line."""
    stop = member.results["early_stopping"]
    return {
        "run": member.run.path.name,
        "seed": member.config.run.seed,
        "fold": member.config.data.fold,
        "epochs": stop["epochs"],
        "best_epoch": stop["best_epoch"],
        "val_auroc": member.results["val"]["auroc"]["value"],
        "test_auroc": member.results["test"]["auroc"]["value"],
        "train_seconds": member.results["train_seconds"],
    }


def by_seed(members: Sequence[Member], data: Prepared, seed: int) -> list[dict[str, Any]]:
    """Of each seed, the AUROC and the loss of its own out-of-fold predictions, all folds pooled: how far they lie apart
    is what a seed does to a figure."""
    found = []
    for own in sorted({member.config.run.seed for member in members}):
        scores = [member.scores["val"] for member in members if member.config.run.seed == own]
        pooled = predicted(data.rows, scores)
        groups = known_of(data, pooled.ids.tolist()).groups
        at = estimates(pooled.probabilities, pooled.labels, seed, groups=groups, names=("auroc", "loss"))
        found.append({"seed": own, **{name: asdict(estimate) for name, estimate in at.items()}})
    return found


def doubted(rows: Sequence[Row], held_out: Predictions) -> list[tuple[str, str, str]]:
    """Path, label and probability of the images whose label the models doubt most that did not train on it."""
    doubt = np.abs(held_out.labels - held_out.probabilities)
    order = np.argsort(-doubt, kind="stable")[:DOUBTED]
    return [
        (rows[held_out.ids[at]].path, CLASSES[held_out.labels[at]], repr(float(held_out.probabilities[at])))
        for at in order
        if doubt[at] > 0.5
    ]
