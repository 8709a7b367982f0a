"""Files that are either whole or absent: write beside the target, flush to disk, rename."""

import csv
import io
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any, TextIO

from skindist.errors import UserError

UNFINISHED = ".unfinished"  # in a folder that is there: what becomes its content


def expanded(path: str) -> Path:
    """The path with a home for `~` or `~name`. A file's name that only begins so stays; `Path.expanduser` raises."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into, which replaces `path` when all of it is on disk; a crash at any moment leaves the old file
    or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # that of a full disk names no file
            error.filename = error.filename or str(path)
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`, as `replacing` does."""
    with replacing(path) as file:
        # File names need not be UTF-8: Python's stand-ins for such bytes go back to what they were.
        file.write(content.encode(errors="surrogateescape") if isinstance(content, str) else content)


def write_cache(file: Path, content: str) -> None:
    """Keep something for the next time in a cache; one that cannot be written costs time then, nothing else."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file atomically."""
    text = io.StringIO()
    write_rows(text, chain([header], rows))
    write_atomic(path, text.getvalue())


def write_rows(text: TextIO, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as CSV: a float as repr says it, None as nothing."""
    plain = csv.writer(text, lineterminator="\n")
    quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:  # until Python 3.13, a carriage return alone would stay bare, and end the row
        (quoting if any("\r" in cell for cell in row if isinstance(cell, str)) else plain).writerow(row)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column; names of files need not be UTF-8."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
        return list(csv.DictReader(lines))


def table_rows(lines: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Each row of a table that a user gives, with the number of its last line: fields between commas, semicolons or
    tabs, whichever the first line has most of. The line that tells Excel which it is, `sep=;`, is passed over.

    Raises:
        UserError: the table is malformed.
    """
    first_line = re.sub('"[^"]*"', "", next((line for line in lines if line.strip()), ""))
    lines.seek(0)
    reader = csv.reader(lines, delimiter=max(",;\t", key=first_line.count), strict=True)
    try:
        for cells in ([cell.strip() for cell in row] for row in reader):
            if cells and [cell.lower() for cell in cells] != ["sep=", ""]:
                yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"line {reader.line_num}: {error}; is a quote not closed?") from None


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically, indented."""
    write_atomic(path, json.dumps(finite(values), indent=2) + "\n")


def finite(values: Any) -> Any:
    """The same values with null for NaN and infinity, which JSON does not have."""
    if isinstance(values, dict):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def is_occupied(folder: Path) -> bool:
    """Whether something is there that `whole_folder` may not replace."""
    return os.path.lexists(folder) and not (
        folder.is_dir() and {path.name for path in folder.iterdir()} <= {UNFINISHED}
    )


def refuse_occupied(out: Path) -> None:
    """Raise UserError unless `whole_folder` may become what `--out` says: before the work, not after."""
    if is_occupied(out):
        what = "not empty" if out.is_dir() else "a file" if out.exists() else "a link to nothing"
        raise UserError(f"--out {out}: is {what}; give a new folder")
    if file := next((place for place in out.absolute().parents if place.is_file()), None):
        raise UserError(f"--out {out}: {file} is a file; give another folder")
    if why := why_unwritable(out):
        raise UserError(f"--out {out}: cannot be made ({why}); give another folder")


def why_unwritable(folder: Path) -> str:
    """Why nothing can be made in a folder, which need not be there yet; "" if it can. Trying leaves nothing."""
    near = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    try:
        tempfile.TemporaryDirectory(prefix=".", dir=near).cleanup()
    except OSError as error:
        return f"{error.strerror}: {near}"
    return ""


def refuse_within(place: Path, flag: str, images: str | None) -> None:
    """Raise UserError where a new folder would lie among the images, and be taken for some of them; a hidden one is
    not."""
    real, root = Path(os.path.realpath(place)), os.path.realpath(expanded(images or ""))
    if not images or not real.is_relative_to(root):
        return
    if not any(name.startswith(".") for name in real.relative_to(root).parts):
        raise UserError(
            f"{flag} {place}: lies within the images ({images}), where it would be taken for some; give another folder"
        )


def refuse_bad_file(out: Path, suffixes: Collection[str], overwrite: bool) -> None:
    """Raise UserError unless what `--out` says can become a file of one of these kinds: before the work, not after."""
    if out.suffix.lower() not in suffixes:
        *most, last = suffixes
        raise UserError(f"--out {out}: its name must end in {', '.join(most)} or {last}")
    if out.is_dir() or (out.exists() and not overwrite):
        raise UserError(f"--out {out}: {'is a folder' if out.is_dir() else 'exists; give another, or --overwrite'}")
    if out.exists() and not out.is_file():
        raise UserError(f"--out {out}: is not a file; give another")
    if not (folder := out.absolute().parent).is_dir():
        raise UserError(f"--out {out}: there is no folder {folder}; create it")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out {out}: {folder} is not writable; give another folder")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes `folder` (not there yet, or empty) when all of it is written.

    A folder that is there stays the same one, as it may be a mount, or where the user is: it gets what was written.

    Raises:
        UserError: a file of it cannot be written, or another one not be read; nothing of it is left.
    """
    there = folder.is_dir()
    temporary = folder / UNFINISHED if there else folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if there:
            for path in temporary.iterdir():
                path.rename(folder / path.name)
        else:
            temporary.rename(folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}; {folder} is not written") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
