"""What lies in a folder: the scan, the metadata joined to it, and what ties images together. `skindist audit` shows
that, and a run is prepared from it."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from skindist.data.duplicates import Kind, Link, find_links, group_images, straddling
from skindist.data.labels import refuse_lonely_flags, split_of, use_table
from skindist.data.metadata import Metadata, read_metadata
from skindist.data.remembering import memory_of
from skindist.data.scan import CLASSES, SPLIT_WORDS, UNLABELLED, ImageFile, Scan, scan_folder
from skindist.errors import UserError
from skindist.files import expanded
from skindist.recipe import DataConfig
from skindist.wording import printable

log = logging.getLogger("skindist")


@dataclass(frozen=True)
class Survey:
    """All that is known of a folder before it is split: usable images, their metadata, the links between them, and
    the group of each image."""

    scan: Scan
    metadata: Metadata
    links: list[Link]
    groups: list[str]

    @property
    def images(self) -> list[ImageFile]:
        """The usable images."""
        return self.scan.images

    @cached_property
    def bad(self) -> dict[str, str]:
        """Why each image is bad that cannot be used, or has the same bytes as one with the other label."""
        return dict([*self.scan.bad, *conflicting_copies(self)])

    def leaks(self) -> list[Link]:
        """Links that cross the given split; none where the folder has none."""
        return straddling(self.links, [image.split for image in self.images])

    def conflicts(self) -> list[Link]:
        """Links but of patients that lie in both classes; a patient may have lesions of both."""
        links = [link for link in self.links if link.kind != "patient"]
        return straddling(links, [image.label for image in self.images])


def survey(config: DataConfig, part: str | None = None) -> Survey:
    """Scan the folder and find what belongs together.

    Args:
        part: of a folder that is split, the only part to look at.

    Raises:
        UserError: an ambiguous folder, or metadata that cannot be joined.
    """
    scan = look_into(config)
    refuse_parts_of_classes(config, scan.images)
    by_table = config.split_column is not None
    scan = part_of(scan, part) if part and not by_table else scan
    metadata = metadata_of(config, scan)
    scan = use_table(config, scan, metadata)
    scan = part_of(scan, part, split_of(config, metadata)) if part and by_table else scan
    metadata = {image.path: metadata[image.path] for image in scan.images if image.path in metadata}
    links = find_links(scan.images, metadata, memory_of(config.cache_dir))
    return Survey(scan, metadata, links, group_images(scan.images, links))


def look_into(config: DataConfig) -> Scan:
    """What lies in the folder.

    Raises:
        UserError: an ambiguous folder, or flags that mean nothing without others.
    """
    refuse_lonely_flags(config)
    labels, split = (column is not None for column in (config.label_column, config.split_column))
    return scan_folder(data_folder(config), config.cache_dir, any_layout=labels, split_by_table=split)


def refuse_parts_of_classes(config: DataConfig, images: Iterable[ImageFile]) -> None:
    """Raise UserError where a folder within a class folder is named like a class or a part of the split. A run that was
    begun on such a folder goes on: this is asked of new ones."""
    for image in images:
        folders = image.path.split("/")[:-1]
        top = len(folders) if image.label == UNLABELLED else 2 if image.split else 1
        for depth, name in enumerate(folders[top:], top + 1):
            if name.lower() in {*CLASSES, *SPLIT_WORDS}:
                within = printable("/".join(folders[:depth]))
                raise UserError(
                    f"--data.path {config.path}: {within}/ lies in a class folder, where its name says nothing; move "
                    "its images (a split is train/benign/, not benign/train/), or rename it"
                )


def metadata_of(config: DataConfig, scan: Scan, quiet: bool = False) -> Metadata:
    """What the table says of each file, usable or not; nothing without a table."""
    if config.metadata is None:
        return {}
    paths, bad = [image.path for image in scan.images], [path for path, _ in scan.bad]
    return read_metadata(expanded(config.metadata), paths, bad, (config.label_column, config.split_column), quiet)


def part_of(scan: Scan, part: str, splits: Mapping[str, str] | None = None) -> Scan:
    """What a scan found in one part of the split; all of it where there is no split.

    Args:
        splits: the part of each file, if it is not its folder that says so.
    """
    if not any(image.split for image in scan.images):
        return scan
    log.info(f"data: the {'folder' if splits is None else 'table'} is split: its {part}/ alone is used")

    def inside(path: str) -> bool:
        said = SPLIT_WORDS.get(path.partition("/")[0].lower()) if splits is None else splits.get(path)
        return said == part

    images = [image for image in scan.images if image.split == part]
    bad, left_out = ([(path, reason) for path, reason in found if inside(path)] for found in (scan.bad, scan.left_out))
    return Scan(images, bad, [path for path in scan.others if inside(path)], left_out)


def data_folder(config: DataConfig) -> Path:
    """The folder of images, or UserError where none is given."""
    if config.path is None:
        raise UserError("--data.path is missing: give the folder that holds the class folders benign/ and malignant/")
    return expanded(config.path)


def conflicting_copies(found: Survey) -> list[tuple[str, str]]:
    """(path, reason) of the same bytes in both classes: one label is wrong, and nothing tells which."""
    return [
        (found.images[member].path, f"same bytes as {found.images[other].path}, which has the other label")
        for link in found.conflicts()
        if link.kind == "same bytes"
        for member in link.members
        for other in [next(m for m in link.members if found.images[m].label != found.images[member].label)]
    ]


def describe_links(links: Iterable[Link]) -> str:
    """Counts of links by kind, in words."""
    kinds = Counter(link.kind for link in links)
    words: dict[Kind, tuple[str, str]] = {
        "same bytes": ("set of copies", "sets of copies"),
        "near-duplicate": ("pair of near-duplicates", "pairs of near-duplicates"),
        "ISIC id": ("ISIC id", "ISIC ids"),
        "lesion": ("lesion", "lesions"),
        "patient": ("patient", "patients"),
    }
    return ", ".join(f"{kinds[kind]} {several[kinds[kind] > 1]}" for kind, several in words.items() if kinds[kind])
