"""Decode once: every image as uint8 pixels at the size of evaluation, in a memory-mapped Arrow file.

resizing.py says what these pixels are. The file is written through `datasets` into the cache folder, under a name that
says what is in it (which images, by content, at which size), so that runs, processes and workers share it, and any
change of the images makes another one.
"""

import fcntl
import hashlib
import json
import logging
import mmap
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from skindist.data.inspection import FORMATS, reading_images
from skindist.data.resizing import resized, stored_size
from skindist.errors import UserError
from skindist.files import sync_folder, write_json
from skindist.machine import available_cores
from skindist.wording import plural, printable, volume

PIXELS, MANIFEST = "pixels.arrow", "manifest.json"
OURS = re.compile(r"[0-9a-f]{16,20}(\.(tmp|lock|jsonl?))?")  # what is called so in the cache
FORMAT = 2  # of the file and its pixels: raise it when the same images would give another file
CHUNK = 2**28  # bytes of pixels that are held and written at a time
SPARE = 1.02  # what Arrow adds to the pixels
log = logging.getLogger("skindist")


class Source(NamedTuple):
    """An image to store: its file, its identity, and its upright size in pixels."""

    path: Path
    sha256: str
    width: int
    height: int


def store_folder(cache: Path, sources: Sequence[Source], size: int, interpolation: str) -> Path:
    """Where the store of these images at this size is, whether it has been made or not."""
    content = "".join(sorted({source.sha256 for source in sources}))
    key = hashlib.sha256(f"{FORMAT} {size} {interpolation} {content}".encode()).hexdigest()[:20]
    return cache / "pixels" / key


def ensure_store(cache: Path, sources: Sequence[Source], size: int, interpolation: str) -> Path:
    """Open and verify the store of these images, or make it; of several processes that ask, one makes it.

    Returns:
        The store's folder, for `PixelStore`.

    Raises:
        UserError: the disk lacks room, the cache folder cannot be written, or an image has changed since the scan.
    """
    folder = store_folder(cache, sources, size, interpolation)
    try:
        if folder.exists() and not _damage(folder):  # without a lock: the cache may be read-only
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if folder.exists() and (damage := _damage(folder)):
                log.warning(f"pixels: {folder} is damaged ({damage}): made anew")
                shutil.rmtree(folder)
            if not folder.exists():
                _make(folder, sources, size, interpolation)
    except OSError as error:
        raise UserError(f"--data.cache_dir {cache}: {error.strerror or error}; give another folder") from None
    return folder


class PixelStore:
    """Reads pixels by the SHA-256 of the image's file. Its memory does not grow with what has been read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / PIXELS).open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # and nothing is written
            self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        table = pa.ipc.open_stream(pa.py_buffer(self._map)).read_all()
        starts = []
        for chunk in table.column("pixels").chunks:
            _, ends, data = chunk.buffers()
            within = np.frombuffer(ends, np.int32)[: len(chunk)].astype(np.int64)  # of a chunk; files are larger
            starts.append(within + (data.address - self._bytes.data_ptr()))
        columns = [table.column(name).to_numpy() for name in ("height", "width")]
        self._places = np.stack([np.concatenate(starts), *columns], axis=1)
        self._digests = table.column("sha256").combine_chunks()
        self.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return PixelStore, (self.folder,)

    def positions(self, digests: Sequence[str]) -> NDArray[np.int64]:
        """Where the images with these SHA-256 are, for `read`."""
        found: NDArray[np.int64] = pc.index_in(pa.array(digests), self._digests).to_numpy().astype(np.int64)
        return found

    def read(self, position: int) -> Tensor:
        """Pixels (height, width, 3) uint8: a view of the mapped file, not to be written to."""
        start, height, width = self._places[position].tolist()
        return self._bytes[start : start + 3 * height * width].view(height, width, 3)

    def release(self) -> None:
        """Give back the memory of the pages that were read; the system's file cache still has them."""
        self._map.madvise(mmap.MADV_DONTNEED)


