"""Join a metadata CSV to the images by path, file name or ISIC id; HAM10000 and ISIC tables work as they come."""

import io
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from skindist.errors import UserError
from skindist.files import table_rows
from skindist.wording import plural, printable

Metadata = dict[str, dict[str, str]]  # image path -> column -> value
KEYS = ("path", "file_name", "filename", "file", "image", "image_id", "image_name", "img_id", "isic_id", "id", "name")
RARE_KEYS = ("image_path", "filepath", "bcn_filename", "ddi_file", "md5hash")  # three: BCN20000, DDI, Fitzpatrick17k
ALIASES = {  # canonical name: what a table may call it, best first
    "patient_id": ("patient_id", "patient", "subject_id", "case_id"),
    "lesion_id": ("lesion_id", "lesion"),
    "age": ("age", "age_approx"),
    "sex": ("sex", "gender"),
    "site": ("site", "localization", "anatom_site_general", "anatom_site_general_challenge", "anatom_site_1"),
    "skin_tone": ("skin_tone", "fitzpatrick_skin_type", "fitzpatrick", "fitzpatrick_scale", "fitspatrick", "skin_type"),
    "source": ("source", "dataset", "attribution"),
}
IDS = ("patient_id", "lesion_id")
NO_ID = {  # kept, these would make one patient of all unknown ones
    "na", "n/a", "n.a.", "#n/a", "<na>", "nan", "none", "null", "unknown", "missing", "not available", "#ref!",
    "-", "--", "?", ".",
}  # fmt: skip
ISIC_ID = re.compile(r"ISIC_[0-9]{7}(?![0-9])", re.IGNORECASE)
log = logging.getLogger("skindist")


class _Row(NamedTuple):
    line: int
    key: str
    values: dict[str, str]


def read_metadata(
    file: Path,
    paths: Sequence[str],
    bad: Sequence[str] = (),
    telling: Sequence[str | None] = (),
    quiet: bool = False,
) -> Metadata:
    """Find the row of each image (path relative to the data folder); an image without one is left out.

    Args:
        bad: paths of images that cannot be used, and may have a row, too.
        telling: columns, if not None, in which two rows of one image must not differ, either.
        quiet: do not say how many images have a row.

    Raises:
        UserError: the file is missing, not UTF-8 or malformed; no column names the images, or no row any of them;
            one name fits several images; two rows of one image differ in patient or lesion.
    """
    if not file.is_file():
        raise UserError(f"--data.metadata {file}: {'is a folder' if file.is_dir() else 'no such file'}")
    try:
        columns, rows = _parse(file.read_bytes().decode("utf-8-sig"))
        agreed = (*IDS, *(canonical_name(name) for name in telling if name))
        metadata, lonely, shared = _join(rows, [*paths, *bad], agreed)
    except UnicodeDecodeError:
        raise UserError(f"--data.metadata {file}: is not UTF-8 text; save it as CSV in UTF-8") from None
    except OSError as error:
        raise UserError(f"--data.metadata {file}: cannot be read ({error.strerror})") from None
    except UserError as error:
        raise UserError(f"--data.metadata {file}: {error}") from None
    if quiet:
        return metadata
    known = ", ".join(name for name in ALIASES if name in columns) or "no known column"
    number = sum(path in metadata for path in paths)
    log.info(f"metadata: {number:,} of {len(paths):,} images have a row in {file.name} ({known})")
    if missing := [path for path in paths if path not in metadata]:
        log.warning(f"metadata: {plural(len(missing), 'image')} without a row, such as {printable(missing[0])}")
    if lonely:
        log.info(
            f"metadata: {plural(len(lonely), 'row')} without an image among these, such as {printable(lonely[0].key)}"
        )
    if shared:
        such = " and ".join(map(printable, shared[0][:2]))
        log.warning(f"metadata: rows that each fit several images: {len(shared):,}, such as {such}")
    if metadata and not any(values.get(name) for values in metadata.values() for name in IDS):
        log.warning(
            "metadata: patients and lesions are unknown: a split may part them; name the column patient_id or lesion_id"
        )
    return metadata


def _parse(text: str) -> tuple[list[str], list[_Row]]:
    """Names of the columns, canonical where known, and the rows."""
    lines = [(line, cells) for line, cells in table_rows(io.StringIO(text, newline="")) if any(cells)]
    if len(lines) < 2:
        raise UserError("has a header but no rows" if lines else "is empty")
    header = lines[0][1]
    if (key := _first((*KEYS, *RARE_KEYS), header)) is None:
        found = ", ".join(map(printable, header))
        raise UserError(f"no column names the images: call it one of {', '.join(KEYS)}; found {found}")
    canonical = {_first(aliases, header): name for name, aliases in ALIASES.items()}
    columns = [canonical.get(index, name) for index, name in enumerate(header)]
    if twice := [name for name, count in Counter(columns).items() if name and count > 1]:
        raise UserError(f"two columns are called {printable(twice[0])}; rename or remove one")
    return columns, [_row(line, cells, columns, columns[key]) for line, cells in lines[1:]]


