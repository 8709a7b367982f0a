"""The data path, from files to batches, beside what users would write instead."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.measuring import (
    BATCH,
    SIZE,
    Figure,
    endless,
    epoch_speed,
    open_store,
    plain_images,
    ratio_figure,
    side_by_side,
    speed,
    training_loader,
    write_photographs,
    write_tiles,
)
from skindist.data.prepare import prepare
from skindist.machine import available_cores
from skindist.recipe import DataConfig


def loader(data: Path, folder: Path) -> list[Figure]:
    """Augmented training batches out of one loader worker: from the store, and as torchvision's references do."""
    prepared = prepare(DataConfig(path=str(data)), seed=0)
    images = plain_images(data, folder, prepared, "train")
    theirs = DataLoader(images, BATCH, shuffle=True, num_workers=1, persistent_workers=True)
    ours = training_loader(data, prepared, workers=1)
    speeds = side_by_side(lambda: epoch_speed(ours), lambda: epoch_speed(theirs))
    what = f"loader, images/s of one worker ({len(images)} files)"
    return [ratio_figure(what, "ImageFolder + RandomResizedCrop", *speeds)]


def preparation(data: Path, folder: Path) -> list[Figure]:
    """From files never seen to pixels: inspection, duplicates and store, and plain decoding and resizing alone."""
    large = folder / "large"
    write_photographs(large, 96)
    threads = available_cores()

    def plain() -> int:
        def decode(file: Path) -> np.ndarray[Any, Any]:
            with Image.open(file) as image:
                return np.asarray(image.convert("RGB").resize((336, SIZE), Image.Resampling.BICUBIC))

        with ThreadPoolExecutor(threads) as pool:
            return len(list(pool.map(decode, sorted(large.glob("*/*.jpg")))))

    def whole() -> int:
        shutil.rmtree(os.environ["SKINDIST_CACHE"], ignore_errors=True)
        return prepare_pixels(large, SIZE)

    speeds = side_by_side(lambda: speed(whole), lambda: speed(plain), rounds=3)
    what = f"first preparation of 3000 x 2000 JPEGs, images/s, {threads} threads"
    return [ratio_figure(what, "PIL decode + resize alone", *speeds)]


def large(data: Path, folder: Path) -> list[Figure]:
    """What an image costs among 50,000 and among 1,000: to prepare for the first time, and to read in training."""
    many, few = (write_tiles(folder / f"tiles-{count}", count) for count in (50_000, 1_000))
    preparing = ([speed(lambda: prepare_pixels(many, 64))], [speed(lambda: prepare_pixels(few, 64))])
    reading = side_by_side(reader(many), reader(few))
    return [
        ratio_figure("first preparation of 50,000 small images, images/s", "of 1,000", *preparing),
        ratio_figure("training batches of 50,000 small images, images/s", "of 1,000", *reading),
    ]


def prepare_pixels(images: Path, size: int) -> int:
    """From files to pixels; returns how many images there are."""
    prepared = prepare(DataConfig(path=str(images)), seed=0)
    open_store(images, prepared, size)
    return len(prepared.rows)


def reader(tiles: Path) -> Callable[[], float]:
    """A measurement of how fast the next 256 batches of many epochs are read, in images a second."""
    batches = endless(training_loader(tiles, prepare(DataConfig(path=str(tiles)), seed=0), workers=0, size=64))
    return lambda: speed(lambda: sum(len(batch.ids_B) for batch in islice(batches, 256)))
