"""Commands on images: draw, unpack and audit them; forget what was prepared of them."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from skindist.errors import UserError
from skindist.machine import cache_folder
from skindist.recipe import DataConfig, Word
from skindist.wording import volume


def demo_data(directory: Path, count: int = 800, size: int = 96, seed: int = 0) -> None:
    """Draw a labelled folder of lesion-like pictures, to try the trainer without data.

    Args:
        directory: New or empty folder; gets benign/ and malignant/.
        count: Pictures, half of each class.
        size: Side in pixels, from 32 to 2048.
        seed: Another seed draws other pictures.
    """
    from skindist.data.demo import write_demo_data

    write_demo_data(directory, count, size, seed)
    quoted = shlex.quote(str(directory))
    print(f"{count} pictures in {directory}; to train on them, in the project's folder:")
    print(f"  python launch/train.py --config launch/demo.yaml --data.path {quoted}")
    print("elsewhere, from random weights:")
    print(f"  skindist train --data.path {quoted} --data.image_size 64 --model.pretrained false --optim.lr 1.0")


def unpack(source: str, out: Path | None = None, image_column: str | None = None) -> None:
    """Write a data set of Parquet files, WebDataset archives or the Hub as a folder of images with a table.

    Args:
        source: A .parquet or .tar file, a folder of such, or OWNER/NAME on the Hugging Face Hub.
        out: Required: new folder for images/ and metadata.csv.
        image_column: Column of the images; null: the only one there is.
    """
    if out is None:
        raise UserError("--out is missing: give a new folder for the images and their table")
    from skindist.data.unpack import IMAGES, TABLE, unpack

    unpack(source, out, image_column)
    images, table = (shlex.quote(str(out / name)) for name in (IMAGES, TABLE))
    print("look at the table, then train with its column of labels, and what that says of each class:")
    print(
        f"  skindist train --data.path {images} --data.metadata {table} --data.label_column COLUMN"
        " --data.malignant '[WORD, ...]' --data.benign '[WORD, ...]'"
    )


def audit(
    directory: Path,
    metadata: Path | None = None,
    page: Path = Path("audit.html"),
    label_column: str | None = None,
    malignant: tuple[Word, ...] = DataConfig.malignant,
    benign: tuple[Word, ...] = DataConfig.benign,
    other: Literal["error", "drop"] = "error",
    split_column: str | None = None,
) -> None:
    """Say what a folder of images holds before any training: bad files, copies, leaks, shortcuts.

    Args:
        directory: Folder with the class folders, split or not; with a column of labels, of any layout.
        metadata: CSV file with patient_id, lesion_id and more, as for --data.metadata.
        page: Where to write the same with pictures, as one HTML page.
        label_column: As for --data.label_column.
        malignant: As for --data.malignant.
        benign: As for --data.benign.
        other: As for --data.other.
        split_column: As for --data.split_column.
    """
    from skindist.report.audit import audit

    with own_flags():
        config = DataConfig(
            path=str(directory), metadata=str(metadata) if metadata else None, label_column=label_column,
            malignant=malignant, benign=benign, other=other, split_column=split_column,
        )  # fmt: skip
        print(audit(config, page))


@contextmanager
def own_flags() -> Iterator[None]:
    """What is read as in a training speaks of its flags: say them as `audit` and `evaluate` have them."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"--data\.path |(?<=--)(data|evaluation)\.", "", str(error))) from None


def clear_cache(cache_dir: Path | None = None) -> None:
    """Remove the prepared pixels, and what is remembered of scanned folders.

    Args:
        cache_dir: As for --data.cache_dir.
    """
    from skindist.data.store import clear_cache

    folder = cache_folder(str(cache_dir) if cache_dir else None)
    removed = clear_cache(folder)
    print(f"{volume(removed)} removed from {folder}" if removed else f"nothing of skindist's is in {folder}")