def canonical_name(column: str) -> str:
    """What a column is called here: "localization" is the "site"."""
    return next((name for name, aliases in ALIASES.items() if _first(aliases, [column]) is not None), column)


def _first(names: Sequence[str], header: Sequence[str]) -> int | None:
    """Position in the header of the first of these names that it has, however it is written: "Patient ID" comes before
    "PatientID"."""
    for gap in ("_", ""):
        plain = [re.sub(r"[\W_]+", gap, name.lower()) for name in header]
        if found := [plain.index(name) for name in (name.replace("_", gap) for name in names) if name in plain]:
            return found[0]
    return None


def _row(line: int, cells: list[str], columns: Sequence[str], key: str) -> _Row:
    if len(cells) > len(columns):
        raise UserError(f"line {line} has {len(cells)} fields, the header has {len(columns)}")
    values = dict(zip(columns, cells + [""] * (len(columns) - len(cells)), strict=True))
    values.pop("", None)  # a column without a name, such as the row numbers that pandas writes
    values.update({name: "" for name in IDS if values.get(name, "").lower() in NO_ID})
    return _Row(line, values.pop(key).replace("\\", "/").removeprefix("./"), values)


def _join(
    rows: Sequence[_Row], paths: Sequence[str], agreed: Sequence[str]
) -> tuple[Metadata, list[_Row], list[list[str]]]:
    """The values of each image that has a row, the rows that fit none, and the images of each row that fits several."""
    rows_by_name, images_by_name, images_by_line = defaultdict(list), defaultdict(list), defaultdict(list)
    for row in rows:
        for name in (_folded(row.key), isic_id(row.key)):
            rows_by_name[name].append(row)
    names_by_path = {path: [name for name in _names(path) if name in rows_by_name] for path in paths}
    for path, names in names_by_path.items():
        for name in names:
            images_by_name[name].append(path)
    metadata = {}
    for path, names in names_by_path.items():
        if found := [
            row for name in names for row in rows_by_name[name] if not _names_a_twin(row, path, names_by_path)
        ]:
            images = [path] if found[0].key == path else images_by_name[_folded(found[0].key)]
            metadata[path] = _agreed(found, path, images, agreed)
            images_by_line[found[0].line].append(path)
    if paths and not metadata:
        raise UserError(f"no row names an image: a row is called {rows[0].key!r}, an image {paths[0]!r}")
    lonely = [row for row in rows if not {_folded(row.key), isic_id(row.key)} & images_by_name.keys()]
    return metadata, lonely, [images for images in images_by_line.values() if len(images) > 1]


def _names(path: str) -> list[str]:
    """What a row may call this image, best first."""
    whole = _folded(path)
    file = whole.rpartition("/")[2]
    return [name for name in dict.fromkeys((whole, file, file.rpartition(".")[0], isic_id(path))) if name]


def _folded(name: str) -> str:
    """What names have in common that differ in capitals, or in how a Mac spells an accent."""
    return unicodedata.normalize("NFC", name.lower())


def _names_a_twin(row: _Row, path: str, paths: Collection[str]) -> bool:
    """Whether a row is that of another image, whose path differs from this one in capitals alone."""
    return row.key != path and row.key in paths and _folded(row.key) == _folded(path)


def isic_id(path: str) -> str:
    """The ISIC id in a file's name, in capitals; "" where there is none."""
    found = ISIC_ID.search(path.rpartition("/")[2])
    return found[0].upper() if found else ""  # names are in lower case, so that a row's own name can come before its id


def _agreed(rows: Sequence[_Row], path: str, images: Sequence[str], agreed: Sequence[str]) -> dict[str, str]:
    """Values of the best row of one image, where `images` are all that the row's key fits."""
    best = rows[0]
    if len(images) > 1 and not isic_id(best.key):  # an ISIC id is one picture wherever it lies
        raise UserError(
            f"line {best.line}: {best.key!r} fits {' and '.join(map(printable, images[:2]))}; use a path column"
        )
    for row in rows[1:]:
        if unlike := [name for name in agreed if row.values.get(name) != best.values.get(name)]:
            raise UserError(
                f"lines {best.line} and {row.line} differ in the {unlike[0]} of {printable(path)}; keep the right one"
            )
    return best.values
