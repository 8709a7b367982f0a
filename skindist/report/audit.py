"""All that is known of a folder of images before training: `skindist audit` says it in short on the terminal and in
full, with pictures, on one HTML page that needs nothing else."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skindist.data.duplicates import Link
from skindist.data.metadata import ALIASES, NO_ID
from skindist.data.scan import CLASSES, ImageFile
from skindist.data.split import SPLITS
from skindist.data.survey import Survey, data_folder, describe_links, survey
from skindist.evaluation.resampling import FEWEST
from skindist.evaluation.shortcut import shortcut_baseline
from skindist.recipe import DataConfig
from skindist.report.html import Table, refuse_bad_place, write_page
from skindist.report.page import Pictures, Section, as_page, as_text

DRAWN = 200  # sets of pictures in one section of the page
BESIDE = 6  # pictures of one set
EXAMPLES = 8  # pictures of each class
TELLING = 0.6  # AUROC: a shortcut baseline that surely scores more wants attention


def audit(config: DataConfig, page: Path) -> str:
    """Survey the folder, write the page and return the text for the terminal.

    Raises:
        UserError: the page cannot be written there; an ambiguous folder, or metadata that cannot be joined.
    """
    refuse_bad_place(page)
    root = data_folder(config)
    found = survey(config)
    sections = list(examine(found))
    write_page(page, as_page(root, found.images, sections))
    return as_text(root, sections, page)


def examine(found: Survey) -> Iterator[Section]:
    """All that there is to say, section by section."""
    bad = sorted(found.bad.items())
    conflicts = found.conflicts()
    yield _images(found.images)
    yield _sizes(found.images)
    yield _list("Unusable images", [f"{path}: {reason}" for path, reason in bad], attention=bool(bad))
    if left_out := found.scan.left_out:
        yield _list("Without a label", [f"{path}: {reason}" for path, reason in left_out], attention=True)
    yield _converted(found.images)
    yield _list("Other files", found.scan.others)
    yield _metadata(found)
    yield _groups(found)
    yield _linked(found, "Copies", [link for link in found.links if link.kind == "same bytes"])
    yield _linked(found, "Near-duplicates", [link for link in found.links if link.kind == "near-duplicate"])
    yield _linked(found, "Label conflicts", conflicts, attention=bool(conflicts))
    yield _leaks(found)
    yield _shortcut(found)


def _images(images: Sequence[ImageFile]) -> Section:
    count = Counter((split, image.label) for image in images for split in {image.split, "total"})
    parts = [part for part in (*SPLITS, "total") if count[part, 0] or count[part, 1]]
    rows = [(part, *_figures(count[part, 0], count[part, 1], count[part, 0] + count[part, 1])) for part in parts]
    tables = [Table(("split", *CLASSES, "total"), rows)] if len(parts) > 1 else []
    examples = []
    for label, name in enumerate(CLASSES):
        members = [index for index, image in enumerate(images) if image.label == label]
        chosen = np.linspace(0, len(members) - 1, min(EXAMPLES, len(members))).astype(int).tolist()
        examples.append(Pictures(f"{name}, {len(chosen)} of {len(members):,}", [members[index] for index in chosen]))
    verdict = " + ".join(f"{count['total', label]:,} {name}" for label, name in enumerate(CLASSES))
    lacking = not parts or any(not count[part, label] for part in parts for label in range(len(CLASSES)))
    return Section("Images", verdict, lacking, len(images), tables, pictures=examples)


def _sizes(images: Sequence[ImageFile]) -> Section:
    if not images:
        return Section("Sizes and formats", "none")
    by_area = sorted({(image.facts.width * image.facts.height, image.facts.width) for image in images})
    ends = [f"{width} x {area // width}" for area, width in by_area[:: max(1, len(by_area) - 1)]]
    counts = {
        "pixels": Counter(f"{image.facts.width} x {image.facts.height}" for image in images),
        "format": Counter(image.facts.format for image in images),
    }
    return Section(
        "Sizes and formats",
        f"{' to '.join(ends)} pixels; {', '.join(sorted(counts['format']))}",
        tables=[_frequencies(what, values) for what, values in counts.items() if len(values) > 1],
    )


def _converted(images: Sequence[ImageFile]) -> Section:
    converted = [image.facts.notes for image in images if image.facts.notes]
    table = _frequencies("what", Counter(note for notes in converted for note in notes))
    return Section("Converted", _number(converted), count=len(converted), tables=[table])


def _metadata(found: Survey) -> Section:
    if not found.metadata:
        return Section("Metadata", "no table was given: lesions and patients are unknown", attention=True)
    total, known = len(found.images), {name: sum(map(bool, _values(found, name))) for name in ALIASES}
    unknown = not known["lesion_id"] and not known["patient_id"]
    said = f"{len(found.metadata):,} of {total:,} images have a row"
    tables = [Table(("column", "images", "share"), [(name, f"{n:,}", f"{n / total:.0%}") for name, n in known.items()])]
    if known["source"]:
        sources = _values(found, "source")
        of = Counter(zip(sources, (image.label for image in found.images), strict=True))
        rows = [(name or "unknown", *_figures(of[name, 0], of[name, 1])) for name, _ in _frequent(Counter(sources))]
        tables.append(Table(("source", *CLASSES), rows))
    return Section("Metadata", f"{said}; lesions and patients are unknown" if unknown else said, unknown, tables=tables)


def _groups(found: Survey) -> Section:
    sizes, rows = Counter(found.groups), []
    largest = max(sizes.values(), default=0)
    for name in ("lesion", "patient"):
        if ids := set(_values(found, f"{name}_id")) - {""}:
            rows.append((f"{name}s", *_figures(len(ids), sum(link.kind == name for link in found.links))))
    table = Table(("what", "all", "with several images"), rows)
    said = f"{len(sizes):,} that a split must not part; the largest holds {largest:,} of {len(found.groups):,} images"
    return Section("Groups", said, largest > max(10, len(found.groups) / 10), len(sizes), [table])


def _leaks(found: Survey) -> Section:
    if not any(image.split for image in found.images):
        return Section("Leaks", "the folder is not split; skindist draws a split that keeps groups together")
    leaks = found.leaks()
    table = _frequencies("what, between", Counter(f"{link.kind}, {_sides(found, link)}" for link in leaks), "leaks")
    return _linked(found, "Leaks", leaks, attention=bool(leaks), tables=[table])


def _shortcut(found: Survey) -> Section:
    shortcut = shortcut_baseline(found.images, found.groups)
    if shortcut is None:
        return Section("Shortcut baseline", f"too few images: it takes {FEWEST} groups of each class")
    scores = {"all together": shortcut.auroc.value, **shortcut.families}
    rows = [(name, f"{score:.2f}") for name, score in scores.items()]
    table = Table(("what it sees", "AUROC"), rows, [max(0.0, 2 * score - 1) for score in scores.values()])
    return Section("Shortcut baseline", shortcut.verdict, shortcut.auroc.low > TELLING, tables=[table])


def _list(title: str, items: Sequence[str], attention: bool = False) -> Section:
    return Section(title, _number(items), attention, len(items), items=items)


def _linked(found: Survey, title: str, links: Sequence[Link], **more: Any) -> Section:
    """What is tied together, in words and in pictures."""
    return Section(
        title,
        describe_links(links) or "none",
        count=len(links),
        items=[", ".join(found.images[member].path for member in link.members) for link in links],
        pictures=[_side_by_side(found, link) for link in links[:DRAWN]],
        undrawn=max(0, len(links) - DRAWN),
        **more,
    )


def _side_by_side(found: Survey, link: Link) -> Pictures:
    """A link's images; if they are too many, one of each split and class comes before a second one of any."""
    of_kind = {(found.images[member].split, found.images[member].label): member for member in reversed(link.members)}
    shown = sorted(link.members, key=lambda member: member not in of_kind.values())[:BESIDE]
    bits = f"{link.distance} bits apart" if link.kind == "near-duplicate" else ""
    few = f"{len(shown)} of {len(link.members):,} images" if len(shown) < len(link.members) else ""
    return Pictures(", ".join(filter(None, (link.kind, _sides(found, link), bits, few))), shown)


def _sides(found: Survey, link: Link) -> str:
    """The parts of the given split that a link touches, such as "train/test"."""
    touched = {found.images[member].split for member in link.members}
    return "/".join(split for split in SPLITS if split in touched)


def _values(found: Survey, column: str) -> list[str]:
    """What the metadata say of each image; "" where they do not know."""
    values = [found.metadata.get(image.path, {}).get(column, "") for image in found.images]
    return ["" if value.lower() in NO_ID else value for value in values]


def _frequent(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _frequencies(what: str, counts: Counter[str], of: str = "images") -> Table:
    """How often each value occurs, most frequent first."""
    return Table((what, of), [(name, *_figures(count)) for name, count in _frequent(counts)])


def _figures(*numbers: int) -> list[str]:
    return [f"{number:,}" for number in numbers]


def _number(things: Sequence[Any]) -> str:
    return f"{len(things):,}" if things else "none"
