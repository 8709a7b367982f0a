"""What a model has seen before of the images that it is tested on: their bytes, their pictures, their patients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skindist.data.duplicates import near_duplicates, straddling
from skindist.data.loading import sample_ids
from skindist.data.metadata import IDS
from skindist.data.prepare import Prepared, prepared_of
from skindist.data.remembering import memory_of
from skindist.data.scan import ImageFile
from skindist.data.split import Row
from skindist.data.survey import look_into
from skindist.errors import UserError
from skindist.evaluation.known import Known
from skindist.prediction.outcome import known_of
from skindist.recipe import DataConfig
from skindist.run.folder import Run
from skindist.wording import plural

Id = tuple[str, str]  # a column, and what is in it
COUNTED = ("train", "val", "near_duplicates", "patients")


@dataclass(frozen=True)
class Trained:
    """The images of a run: its rows, what lies in their folder now, and the rows with what their table says; None where
    they are not at hand as they were."""

    rows: list[Row]
    there: Sequence[ImageFile] = ()
    data: Prepared | None = None


def training_data(run: Run | None) -> Trained | None:
    """What a run tells of its images, and one look into their folder; None where no run tells it."""
    if run is None:
        return None
    try:
        config, rows = run.config().data, run.split()
    except UserError:  # a run without the files that name its images
        return None
    try:
        scan = look_into(config)
    except UserError:
        return Trained(rows)
    try:
        return Trained(rows, scan.images, prepared_of(config, rows, scan, quiet=True))
    except UserError:
        return Trained(rows, scan.images)


def seen_in_training(trained: Trained | None, tested: DataConfig, data: Prepared) -> tuple[dict[str, Any], set[str]]:
    """How many of the images a run was trained on, or chosen by, as far as that is known.

    Returns:
        "train" and "val", images with the bytes of one of theirs; "near_duplicates", images that show the same picture
        as one of theirs in other bytes; "patients", other images of a patient or lesion of theirs: numbers or null;
        "note": one sentence. And the SHA-256 of those of their images that were met again in one of these ways.
    """
    if trained is None:
        note = "not known whether the model was trained on these images: only its run folder could tell"
        return dict.fromkeys(COUNTED) | {"note": note}, set()
    known = {row.sha256: row.split for row in trained.rows if row.split != "test"}
    train, val = (sum(known.get(row.sha256) == split for row in data.rows) for split in ("train", "val"))
    ours = {row.sha256 for row in data.rows}
    near, near_theirs = near_duplicates_of(set(known), trained.there, ours, tested)
    people, people_theirs = of_the_same_people(trained.data, data, set(known)) if trained.data else (None, set())
    of_all, said = f"of {plural(len(data.rows), 'image')}", []
    if train + val:
        said.append(f"{train + val:,} {of_all} were used to train or choose the model")
    if near:
        said.append(f"{near:,} {of_all} show the same picture as one of training or validation")
    if people:
        said.append(f"{people:,} {of_all} are of a patient or lesion of training or validation")
    note = f"{', and '.join(said)}: the figures flatter"
    if not said:
        note = "no image is among those of training and validation"
        note += (
            ", which are not at hand to look for near-duplicates" if near is None else ", nor a near-duplicate of one"
        )
        note += "" if people is None else ", nor of a patient or lesion of one"
    counts = dict(zip(COUNTED, (train, val, near, people), strict=True))
    return counts | {"note": note}, set(known) & ours | near_theirs | people_theirs


def baseline_images(trained: Prepared | None, met: set[str]) -> Known | str:
    """What is known of the images to train the shortcut baseline on, without those that it would meet again in the
    test; else why there can be none.

    Args:
        met: as `seen_in_training` gives them.
    """
    if trained is None:
        return "the training images, or their table, are not at hand as they were, so there is no baseline"
    return known_of(
        trained, [number for number in sample_ids(trained.rows, "train") if trained.rows[number].sha256 not in met]
    )


def near_duplicates_of(
    known: set[str], there: Sequence[ImageFile], ours: set[str], tested: DataConfig
) -> tuple[int | None, set[str]]:
    """How many images of a set show the same picture as one that is known, in other bytes; None if the known ones are
    not all `there`. And the SHA-256 of those. Both sets are given by SHA-256, the tested one also by its folder."""
    then = [image for image in there if image.sha256 in known]
    if {image.sha256 for image in then} != known:
        return None, set()
    now = [image for image in look_into(tested).images if image.sha256 in ours - known]
    both = near_duplicates([*then, *now], memory_of(tested.cache_dir))
    links = straddling(both, [False] * len(then) + [True] * len(now))
    members = {member for link in links for member in link.members}
    theirs = {then[member].sha256 for member in members if member < len(then)}
    return sum(member >= len(then) for member in members), theirs


def of_the_same_people(trained: Prepared, data: Prepared, known: set[str]) -> tuple[int | None, set[str]]:
    """How many images, beside those with known bytes, are of a patient or lesion of a training or validation image;
    None where the tables do not tell. And the SHA-256 of all training and validation images of such people."""
    numbers = [*sample_ids(trained.rows, "train"), *sample_ids(trained.rows, "val")]
    theirs, ours = ids_of(trained, numbers), ids_of(data, range(len(data.rows)))
    of_them, of_us = set[Id]().union(*theirs), set[Id]().union(*ours)
    if not {column for column, _ in of_them} & {column for column, _ in of_us}:
        return None, set()
    count = sum(bool(ids & of_them) for row, ids in zip(data.rows, ours, strict=True) if row.sha256 not in known)
    return count, {trained.rows[number].sha256 for number, ids in zip(numbers, theirs, strict=True) if ids & of_us}


def ids_of(data: Prepared, numbers: Sequence[int]) -> list[set[Id]]:
    """Patient and lesion of each of these images, as far as the table tells."""
    known = known_of(data, numbers)
    columns = {column: known.values(column) for column in IDS}
    return [{(column, values[at]) for column, values in columns.items() if values[at]} for at in range(len(numbers))]
