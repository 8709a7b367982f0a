"""A table that grows for hours and survives a kill: rows are kept beside it, and become CSV, JSON lines or Parquet at
the end, all at once. What a file is written as follows from its name."""

import fcntl
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from skindist.errors import TrainingError, UserError
from skindist.files import replacing, sync_folder, write_rows

Row = Sequence[str | float | None]
AT_ONCE = 65_536  # rows of a group in a Parquet file
WRITTEN_AS = {
    "path": pa.string(), "probability": pa.float64(), "decision": pa.string(), "error": pa.string(),
    "logit": pa.float64(), "heat_map": pa.string(),
}  # fmt: skip
"""Type of each column that there may be."""


def part_of(out: Path) -> Path:
    """Where the rows of an unfinished table are."""
    return out.with_name(f"{out.name}.part")


class GrowingTable(AbstractContextManager["GrowingTable"]):
    """The rows so far, in a file that no other process may write meanwhile. The file begins with what they depend on.

    `kept` is the number of whole batches' rows that an earlier, interrupted process left.
    """

    def __init__(self, out: Path, depends_on: Mapping[str, Any], batch: int) -> None:
        """Take up an unfinished table, or begin one.

        Raises:
            UserError: it cannot be written, another process writes it, or an unfinished one depends on something else.
        """
        self.out, self.part = out, part_of(out)
        try:
            self._descriptor = os.open(self.part, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written ({error.strerror}); give another file") from None
        try:
            self.kept = self._take_up(depends_on, batch)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take_up(self, depends_on: Mapping[str, Any], batch: int) -> int:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {self.out}: another process is writing it; give another file") from None
        lines = self._lines()
        first = next(lines, None)
        if first is None:
            os.ftruncate(self._descriptor, 0)
            self._write([json.dumps(depends_on)])
            return 0
        if differs := _differing(first, depends_on):
            raise UserError(
                f"{self.part}: it was begun with another {differs}; run that command again to finish it, or delete it"
            )
        kept = sum(1 for _ in lines) // batch * batch
        os.ftruncate(self._descriptor, sum(map(len, islice(self._lines(), 1 + kept))))
        return kept

    def _lines(self) -> Iterator[bytes]:
        """All lines; a last one that was cut off is none."""
        with self.part.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))

    def rows(self) -> Iterator[Row]:
        """All rows that are there."""
        return map(json.loads, islice(self._lines(), 1, None))

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows, and wait until they are on the disk.

        Raises:
            TrainingError: it is full; the rows before are kept.
        """
        self._write(json.dumps(row) for row in rows)

    def finish(self, columns: Sequence[str]) -> None:
        """Write the table as its name says, and remove what it grew in. A crash leaves all of it or nothing.

        Raises:
            TrainingError: the disk is full; the rows are kept.
        """
        try:
            with replacing(self.out) as file:
                WRITERS[self.out.suffix.lower()](file, columns, self.rows())
        except OSError as error:
            raise _no_room(self.out, error) from None
        self.part.unlink()
        sync_folder(self.out.absolute().parent)

    def __exit__(self, *_: object) -> None:
        """Let go of the file, which is kept; but of one that holds no row nothing is left."""
        if self.part.exists() and next(self.rows(), None) is None:
            self.part.unlink()
        os.close(self._descriptor)

    def _write(self, lines: Iterable[str]) -> None:
        content = "".join(f"{line}\n" for line in lines).encode()
        before = os.fstat(self._descriptor).st_size
        try:
            while content:
                content = content[os.write(self._descriptor, content) :]
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            raise _no_room(self.part, error) from None


def _no_room(file: Path, error: OSError) -> TrainingError:
    """What to say of a full disk."""
    return TrainingError(
        f"{file}: {error.strerror or error}; make room, and start the same command again: it goes on where it was"
    )


def _differing(first: bytes, depends_on: Mapping[str, Any]) -> str:
    """The first thing that a table depended on that is otherwise now; "" if there is none."""
    try:
        before = json.loads(first)
        return next((what for what, value in depends_on.items() if before.get(what) != value), "")
    except (ValueError, AttributeError):
        return "program"


def _write_csv(file: IO[bytes], columns: Sequence[str], rows: Iterator[Row]) -> None:
    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")  # names of files need not be UTF-8
    write_rows(text, chain([columns], rows))
    text.detach()


def _write_json_lines(file: IO[bytes], columns: Sequence[str], rows: Iterator[Row]) -> None:
    for row in rows:
        file.write(json.dumps(dict(zip(columns, row, strict=True))).encode() + b"\n")


def _write_parquet(file: IO[bytes], columns: Sequence[str], rows: Iterator[Row]) -> None:
    schema = pa.schema([(name, WRITTEN_AS[name]) for name in columns])
    with pq.ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, AT_ONCE)):
            values = [[_as_utf8(value) for value in column] for column in zip(*group, strict=True)]
            writer.write_table(pa.table(dict(zip(columns, values, strict=True)), schema))


def _as_utf8(value: str | float | None) -> str | float | None:
    """Parquet knows no other text: a byte that is none becomes a question mark."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


WRITERS: dict[str, Callable[[IO[bytes], Sequence[str], Iterator[Row]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}
