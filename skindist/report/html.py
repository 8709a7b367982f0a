"""Pages that need nothing else: text, pictures, style and script in one HTML file, and no request to anywhere."""

import base64
import functools
import hashlib
import io
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jinja2
from markupsafe import Markup
from PIL import Image

from skindist.data.inspection import FORMATS, decode, reading_images
from skindist.errors import Damaged, UserError
from skindist.files import write_atomic
from skindist.machine import available_cores
from skindist.report.words import figure_text, title
from skindist.wording import printable

T = TypeVar("T")
log = logging.getLogger("skindist")
PAGES, PICTURES = (".html", ".htm"), (".png",)  # how their files end
SIDE = 160  # pixels of a picture


class Table(NamedTuple):
    """Headings of the columns, rows of as many cells, and maybe for each row the length (0 to 1) of a bar."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Sequence[float] = ()


def render(template: str, script: str | None = None, lenient: bool = False, **values: Any) -> str:
    """One HTML page that needs nothing else, from a template beside this file. What a value holds is text, never HTML,
    unless it is Markup.

    Args:
        script: the name of the one script that the page may run.
        lenient: what is missing in a value counts as absent, instead of being a mistake in the template.
    """
    if script:
        values["script"] = Markup(_beside(script))
    return _environment(lenient).get_template(template).render(values)


@functools.cache
def _environment(lenient: bool) -> jinja2.Environment:
    """What knows the templates: it reads each of them once."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.ChainableUndefined if lenient else jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=as_shown,
        loader=jinja2.FunctionLoader(_beside),
    )
    environment.filters |= {"figure": figure_text, "titled": title, "digest": _digest}
    return environment


def attempt(read: Callable[[], T]) -> T | None:
    """What a reader of the run folder gives; None where its file is missing or, which is said, damaged."""
    try:
        return read()
    except Damaged as error:
        log.warning(f"{error}; what it tells is left out")
    except UserError:
        pass
    return None


def refuse_bad_place(page: Path, endings: Collection[str] = PAGES) -> None:
    """Raise UserError where no page can be written there: before the work, not after."""
    if page.is_dir() or not page.parent.is_dir():
        raise UserError(f"{page}: {'is a folder' if page.is_dir() else f'there is no folder {page.parent}'}")
    if page.suffix not in endings:
        raise UserError(f"{page}: is no name of a page; give one that ends in .html")


def write_page(page: Path, content: str | bytes) -> Path:
    """Write a page, or a picture, and return where. Raises UserError where that cannot be."""
    refuse_bad_place(page, PAGES if isinstance(content, str) else PICTURES)
    try:
        write_atomic(page, content)
    except OSError as error:
        raise UserError(f"{page}: cannot be written ({error.strerror})") from None
    return page


def _beside(name: str) -> str:
    return files("skindist.report").joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    """What a page's policy calls a script that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def thumbnail(path: Path, side: int = SIDE) -> str:
    """A small JPEG as a data URI, its longer side at most `side` pixels; "" if the file could be read a moment ago and
    cannot be now."""
    try:
        with Image.open(path, formats=FORMATS) as opened:
            picture = decode(opened, (side, side))
    except OSError:
        return ""
    picture.thumbnail((side, side))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def of_images(wanted: Sequence[int], make: Callable[[int], T]) -> dict[int, T]:
    """What a function makes of each image, several at a time."""
    with reading_images(), ThreadPoolExecutor(available_cores()) as pool:
        return dict(zip(wanted, pool.map(make, wanted), strict=True))


def as_shown(value: Any) -> Any:
    """Text that is no markup of ours, as it can be printed."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
