"""A report as plain data (sections with tables, lists and pictures), and its two forms: text for the terminal and one
HTML page that needs nothing else."""

import base64
import io
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from PIL import Image

from skindist.data.inspection import FORMATS, decode
from skindist.data.scan import ImageFile
from skindist.machine import available_cores

LISTED = 5  # lines of one list on the terminal
WHOLE = 8  # rows up to which a table is shown whole there
WIDTH = 200  # characters of a line there
SIDE = 160  # pixels of a picture
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # the last: not UTF-8


class Table(NamedTuple):
    """Headings of the columns, rows of as many cells, and maybe for each row the length (0 to 1) of a bar."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Sequence[float] = ()


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
    return "\n".join(map(_printable, lines))


def as_page(root: Path, images: Sequence[ImageFile], sections: Sequence[Section]) -> str:
    """The HTML page."""
    shown = sorted({member for section in sections for pictures in section.pictures for member in pictures.members})
    with ThreadPoolExecutor(available_cores()) as pool:
        thumbnails = dict(zip(shown, pool.map(_thumbnail, (root / images[i].path for i in shown)), strict=True))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_printable
    )
    template = environment.from_string(files("skindist.report").joinpath("audit.html").read_text("utf-8"))
    return template.render(root=str(root), images=images, sections=sections, thumbnails=thumbnails)


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


def _thumbnail(path: Path) -> str:
    """A small JPEG as a data URI; "" if the file could be read a moment ago and cannot be now."""
    try:
        with Image.open(path, formats=FORMATS) as opened:
            picture = decode(opened, (SIDE, SIDE))
    except OSError:
        return ""
    picture.thumbnail((SIDE, SIDE))
    picture.info.clear()  # else a comment in the file, which may name the patient, would be written along
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _printable(value: Any) -> Any:
    """Text without control characters, changes of writing direction and stand-ins for bytes that are not UTF-8."""
    return UNPRINTABLE.sub("\ufffd", value) if isinstance(value, str) else value
