"""Find the images of a folder and inspect each of them; whatever is ambiguous is refused with a reason.

The layout is either DIR/{benign,malignant}/... or DIR/{train,val,test}/{benign,malignant}/... ("valid" for "val" is
fine; without val/, validation images are drawn from train/). Class folders may hold folders; where a table tells the
labels, there need not be any. Nothing is guessed from file names: a file is an image if it can be read as one. What was
found out about a file is remembered until it changes, so a second scan costs little more than a look at the folder.
"""

import hashlib
import os
import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from tqdm import tqdm

from skindist.data.inspection import (
    EMPTY,
    NOT_AN_IMAGE,
    NOWHERE,
    PASSING,
    SUFFIXES,
    UNREAD_SUFFIXES,
    Facts,
    inspect,
    reading_images,
)
from skindist.data.remembering import Stamp, memory_of, recall, remember
from skindist.downloads import HUB_ID
from skindist.errors import UserError
from skindist.machine import available_cores
from skindist.wording import printable

CLASSES = ("benign", "malignant")  # the index is the label
UNLABELLED = -1  # by the folder that an image lies in
SPLIT_WORDS = {  # what folders and tables call the parts
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
IMAGE_SUFFIXES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes} | UNREAD_SUFFIXES
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}
LOOKED_AT = 10_000  # entries of a folder, which may be a whole disk, to say what else it holds
SETTLED = 2_000_000_000  # nanoseconds: a file that changed later than this before a scan may change again unnoticed


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One usable image: path relative to the data folder, label (index into CLASSES, or UNLABELLED), split ("" where
    nothing says one), and what its file told."""

    path: str
    label: int
    split: str
    facts: Facts

    @property
    def sha256(self) -> str:
        """The identity of its content."""
        return self.facts.sha256


@dataclass(frozen=True)
class Scan:
    """All files of a folder: usable images, (path, reason) of the images that are not, files that are no images by name
    or content, and (path, reason) of usable images that a table leaves without a label. Each part is sorted by path."""

    images: list[ImageFile]
    bad: list[tuple[str, str]]
    others: list[str]
    left_out: list[tuple[str, str]] = field(default_factory=list)


def scan_folder(
    root: Path, cache_dir: str | None = None, any_layout: bool = False, split_by_table: bool = False
) -> Scan:
    """Inspect every file below the class folders of `root`.

    Args:
        any_layout: whether there need not be class folders, as a table will tell the labels.
        split_by_table: whether a table will tell the split, too: without class folders, no layout is refused then.

    Raises:
        UserError: the folder is missing, unreadable, empty, laid out ambiguously, or holds no image.
    """
    try:
        found = sorted(_find(root, any_layout, split_by_table))
    except OSError as error:
        raise UserError(f"--data.path {root}: {error.filename or root} cannot be read ({error.strerror})") from None
    facts = _inspect_all(root, {path: stamp for path, _, _, stamp in found}, cache_dir)
    images, bad, others = [], [], []
    for path, label, split, _ in found:
        fact = facts[path]
        if not fact.reason:
            images.append(ImageFile(path, label, split, fact))
        elif fact.reason in (NOT_AN_IMAGE, EMPTY, NOWHERE) and Path(path).suffix.lower() not in IMAGE_SUFFIXES:
            others.append(path)
        else:
            bad.append((path, fact.reason))
    if not images and not bad:
        raise UserError(
            f"--data.path {root}: no images in {'it' if any_layout else 'its class folders'}{_remedy(root)}"
        )
    return Scan(images, bad, others)


def _inspect_all(root: Path, files: dict[str, Stamp], cache_dir: str | None) -> dict[str, Facts]:
    """What is remembered of the files that have not changed, and what the others tell now."""
    place = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    memory = memory_of(cache_dir) / f"{place}.jsonl"
    known = recall(memory)
    facts = {
        path: fact
        for path, (stamp, fact) in known.items()
        if files.get(path) == stamp and not fact.reason.startswith(PASSING)
    }
    new = [path for path in files if path not in facts]
    if not new and len(known) == len(files):
        return facts
    started = time.time_ns()
    with reading_images(), ThreadPoolExecutor(available_cores()) as pool:
        told = pool.map(inspect, (root / path for path in new))
        bar = tqdm(told, "inspecting images", len(new), unit="image", leave=False, disable=None)
        facts |= dict(zip(new, bar, strict=True))
    settled = {path: stamp for path, stamp in files.items() if max(map(int, stamp.split())) < started - SETTLED}
    remember(memory, {path: (stamp, facts[path]) for path, stamp in settled.items()})
    return facts


def _find(root: Path, any_layout: bool, split_by_table: bool) -> Iterator[tuple[str, int, str, Stamp]]:
    """Yield (relative path, label, split, stamp) of every file, having checked the layout."""
    if not root.is_dir():
        raise UserError(
            f"--data.path {root}: {'is not a folder' if root.exists() else 'no such folder'}{_remedy(root)}"
        )
    folders = _folders(root)
    splits = {SPLIT_WORDS[name.lower()]: folder for name, folder in folders.items() if name.lower() in SPLIT_WORDS}
    places = (root, *splits.values())
    by_class = not any_layout or any(name.lower() in CLASSES for place in places for name in _folders(place))
    odd = _odd_split(folders, splits) if splits else ""
    if splits and (by_class or not split_by_table):
        if odd:
            raise UserError(f"--data.path {root}: {odd}")
        _refuse_loose_images(root, root)
    if by_class:
        for split, folder in (splits or {"": root}).items():
            yield from _find_classes(root, folder, split)
        return
    parts = {} if odd else {folder.name: split for split, folder in splits.items()}
    for path, stamp in files_below(str(root), set()):
        name = _relative(path, root)
        part = parts.get(name.partition("/")[0], "")
        if part or not parts or split_by_table:
            yield name, UNLABELLED, part, stamp


def _remedy(root: Path) -> str:
    """What to do where the path is no folder of images, but may name or hold one, or images in another form."""
    near = Path(os.path.relpath(root))  # as the user has most likely typed it
    unpack = f"skindist unpack {shlex.quote(str(near))} --out DIR"
    within = [*_folders(root).values()] if root.is_dir() else []
    if len(within) == 1 and any(name.lower() in {*CLASSES, *SPLIT_WORDS} for name in _folders(within[0])):
        return f"; give --data.path {within[0]}"
    files = islice(chain(root.glob("*"), root.glob("*/*")), LOOKED_AT) if root.is_dir() else (root,)
    suffixes = {path.suffix.lower() for path in files}
    if suffixes & IMAGE_SUFFIXES:
        return ""
    if ".parquet" in suffixes:
        return f"; unpack it first: {unpack}"
    if suffixes & ARCHIVES:
        return f"; extract the archive first{f', or a WebDataset: {unpack}' if '.tar' in suffixes else ''}"
    if HUB_ID.fullmatch(str(near)) and not near.parent.exists():
        return f"; a data set on the Hub is unpacked first: {unpack}"
    return ""


def _odd_split(folders: dict[str, Path], splits: dict[str, Path]) -> str:
    """Why folders, some of which are parts of a split, are no whole split; "" if they are one."""
    if len(splits) != len(folders):
        names = printable(", ".join(sorted(folders)))
        return f"it is split into {names}, which is ambiguous; keep train/, val/ and test/ only"
    if missing := {"train", "test"} - set(splits):
        return (
            f"it has {', '.join(f'{name}/' for name in sorted(folders))} but no "
            f"{' or '.join(f'{name}/' for name in sorted(missing))}; give train/, val/ and test/, or none of them, "
            f"or one alone: --data.path {min(splits.values())}"
        )
    return ""


def _find_classes(root: Path, folder: Path, split: str) -> Iterator[tuple[str, int, str, Stamp]]:
    names = sorted(_folders(folder))
    if sorted(name.lower() for name in names) != sorted(CLASSES):
        where = "it" if folder == root else folder
        table = "; or name a table and its column of labels (--data.metadata FILE.csv --data.label_column COLUMN)"
        raise UserError(
            f"--data.path {root}: {where} must hold exactly the class folders benign/ and malignant/, "
            f"but it holds {printable(', '.join(f'{name}/' for name in names)) or 'no folder'}{_remedy(root) or table}"
        )
    _refuse_loose_images(root, folder)
    for label, name in enumerate(sorted(names, key=str.lower)):
        for path, stamp in files_below(str(folder / name), set()):
            yield _relative(path, root), label, split, stamp


def _relative(path: str, root: Path) -> str:
    return path.removeprefix(f"{root}{os.sep}").replace(os.sep, "/")


def _folders(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}


def _refuse_loose_images(root: Path, folder: Path) -> None:
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if loose := sorted(path.name for path in files if path.suffix.lower() in IMAGE_SUFFIXES):
        raise UserError(
            f"--data.path {root}: images in {folder} beside its folders, so without a label or a part of the split: "
            f"{len(loose)} (such as {printable(loose[0])}); move or remove them"
        )


def files_below(folder: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, Stamp]]:
    """Yield each file that is not hidden, with its stamp, folder by folder in the order of names; links are followed
    too, each real folder once."""
    status = Path(folder).stat()
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            try:
                is_folder, status = entry.is_dir(), entry.stat()
            except OSError:  # a link to nothing or to itself: named when it is read
                yield entry.path, "0"
                continue
            if is_folder:
                yield from files_below(entry.path, seen)
            else:
                yield entry.path, f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
