"""Labels and the split from columns of a table, for images that do not lie in class folders.

HAM10000, the ISIC archive and its challenges come so: a folder of images in any layout, and a table with a diagnosis.
Nothing is guessed: a value that is neither malignant nor benign is refused, or left out by name and number.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from skindist.data.metadata import KEYS, Metadata, canonical_name
from skindist.data.scan import CLASSES, SPLIT_WORDS, UNLABELLED, ImageFile, Scan
from skindist.errors import UserError
from skindist.recipe import DataConfig
from skindist.wording import plural, printable

SAME = {"yes": "true", "no": "false"}  # YAML takes a bare yes for true
NAMED = 12  # values in one message
log = logging.getLogger("skindist")


def refuse_lonely_flags(config: DataConfig) -> None:
    """Raise UserError where a flag means nothing without another one."""
    usual = DataConfig()
    for flag in ("malignant", "benign", "other"):
        if getattr(config, flag) != getattr(usual, flag) and config.label_column is None:
            raise UserError(f"--data.{flag}: means nothing without --data.label_column; name the column of the labels")
    for flag in ("label_column", "split_column"):
        if (column := getattr(config, flag)) is not None and config.metadata is None:
            raise UserError(f"--data.{flag} {column}: give the table that has it, with --data.metadata FILE.csv")


def use_table(config: DataConfig, scan: Scan, metadata: Metadata) -> Scan:
    """The scan with the labels and the split that the table says, where its columns are named.

    Raises:
        UserError: no such column; a value that is no label or no part of a split; a table that contradicts the folders.
    """
    if config.split_column is not None:
        scan = _with_splits(config, config.split_column, scan, metadata)
    if config.label_column is not None:
        scan = _with_labels(config, config.label_column, scan, metadata)
    if not scan.images and scan.left_out:
        raise UserError(f"--data.path {config.path}: of no image is a label known")
    return scan


def _with_labels(config: DataConfig, column: str, scan: Scan, metadata: Metadata) -> Scan:
    said, labels = _values("label_column", column, scan.images, metadata), label_words(config)
    others = {path: value for path, value in said.items() if plain(value) not in labels}
    if others and config.other == "error":
        raise UserError(
            f"--data.label_column {column}: in neither --data.malignant nor --data.benign: {counted(others.values())}; "
            "add each to one of them, or leave these images out with --data.other drop"
        )
    if others:
        log.warning(
            f"data: left out, with labels of neither class: {plural(len(others), 'image')}: {counted(others.values())}"
        )
    images, left_out = [], list(scan.left_out)
    for image in scan.images:
        value = said.get(image.path)
        if image.path in others:
            left_out.append((image.path, f"{column} is {value!r}, which is in neither list"))
        elif value is not None:
            images.append(replace(image, label=labels[plain(value)]))
        elif image.label != UNLABELLED:
            images.append(image)
        else:
            left_out.append((image.path, "has no row in the table, so no label"))
    if unknown := len(left_out) - len(scan.left_out) - len(others):
        log.warning(f"data: left out, as the table has no row with their label: {plural(unknown, 'image')}")
    folders = {image.path: image.label for image in scan.images}
    unlike = [image for image in images if folders[image.path] not in (UNLABELLED, image.label)]
    if unlike:
        path = unlike[0].path
        such = printable(f"{path}: {said[path]}")
        raise UserError(
            f"--data.label_column {column}: {plural(len(unlike), 'image')} in a class folder of which the table says "
            f"otherwise, such as {such}; correct one of the two, or leave out --data.label_column"
        )
    return replace(scan, images=images, left_out=sorted(left_out))


def _with_splits(config: DataConfig, column: str, scan: Scan, metadata: Metadata) -> Scan:
    said = _values("split_column", column, scan.images, metadata)
    if odd := [value for value in said.values() if plain(value) not in SPLIT_WORDS]:
        raise UserError(
            f"--data.split_column {column}: must be train, val or test, and is {counted(odd)}; correct the table, or "
            "leave out --data.split_column"
        )
    images, left_out = [], list(scan.left_out)
    for image in scan.images:
        if image.path not in said:
            left_out.append((image.path, "has no row in the table, so no part of the split"))
            continue
        split = SPLIT_WORDS[plain(said[image.path])]
        if image.split not in ("", split):
            raise UserError(
                f"--data.split_column {column}: says {split} of {printable(image.path)}; correct the table or the "
                "folder, or leave out --data.split_column"
            )
        images.append(replace(image, split=split))
    if unknown := len(left_out) - len(scan.left_out):
        log.warning(f"data: left out, as the table has no row with their part: {plural(unknown, 'image')}")
    return replace(scan, images=images, left_out=sorted(left_out))


def label_words(config: DataConfig) -> dict[str, int]:
    """What the label of each word is.

    Raises:
        UserError: a word is in both lists.
    """
    words = {"benign": [*map(plain, config.benign)], "malignant": [*map(plain, config.malignant)]}
    if both := sorted(set(words["benign"]) & set(words["malignant"])):
        raise UserError(f"--data.malignant and --data.benign: {both[0]} is in both; leave it in one of them")
    return {word: label for label, name in enumerate(CLASSES) for word in words[name]}


def split_of(config: DataConfig, metadata: Metadata) -> dict[str, str]:
    """The part of the split that the table says of each file, usable or not."""
    column = config.split_column or ""
    found = {path: values.get(column, values.get(canonical_name(column), "")) for path, values in metadata.items()}
    return {path: SPLIT_WORDS.get(plain(value), "") for path, value in found.items()}


def plain(value: object) -> str:
    """A value however it is written: 1, 1.0 and "1" are the same, and so are True, true and yes."""
    word = str(value).strip().lower()
    with suppress(ValueError):
        number = int(word) if word.isdecimal() else float(word.replace("_", "no"))  # a code may be longer than a float
        return str(int(number)) if number == number // 1 else repr(number)
    return SAME.get(word, word)


def counted(values: Iterable[str]) -> str:
    """Values with their numbers, the most frequent first."""
    count = Counter(values).most_common()
    more = [f"{len(count) - NAMED} more values"] if len(count) > NAMED else []
    return ", ".join([f"{printable(value) or '(nothing)'} ({number:,})" for value, number in count[:NAMED]] + more)


def _values(flag: str, column: str, images: Sequence[ImageFile], metadata: Metadata) -> dict[str, str]:
    """What the column says of each image that has a row."""
    name = canonical_name(column)
    rows = {image.path: metadata[image.path] for image in images if image.path in metadata}
    known = {name for values in rows.values() for name in values}
    for called in (column, name):
        if called in known:
            return {path: values.get(called, "") for path, values in rows.items()}
    beside = " beside the one that names the images" if column.lower() in KEYS else ""
    others = printable(", ".join(sorted(known))) or "no other"
    raise UserError(f"--data.{flag} {column}: the table has no such column{beside}; it has {others}")