def clear_cache(cache: Path) -> int:
    """Remove every store and everything remembered of scans, and nothing else; return the bytes freed."""
    size = 0
    for part in (cache / "pixels", cache / "scans"):
        for ours in (path for path in part.glob("*") if OURS.fullmatch(path.name)):
            files = [ours] if ours.is_file() else [file for file in ours.rglob("*") if file.is_file()]
            size += sum(file.stat().st_size for file in files)
            ours.unlink() if ours.is_file() else shutil.rmtree(ours, ignore_errors=True)
        with suppress(OSError):
            part.rmdir()  # if nothing is left
    return size


def _make(folder: Path, sources: Sequence[Source], size: int, interpolation: str) -> None:
    """Write the store beside its place, then rename it: it is whole or it is not there."""
    unique = list({source.sha256: source for source in sources}.values())
    shapes = [stored_size(source.width, source.height, size) for source in unique]
    wanted = int(SPARE * sum(3 * width * height for width, height in shapes))
    count, free = plural(len(unique), "image"), shutil.disk_usage(folder.parent).free
    if wanted > free:
        raise UserError(
            f"--data.cache_dir {folder.parents[1]}: the pixels of {count} need {volume(wanted)} and "
            f"{volume(free)} are free; make room (skindist clear-cache), or give a folder on another disk"
        )
    log.info(f"pixels: preparing {count} at {size} px, once: {volume(wanted)} in {folder}")
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _write(temporary / PIXELS, unique, shapes, interpolation)
        manifest = {"format": FORMAT, "images": len(unique), "size": size, "interpolation": interpolation}
        write_json(temporary / MANIFEST, manifest | _fingerprint(temporary / PIXELS))
        temporary.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(file: Path, sources: Sequence[Source], shapes: Sequence[tuple[int, int]], interpolation: str) -> None:
    resampling = Image.Resampling[interpolation.upper()]

    def convert(_: Any, indices: list[int]) -> dict[str, list[bytes]]:
        pixels = list(pool.map(lambda index: _pixels(sources[index], shapes[index], resampling), indices))
        bar.update(len(indices))
        return {"pixels": pixels}

    widths, heights = zip(*shapes, strict=True)
    known = {"sha256": [source.sha256 for source in sources], "width": widths, "height": heights}
    features = {"sha256": "string", "width": "int32", "height": "int32", "pixels": "binary"}
    largest = max(3 * width * height for width, height in shapes)
    batch_size = max(1, min(128, CHUNK // largest))
    with (
        _without_datasets_bars(),
        reading_images(),
        ThreadPoolExecutor(available_cores()) as pool,  # decoding and resizing leave Python's lock alone
        tqdm(total=len(sources), desc="preparing pixels", unit="image", leave=False, disable=None) as bar,
    ):
        datasets.Dataset.from_dict(known).map(
            convert,
            with_indices=True,
            batched=True,
            batch_size=batch_size,
            writer_batch_size=batch_size,
            features=datasets.Features({name: datasets.Value(kind) for name, kind in features.items()}),
            cache_file_name=str(file),
            new_fingerprint="pixels",  # the folder's name is the key: nothing need be hashed
        )


@contextmanager
def _without_datasets_bars() -> Iterator[None]:
    """Its own bars would show where there is no terminal; they are as they were afterwards, whatever happens."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _pixels(source: Source, shape: tuple[int, int], resampling: Image.Resampling) -> bytes:
    try:
        content = source.path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{printable(str(source.path))}: cannot be read any more ({error.strerror}); start again"
        ) from None
    if hashlib.sha256(content).hexdigest() != source.sha256:
        raise UserError(f"{printable(str(source.path))} has changed since it was inspected; start again")
    with Image.open(BytesIO(content), formats=FORMATS) as image:
        return resized(image, shape, resampling).tobytes()


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        return {"bytes": file.stat().st_size, "xxh3_128": hashlib.file_digest(content, xxhash.xxh3_128).hexdigest()}


def _damage(folder: Path) -> str:
    """What is wrong with a store; "" if it is whole."""
    try:
        manifest, now = json.loads((folder / MANIFEST).read_text()), _fingerprint(folder / PIXELS)
        return "" if manifest | now == manifest else f"{PIXELS} is not what was written"
    except (OSError, ValueError, TypeError) as error:
        return str(error)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock between processes; it ends with the process, however that ends."""
    with file.open("a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("pixels: waiting for another process that prepares the same images")
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
