"""Assign every image to train, validation or test. Rank 0 does, and writes split.csv; it sends the rows to the others.

A group (copies, near-duplicates, one ISIC id, lesion or patient) is never divided: what a model has seen in training in
another guise cannot be tested on.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skindist.data.scan import CLASSES, ImageFile
from skindist.errors import UserError
from skindist.files import read_csv, write_csv
from skindist.randomness import Stream, generator
from skindist.wording import plural, printable

SPLITS = ("train", "val", "test")
PARTS = {"train": "training", "val": "validation", "test": "test"}  # what splits are called in sentences
LABELS = {name: label for label, name in enumerate(CLASSES)}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of split.csv; its number (from 0) is the sample id."""

    path: str
    label: int
    split: str
    group: str
    sha256: str


def make_split(
    images: Sequence[ImageFile], groups: Sequence[str], fractions: tuple[float, float, float], seed: int
) -> list[Row]:
    """Draw validation and test at random, group by group and class by class; the rest is train.

    Images whose folder already says train, val or test keep that; without val, it is drawn from train.

    Args:
        images: what `scan_folder` found.
        groups: the group of each image.
        fractions: shares of train, validation and test. Each share is met within the size of one group.
        seed: with the images and groups, it alone decides who goes where.

    Raises:
        UserError: a class has too few groups, or a given split lacks a class.
    """
    rows = [
        Row(image.path, image.label, image.split, group, image.sha256)
        for image, group in zip(images, groups, strict=True)
    ]
    given = {row.split for row in rows}
    if given == {""}:
        rows = _assign(rows, {"val": fractions[1], "test": fractions[2]}, seed)
    elif "val" not in given:
        train = [row for row in rows if row.split == "train"]
        share = fractions[1] / (fractions[0] + fractions[1])
        rows = [row for row in rows if row.split != "train"] + _assign(train, {"val": share}, seed)
    refuse_missing_classes(rows)
    return sorted(rows, key=lambda row: row.path)


def leaked(rows: Sequence[Row]) -> dict[str, int]:
    """How many test images belong together (copies, one lesion, one patient) with one of "train", and how many others
    with one of "val". Only a split that was given has any."""
    groups = {part: {row.group for row in rows if row.split == part} for part in ("train", "val")}
    tested = [row.group for row in rows if row.split == "test"]
    train = sum(group in groups["train"] for group in tested)
    return {"train": train, "val": sum(group in groups["val"] - groups["train"] for group in tested)}


