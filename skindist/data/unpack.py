"""`skindist unpack`: a data set in Parquet files, WebDataset archives or on the Hub, as the folder and the table that
`skindist train` reads. Each image is written once, byte for byte; all that is said of it becomes a row of the table."""

import glob
import io
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from PIL import Image
from tqdm import tqdm

from skindist.data.scan import ARCHIVES
from skindist.downloads import HUB_ID, NETWORK_SECONDS, within
from skindist.errors import UserError, first_line
from skindist.files import expanded, refuse_occupied, whole_folder, write_csv
from skindist.wording import plural

IMAGES, TABLE = "images", "metadata.csv"
KINDS = {".parquet": "parquet", ".tar": "webdataset"}
OWN = ("path", "split")  # columns of the table that say nothing of the image itself
RENAMED = {name: f"table_{name}" for name in OWN}  # what columns of the set are called that have these names
Row = dict[str, Any]
log = logging.getLogger("skindist")


def unpack(source: str, out: Path, image_column: str | None = None) -> int:
    """Write the images of a data set to OUT/images, and what is said of each to OUT/metadata.csv.

    Args:
        source: a .parquet or .tar file, a folder of such, or the id of a data set on the Hugging Face Hub.
        out: new or empty folder.
        image_column: which column holds the images; None: the only one that does.

    Returns:
        How many images there are.

    Raises:
        UserError: there is no such data set, it has no image or several columns of them, or there is no place.
    """
    refuse_occupied(out)
    splits = load(source)
    column = choose_column(source, next(iter(splits.values())), image_column)
    with whole_folder(out.absolute()) as folder:
        rows = list(tqdm(written(source, splits, column, folder), unit="image", disable=None))
        if not rows:
            raise UserError(f"{source}: holds no image")
        columns = [*OWN, *dict.fromkeys(name for row in rows for name in row if name not in OWN)]
        write_csv(folder / TABLE, columns, ([row.get(name, "") for name in columns] for row in rows))
    known = ", ".join(name for name in columns if name not in OWN) or "nothing"
    if renamed := [f"{name} is {new}" for name, new in RENAMED.items() if new in columns]:
        log.warning(f"columns of the data set that are called otherwise in the table: {', '.join(renamed)}")
    log.info(f"{len(rows):,} images in {out / IMAGES}; {out / TABLE} says of each: {known}")
    return len(rows)


def load(source: str) -> Mapping[str, Any]:
    """The parts of a data set by name, read as they are asked for.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    import datasets  # seconds of import

    path = expanded(source)
    if not path.exists() and not HUB_ID.fullmatch(source):
        raise UserError(f"{source}: no such file or folder, and not the id of a data set on the Hub (OWNER/NAME)")
    if path.is_file() and path.suffix.lower() not in KINDS:
        remedy = "; extract the archive first" if path.suffix.lower() in ARCHIVES else ""
        raise UserError(
            f"{source}: must be a .parquet or .tar file, a folder of such, or OWNER/NAME on the Hub{remedy}"
        )
    try:
        if not path.exists():  # the library would wait and try again for much longer
            ask = partial(HfApi().dataset_info, source, timeout=NETWORK_SECONDS)
            within(NETWORK_SECONDS, ask)
        return dict(datasets.load_dataset(**_place(path, source), streaming=True))
    except Exception as error:  # no common base: HTTP client, pyarrow, tarfile, the library's own
        raise UserError(f"{source}: cannot be read as a data set ({first_line(error)})") from None


def _place(path: Path, source: str) -> dict[str, str]:
    """Where a data set is, in words of the library, which takes the brackets of a path for a pattern."""
    if not path.exists():
        return {"path": source}
    escaped = glob.escape(str(path.resolve()))
    if path.is_file():
        return {"path": KINDS[path.suffix.lower()], "data_files": escaped}
    suffixes = [file.suffix for file in path.rglob("*") if file.suffix.lower() in KINDS]
    if suffixes and (escaped != str(path.resolve()) or not KINDS.keys() >= set(suffixes)):
        return {"path": KINDS[suffixes[0].lower()], "data_dir": escaped}
    return {"path": str(path)}


def choose_column(source: str, split: Any, wanted: str | None) -> str:
    """The column of the images; where the set calls none so, that of plain bytes.

    Raises:
        UserError: there is none of this name, none at all, or more than one.
    """
    import datasets

    features: Mapping[str, Any] = split.features or {}
    found = [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)
    ]
    plain = [name for name, feature in features.items() if getattr(feature, "dtype", "") in ("binary", "large_binary")]
    if wanted is not None:
        if wanted not in (*found, *plain):
            raise UserError(f"--image_column {wanted}: holds no images; those that do: {', '.join(found) or 'none'}")
        return wanted
    found = found or plain
    if len(found) != 1:
        if found:
            raise UserError(f"{source}: several columns hold images ({', '.join(found)}): choose with --image_column")
        raise UserError(f"{source}: no column holds images; it has {', '.join(features) or 'none'}")
    return found[0]


def written(source: str, splits: Mapping[str, Any], column: str, folder: Path) -> Iterator[Row]:
    """Write each image; yield its row of the table. A row without an image is left out, and counted.

    Raises:
        UserError: the data set cannot be read to its end.
    """
    import datasets

    (folder / IMAGES).mkdir()
    number = missing = 0
    for split, rows in splits.items():
        values = iter(rows.cast_column(column, datasets.Image(decode=False)))
        while (row := following(source, values)) is not None:
            number += 1
            if (image := row.pop(column)) is None:
                missing += 1
                continue
            content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
            name = file_name(number, image.get("path") or str(row.get("__key__", "")), content)
            (folder / IMAGES / name).write_bytes(content)
            yield {"path": name, "split": split, **flat(row, rows.features)}
    if missing:
        log.warning(f"{source}: {plural(missing, 'row')} without an image, left out")


def following(source: str, rows: Iterator[Row]) -> Row | None:
    """The next row; None at the end."""
    try:
        return next(rows, None)
    except Exception as error:  # no common base, as in `load`
        raise UserError(f"{source}: cannot be read to its end ({first_line(error)})") from None


def file_name(number: int, path: str, content: bytes) -> str:
    """A name that no other image has, and that says what this one was called."""
    called = Path(path.replace("\\", "/")).name
    stem, suffix = Path(called).stem, Path(called).suffix
    if not suffix:
        with suppress(OSError), Image.open(io.BytesIO(content)) as image:
            suffix = f".{(image.format or '').lower()}"
    plain = re.sub(r"[^\w.-]", "_", stem)[:80]
    return f"{number:07d}{'-' * bool(plain)}{plain}{suffix}"


def flat(row: Row, features: Mapping[str, Any]) -> dict[str, str]:
    """The values of a row that a table can hold: numbers, words, and those in a dictionary under their own names. A
    class is its name."""
    found: dict[str, str] = {}
    for name, value in row.items():
        names, column = getattr(features.get(name), "names", None), RENAMED.get(name, name)
        if isinstance(value, dict):
            found |= {key: text for key, text in flat(value, {}).items() if key not in row}
        elif names and isinstance(value, int) and 0 <= value < len(names):
            found[column] = names[value]
        elif isinstance(value, str | int | float) and name != "__url__":
            found[column] = str(value)
    return found
