"""What the benchmark measures with: two things in turn, the plain loop's way to read files, and pictures to read."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from skindist.data.demo import draw_lesion
from skindist.data.loading import Batch, LesionImages, TrainBatches, make_loader
from skindist.data.prepare import Prepared
from skindist.data.store import PixelStore, Source, ensure_store, store_folder
from skindist.recipe import TrainConfig

SIZE, BATCH, ROUNDS = 224, 32, 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Figure(NamedTuple):
    """One line of the table: what was measured, ours, the other, and the ratio or size that counts."""

    what: str
    ours: str
    other: str
    result: str


def plain_images(
    data: Path, folder: Path, prepared: Prepared, split: str, augmented: bool = True
) -> torchvision.datasets.ImageFolder:
    """The files of a split as torchvision's references read them."""
    transforms = torchvision.transforms
    pixels = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
    if not augmented:
        pixels = [transforms.Resize(SIZE), transforms.CenterCrop(SIZE)]
    flat = folder / f"{split} files"  # ImageFolder takes class folders only
    for row in prepared.rows:
        link = flat / str(row.label) / row.path.replace("/", " ")
        if row.split == split and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((data / row.path).resolve())
    steps = [*pixels, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return torchvision.datasets.ImageFolder(str(flat), transforms.Compose(steps))


def training_loader(
    data: Path,
    prepared: Prepared,
    workers: int,
    device: torch.device | None = None,
    size: int = SIZE,
    rank: int = 0,
    ranks: int = 1,
) -> DataLoader[Batch]:
    """skindist's own loader of the training images, in batches of `BATCH` on each process."""
    store = open_store(data, prepared, size)
    images = LesionImages(store, prepared.rows, size, seed=0, augmented=True)
    ids = [index for index, row in enumerate(prepared.rows) if row.split == "train"]
    batches = TrainBatches(ids, TrainConfig(batch_size=BATCH * ranks), seed=0, rank=rank, world_size=ranks)
    return make_loader(images, batches, device or torch.device("cpu"), workers)


def open_store(data: Path, prepared: Prepared, size: int = SIZE) -> PixelStore:
    """The pixels of all images, prepared if need be."""
    rows = zip(prepared.rows, prepared.sizes, strict=True)
    sources = [Source(data / row.path, row.sha256, *shape) for row, shape in rows]
    cache = Path(os.environ["SKINDIST_CACHE"])
    ensure_store(cache, sources, size, "bicubic")
    return PixelStore(store_folder(cache, sources, size, "bicubic"))


def endless(batches: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from batches


def epoch_speed(batches: DataLoader[Any]) -> float:
    """Images a second over one epoch."""
    return speed(lambda: sum(len(batch[0]) for batch in batches))


def speed(work: Callable[[], int]) -> float:
    """Images a second of `work`, which returns how many images it did."""
    wait_for_device()
    begun = time.perf_counter()
    images = work()
    wait_for_device()
    return images / (time.perf_counter() - begun)


def wait_for_device() -> None:
    """Until a GPU has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def side_by_side(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int = ROUNDS
) -> tuple[list[float], list[float]]:
    """Both in turn, `rounds` times after one round that does not count."""
    pairs = [(ours(), theirs()) for _ in tqdm(range(rounds + 1), "measuring", leave=False, disable=None)][1:]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def ratio_figure(what: str, instead: str, ours: list[float], theirs: list[float]) -> Figure:
    """Medians of both, and the median, smallest and largest of their ratios."""
    other = f"{statistics.median(theirs):.0f} ({instead})"
    return Figure(what, f"{statistics.median(ours):.0f}", other, ratio_of(ours, theirs))


def ratio_of(ours: list[float], theirs: list[float]) -> str:
    """The median, smallest and largest ratio of two that were measured in turn."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def draw_set(root: Path, count: int, size: int) -> Path:
    """Drawn lesions as JPEGs."""
    for index in tqdm(range(count), "drawing", leave=False, disable=None):
        target = root / ("benign", "malignant")[index % 2] / f"{index}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        draw_lesion(np.random.default_rng(index), bool(index % 2), size).save(target, quality=90)
    return root


def write_photographs(root: Path, count: int) -> None:
    """Large JPEGs with a photograph's grain."""
    for index in range(count):
        rng = np.random.default_rng(index)
        lesion = draw_lesion(rng, bool(index % 2), 256).resize((3000, 2000), Image.Resampling.BICUBIC)
        target = root / ("benign", "malignant")[index % 2] / f"{index}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        noisy = (np.asarray(lesion, np.float32) + rng.normal(0, 4, (2000, 3000, 1))).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(target, quality=90)


def write_tiles(root: Path, count: int) -> Path:
    """Many small JPEGs of smooth noise."""
    for index in tqdm(range(count), "writing", leave=False, disable=None):
        coarse = np.random.default_rng(index).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        target = root / ("benign", "malignant")[index % 2] / f"{index}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(target)
    return root
