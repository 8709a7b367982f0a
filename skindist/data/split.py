"""Assign every image to train, validation or test; rank 0 writes the result to split.csv and every rank reads that.

Files with the same bytes are one group, and a group is never divided: a copy of a training image cannot be tested on.
"""

import csv
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from skindist.data.scan import CLASSES, ImageFile
from skindist.errors import UserError
from skindist.files import write_csv
from skindist.randomness import Stream, generator

SPLITS = ("train", "val", "test")
log = logging.getLogger("skindist")


@dataclass(frozen=True)
class Row:
    """One line of split.csv; its number (from 0) is the sample id."""

    path: str
    label: int
    split: str
    group: str
    sha256: str


def make_split(images: Sequence[ImageFile], fractions: tuple[float, float, float], seed: int) -> list[Row]:
    """Split class by class; images whose folder already says train, val or test keep that.

    Args:
        images: what `scan_folder` found.
        fractions: shares of train, validation and test.
        seed: with the sorted groups, it alone decides who goes where.

    Raises:
        UserError: a class has too few images, or the same bytes lie in both class folders.
    """
    _refuse_conflicts(images)
    rows = [Row(image.path, image.label, image.split, image.sha256[:16], image.sha256) for image in images]
    given = {row.split for row in rows}
    if given == {""}:
        rows = _assign(rows, {"val": fractions[1], "test": fractions[2]}, seed)
    elif "val" not in given:
        train = [row for row in rows if row.split == "train"]
        share = fractions[1] / (fractions[0] + fractions[1])
        log.info(f"data: no val/ folder: {share:.0%} of train/ serves as validation")
        rows = [row for row in rows if row.split != "train"] + _assign(train, {"val": share}, seed)
    _refuse_missing_classes(rows)
    _warn_of_leaks(rows)
    return sorted(rows, key=lambda row: row.path)


def _assign(rows: Sequence[Row], held_out: dict[str, float], seed: int) -> list[Row]:
    """Draw each held-out share (at least one image) class by class, group by group; the rest is train."""
    assigned: dict[str, str] = {}
    for label, name in enumerate(CLASSES):
        size = Counter(row.group for row in rows if row.label == label)
        if len(size) <= len(held_out):
            raise UserError(
                f"--data.path: class {name} has {len(size)} different image{'s' * (len(size) != 1)}; each of "
                f"train{''.join(f', {split}' for split in held_out)} needs at least one: add images to {name}/"
            )
        groups = sorted(size)
        order = [groups[index] for index in generator(seed, Stream.SPLIT, label).permutation(len(groups))]
        for split, share in held_out.items():
            wanted = max(1, round(share * size.total()))
            while wanted > 0 and len(order) > 1:
                assigned[group := order.pop()] = split
                wanted -= size[group]
    return [replace(row, split=assigned.get(row.group, "train")) for row in rows]


def _refuse_conflicts(images: Sequence[ImageFile]) -> None:
    by_content: dict[str, dict[int, str]] = defaultdict(dict)
    for image in images:
        by_content[image.sha256].setdefault(image.label, image.path)
    if conflicts := [tuple(paths.values()) for paths in by_content.values() if len(paths) > 1]:
        first = " and ".join(conflicts[0])
        raise UserError(
            f"--data.path: {len(conflicts)} image{'s' * (len(conflicts) != 1)} with the same bytes in both classes "
            f"({first}); keep the one with the right label"
        )


def _refuse_missing_classes(rows: Sequence[Row]) -> None:
    count = Counter((row.split, row.label) for row in rows)
    for split in SPLITS:
        for label, name in enumerate(CLASSES):
            if not count[split, label]:
                raise UserError(f"--data.path: no {name} image in {split}; each split needs both classes")


def _warn_of_leaks(rows: Sequence[Row]) -> None:
    splits = defaultdict(set)
    for row in rows:
        splits[row.group].add(row.split)
    if leaks := sum(len(names) > 1 for names in splits.values()):
        log.warning(
            f"data: {leaks} images lie in more than one of train, val and test (same bytes): figures will flatter"
        )


def write_split(path: Path, rows: Sequence[Row]) -> None:
    """Write split.csv atomically."""
    write_csv(path, [field.name for field in fields(Row)], (astuple(row) for row in rows))


def read_split(path: Path) -> list[Row]:
    """Read split.csv; the position of a row is its sample id."""
    with path.open(newline="") as file:
        return [
            Row(row["path"], int(row["label"]), row["split"], row["group"], row["sha256"])
            for row in csv.DictReader(file)
        ]


def refuse_changed_images(rows: Sequence[Row], images: Sequence[ImageFile]) -> None:
    """Raise UserError if an image of an earlier split is gone or has other bytes now."""
    now = {image.path: image.sha256 for image in images}
    if changed := [row.path for row in rows if now.get(row.path) != row.sha256]:
        raise UserError(
            f"--run.resume: {len(changed)} images have changed or gone since the run began (such as {changed[0]}); "
            "restore them, or start a new run with another --run.dir"
        )


def count_rows(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Images by split, then by class name."""
    count = Counter((row.split, row.label) for row in rows)
    return {split: {name: count[split, label] for label, name in enumerate(CLASSES)} for split in SPLITS}


def describe(rows: Sequence[Row]) -> str:
    """Class names and counts of each split, for the console."""
    parts = (
        f"{split} " + " + ".join(f"{count} {name}" for name, count in counts.items())
        for split, counts in count_rows(rows).items()
    )
    return f"data: {len(rows)} images: " + ", ".join(parts)
