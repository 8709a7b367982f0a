"""Which files a user means by one word: a folder, a pattern, a table with a column of paths, or one file.

The files come one by one and in the same order each time, so that a million of them need no more memory than ten.
"""

import glob
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from skindist.data.scan import files_below
from skindist.errors import UserError
from skindist.files import expanded, table_rows
from skindist.wording import printable

COLUMN = "path"


class Item(NamedTuple):
    """A file: what it is called in the user's own terms, and where it is ("" where a table's row says nothing)."""

    name: str
    path: str


def list_files(given: str, left_out: Collection[Path] = ()) -> Iterator[Item]:
    """Yield what `given` means: all files of a folder, at any depth, that are not hidden; what a pattern with `*`, `?`
    or `[...]` fits; each row of a CSV file that has a column `path`, whose paths start in that file's folder; or else
    the one file.

    Args:
        left_out: real paths of files, and of folders with all that is in them, that are never meant.

    Raises:
        UserError: nothing is there, a folder cannot be read, or the table cannot.
    """
    place = expanded(given)
    if place.is_dir():
        items = _in_folder(str(place))
    elif place.suffix.lower() == ".csv":
        items = _in_table(place)
    elif place.exists():
        items = iter([Item(given, str(place))])
    elif glob.has_magic(given):
        found = glob.glob(str(place), recursive=True)  # noqa: PTH207 - of any root, where `Path.glob` has one
        items = (Item(path, path) for path in sorted(found) if not Path(path).is_dir())
    else:
        raise UserError(f"{given}: no such file or folder; give a folder, an image, a quoted pattern or a CSV file")
    try:
        yield from (item for item in items if not left_out or not _lies_in(item.path, left_out))
    except OSError as error:
        raise UserError(f"{error.filename or given}: cannot be read ({error.strerror})") from None


def _lies_in(path: str, places: Collection[Path]) -> bool:
    if "\0" in path:  # a row of a table that a crash has filled with zeros: no path, which its reader will say
        return False
    real = Path(os.path.realpath(path))
    return any(place in (real, *real.parents) for place in places)


def _in_folder(folder: str) -> Iterator[Item]:
    for path, _ in files_below(folder, set()):
        yield Item(os.path.relpath(path, folder).replace(os.sep, "/"), path)


def _in_table(file: Path) -> Iterator[Item]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = table_rows(lines)
            _, names = next(rows, (0, []))
            if COLUMN not in names:
                found = ", ".join(map(printable, names)) or "nothing"
                raise UserError(f"no column is called {COLUMN}; found {found}")
            column = names.index(COLUMN)
            for _, cells in rows:
                name = cells[column] if column < len(cells) else ""
                yield Item(name, str(file.parent / expanded(name)) if name else "")
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8 text; save it as CSV in UTF-8") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
