"""The audit as plain data (sections with tables, lists and pictures), and its two forms: text for the terminal and one
HTML page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from skindist.data.scan import ImageFile
from skindist.report.html import Table, of_images, render, thumbnail
from skindist.wording import printable

LISTED = 5  # lines of one list on the terminal
WHOLE = 8  # rows up to which a table is shown whole there
WIDTH = 200  # characters of a line there


class Pictures(NamedTuple):
    """Images, by their index, to be seen side by side."""

    caption: str
    members: Sequence[int]


@dataclass(frozen=True)
class Section:
    """One thing that was looked at. `count` stands in its heading; `undrawn` sets of pictures are too many to show."""

    title: str
    verdict: str
    attention: bool = False
    count: int | None = None
    tables: Sequence[Table] = ()
    items: Sequence[str] = ()
    pictures: Sequence[Pictures] = ()
    undrawn: int = 0


def as_text(root: Path, sections: Iterable[Section], page: Path) -> str:
    """What the terminal shows: a line for each section, and the beginning of its tables and lists."""
    lines = [f"audit of {root}", ""]
    for section in sections:
        lines.append(f"{'!' if section.attention else ' '} {section.title.lower():<17}  {section.verdict}")
        details = [line for table in section.tables for line in _aligned(table)] + _beginning(section.items)
        lines += [f"{'':21}{line if len(line) <= WIDTH else f'{line[:WIDTH]} ...'}" for line in details]
    lines += ["", f"! wants attention; everything, with pictures: {page}"]
    return "\n".join(map(printable, lines))


def as_page(root: Path, images: Sequence[ImageFile], sections: Sequence[Section]) -> str:
    """The HTML page."""
    shown = sorted({member for section in sections for pictures in section.pictures for member in pictures.members})
    thumbnails = of_images(shown, lambda index: thumbnail(root / images[index].path))
    return render("audit.html", root=str(root), images=images, sections=sections, thumbnails=thumbnails)


def _beginning(lines: Sequence[str]) -> list[str]:
    more = [f"... and {len(lines) - LISTED:,} more, all on the page"] if len(lines) > LISTED else []
    return [*lines[:LISTED], *more]


def _aligned(table: Table) -> list[str]:
    """The lines of a table, fewer if it is long; none if it has no rows."""
    first, *others = zip(table.header, *table.rows, strict=True)
    padded = [[cell.ljust(max(map(len, first))) for cell in first]]
    padded += [[cell.rjust(max(map(len, column))) for cell in column] for column in others]
    header, *lines = map("  ".join, zip(*padded, strict=True))
    return [header, *(lines if len(lines) <= WHOLE else _beginning(lines))] if lines else []