def cut_into_folds(rows: Sequence[Row], folds: int, fold: int) -> list[Row]:
    """Let one fold of all images but those of test be validation, and the rest train. Groups stay together, and the
    folds are alike in size and classes, as nearly as whole groups can be.

    Raises:
        UserError: a class has fewer groups than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # seconds of import, for cross-validation alone

    rest = [index for index, row in enumerate(rows) if row.split != "test"]
    labels, groups = [rows[index].label for index in rest], [rows[index].group for index in rest]
    for label, name in enumerate(CLASSES):
        if (count := len({group for group, of in zip(groups, labels, strict=True) if of == label})) < folds:
            raise UserError(f"--data.folds {folds}: class {name} has {plural(count, 'group')}; each fold needs one")
    divided = StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(labels, labels, groups)
    held_out = {rest[index] for index in list(divided)[fold][1]}
    parts = ("val" if index in held_out else "train" for index in range(len(rows)))
    cut = [row if row.split == "test" else replace(row, split=part) for row, part in zip(rows, parts, strict=True)]
    refuse_missing_classes(cut)
    return cut


def _assign(rows: Sequence[Row], held_out: dict[str, float], seed: int) -> list[Row]:
    """Fill each held-out share with groups in random order; the rest is train."""
    counts: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(len(CLASSES), np.int64))
    for row in rows:
        counts[row.group][row.label] += 1
    total = np.sum([*counts.values()], axis=0)
    for label, name in enumerate(CLASSES):
        groups = sum(int(count[label] > 0) for count in counts.values())
        if groups <= len(held_out):
            raise UserError(
                f"--data.path: class {name} has {plural(int(total[label]), 'image')} in {plural(groups, 'group')} "
                "that must stay together (copies, one lesion, one patient); each of "
                f"train{''.join(f', {split}' for split in held_out)} needs at least one group: add {name} images"
            )
    names = sorted(counts)
    order = [names[index] for index in generator(seed, Stream.SPLIT).permutation(len(names))]
    assigned: dict[str, str] = {}
    for number, (split, share) in enumerate(held_out.items(), start=1):
        wanted = np.maximum(1, np.round(share * total)).astype(np.int64)
        left_over = {group: counts[group] for group in order if group not in assigned}
        assigned |= dict.fromkeys(_fill(wanted, left_over, spare=len(held_out) - number + 1), split)
    return [replace(row, split=assigned.get(row.group, "train")) for row in rows]


def _fill(wanted: NDArray[np.int64], groups: dict[str, NDArray[np.int64]], spare: int) -> list[str]:
    """Choose groups that together hold `wanted` images of each class, as nearly as whole groups can.

    First, in the given random order, whatever fits; then, as long as it helps, the group that brings the counts
    nearest. At least one group with each class is chosen, and `spare` such groups are left.
    """
    left = wanted.copy()
    unused = {label: sum(int(count[label] > 0) for count in groups.values()) for label in range(len(wanted))}
    chosen: dict[str, NDArray[np.int64]] = {}

    def can_spare(count: NDArray[np.int64]) -> bool:
        return all(unused[label] > spare for label in unused if count[label])

    def take(group: str, count: NDArray[np.int64]) -> None:
        nonlocal left
        chosen[group] = count
        left = left - count
        for label in unused:
            unused[label] -= int(count[label] > 0)

    for group, count in groups.items():
        if (count <= left).all() and can_spare(count):
            take(group, count)
    while True:
        missing = [label for label in unused if not any(count[label] for count in chosen.values())]
        gain = {
            group: int(np.abs(left).sum() - np.abs(left - count).sum())
            for group, count in groups.items()
            if group not in chosen and can_spare(count) and (not missing or count[missing[0]])
        }
        best = max(gain, key=lambda group: gain[group], default=None)
        if best is None or (gain[best] <= 0 and not missing):
            return list(chosen)
        take(best, groups[best])


def refuse_missing_classes(rows: Sequence[Row]) -> None:
    """Raise UserError unless each split has images of both classes."""
    for split, counts in count_rows(rows).items():
        for name, count in counts.items():
            if not count:
                raise UserError(f"--data.path: no {name} image in {split}; each split needs both classes")


def write_split(path: Path, rows: Sequence[Row]) -> None:
    """Write split.csv atomically, labels in words."""
    lines = ((row.path, CLASSES[row.label], row.split, row.group, row.sha256) for row in rows)
    write_csv(path, [field.name for field in fields(Row)], lines)


def read_split(path: Path) -> list[Row]:
    """Read split.csv; the position of a row is its sample id. Raises ValueError or KeyError if it is damaged."""
    rows = [Row(row["path"], LABELS[row["label"]], row["split"], row["group"], row["sha256"]) for row in read_csv(path)]
    if not rows:
        raise ValueError("it holds no image")
    return rows


def fingerprint(rows: Sequence[Row]) -> str:
    """SHA-256 of what is trained on: each image's content, label and part of the split, in order; no names."""
    lines = (f"{row.sha256} {row.label} {row.split}\n" for row in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def refuse_changed_images(rows: Sequence[Row], images: Sequence[ImageFile]) -> None:
    """Raise UserError if an image of an earlier split is gone or has other bytes now."""
    now = {image.path: image.sha256 for image in images}
    if changed := [row.path for row in rows if now.get(row.path) != row.sha256]:
        raise UserError(
            f"--run.resume: images changed or gone since the run began: {len(changed)} (such as {printable(changed[0])}"
            "); restore them, or start a new run with another --run.dir"
        )


def count_rows(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Images by split, then by class name."""
    count = Counter((row.split, row.label) for row in rows)
    return {split: {name: count[split, label] for label, name in enumerate(CLASSES)} for split in SPLITS}


def describe(rows: Sequence[Row]) -> str:
    """Class names and counts of each split that there is, for the console."""
    parts = (
        f"{split} " + " + ".join(f"{count} {name}" for name, count in counts.items())
        for split, counts in count_rows(rows).items()
        if any(counts.values())
    )
    return f"data: {len(rows)} images: " + ", ".join(parts)
