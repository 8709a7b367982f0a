"""From split.csv to batches: which process gets which images, and the loaders that bring their pixels.

A global batch is decided by (seed, epoch) alone and then divided, so the number of processes changes who computes what
and nothing else.
"""

import logging
import multiprocessing.util
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from skindist.data.split import Row
from skindist.data.store import PixelStore
from skindist.data.transforms import IDENTITY, central_square, draw_view, warp
from skindist.errors import UserError
from skindist.machine import available_cores
from skindist.randomness import Stream, generator
from skindist.recipe import DataConfig, TrainConfig
from skindist.wording import plural

AHEAD = 4  # batches that each worker has ready
SHARE = 0.75  # of the shared memory that is free: NCCL needs some, too
log = logging.getLogger("skindist")
Key = tuple[int, int]  # (epoch, sample id): the epoch travels with the index, so that living workers cannot miss it


class Batch(NamedTuple):
    """Sample ids (B,) int64, images (B, 3, S, S) uint8 in channels-last order, labels (B,) int64, and the gain and
    offset of each image's colours (B, 2, 3), for `skindist.data.transforms.normalizer`."""

    ids_B: Tensor
    images_BCHW: Tensor
    labels_B: Tensor
    colours_B2C: Tensor


class LesionImages(Dataset[Batch]):
    """The images of split.csv from the pixel store; a list of (epoch, sample id) gives their `Batch`."""

    def __init__(self, store: PixelStore, rows: Sequence[Row], size: int, seed: int, augmented: bool) -> None:
        self.store = store
        self.positions = store.positions([row.sha256 for row in rows])
        self.labels = np.array([row.label for row in rows], dtype=np.int64)
        self.size = size
        self.seed = seed
        self.augmented = augmented

    def __getitems__(self, keys: list[Key]) -> Batch:
        ids = [sample_id for _, sample_id in keys]
        images_BHWC = torch.empty(len(keys), self.size, self.size, 3, dtype=torch.uint8)
        colours = []
        for image_HWC, (epoch, sample_id) in zip(images_BHWC, keys, strict=True):
            pixels_HWC = self.store.read(int(self.positions[sample_id]))
            if self.augmented:
                height, width, _ = pixels_HWC.shape
                view = draw_view(height, width, self.seed, epoch, sample_id)
                image_HWC.copy_(warp(pixels_HWC, view.matrix, self.size))
                colours.append((view.gain, view.offset))
            else:
                image_HWC.copy_(central_square(pixels_HWC, self.size))
        self.store.release()
        colours_B2C = torch.tensor(colours) if colours else IDENTITY.repeat(len(keys), 1, 1)
        labels_B = torch.from_numpy(self.labels[ids])
        return Batch(torch.tensor(ids, dtype=torch.int64), images_BHWC.permute(0, 3, 1, 2), labels_B, colours_B2C)


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """Images in each global batch of an epoch, one optimizer step each: equal parts of at most `batch_size`."""
    return equal_parts(images, -(-images // batch_size))


def equal_parts(images: int, parts: int) -> list[int]:
    """So many images in so many parts, which differ by one at most: the larger ones come first."""
    return [images // parts + (part < images % parts) for part in range(parts)]


def global_batches(ids: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The epoch's batches: every id once, in an order of (seed, epoch), in equal parts of at most `batch_size`.

    Equal parts (sizes differ by one at most) leave no tiny last batch and drop no image.
    """
    order = generator(seed, Stream.ORDER, epoch).permutation(ids)
    return np.split(order, np.cumsum(batch_sizes(len(order), batch_size))[:-1])


class TrainBatches:
    """Batch sampler of one process: its part of each global batch, in as many micro-batches of keys as keep each within
    `train.micro_batch_size` images."""

    def __init__(self, ids: Sequence[int], config: TrainConfig, seed: int, rank: int, world_size: int) -> None:
        self.ids = np.asarray(ids, dtype=np.int64)
        self.batch_size = config.batch_size
        self.sizes = batch_sizes(len(ids), config.batch_size)
        self.accumulation_steps = config.passes(max(self.sizes), world_size)
        self.parts = world_size * self.accumulation_steps
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0
        self.first_step = 0  # of the epoch, where a run goes on in its middle
        passes = self.accumulation_steps if config.sync_batchnorm else 1  # there, each waits for those of all processes
        if (smallest := min(self.sizes)) < world_size * passes:
            raise UserError(
                f"a global batch of {plural(smallest, 'image')} ({plural(len(self.ids), 'training image')}, "
                f"--train.batch_size {self.batch_size}) is too small for {plural(world_size, 'process')}"
                f"{f' x {passes} micro-batches' * (passes > 1)}; use fewer processes, or larger batches"
            )

    @property
    def most(self) -> int:
        """Images in a micro-batch at most."""
        return -(-max(self.sizes) // self.parts)

    @property
    def fewest(self) -> int:
        """Images in a micro-batch at least."""
        return max(1, min(self.sizes) // self.parts)

    def passes(self, size: int) -> list[int]:
        """How many micro-batches each process has of a global batch of so many images: none of them is empty."""
        return [min(self.accumulation_steps, part) for part in equal_parts(size, self.world_size)]

    def __len__(self) -> int:
        return sum(self.passes(size)[self.rank] for size in self.sizes[self.first_step :])

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in global_batches(self.ids, self.batch_size, self.seed, self.epoch)[self.first_step :]:
            passes = self.passes(len(batch))
            for part in np.array_split(batch, sum(passes))[sum(passes[: self.rank]) :][: passes[self.rank]]:
                yield [(self.epoch, int(sample_id)) for sample_id in part]


@dataclass(frozen=True)
class TrainLoader:
    """The training images: this process's part of each global batch, the loader that brings it, and what each class
    weighs in the loss, (2,) on the device; None: all alike."""

    batches: TrainBatches
    loader: DataLoader[Batch]
    class_weights_K: Tensor | None = None

    def start(self, epoch: int, first_step: int = 0) -> tuple[Iterator[Batch], list[int]]:
        """This process's micro-batches from a step of an epoch on, and the sizes of all global batches of the epoch."""
        self.batches.epoch, self.batches.first_step = epoch, first_step
        return iter(self.loader), self.batches.sizes


@dataclass(frozen=True)
class EvalLoader:
    """A split to evaluate: its name, the sample ids of all processes, and the loader of this process's batches."""

    name: str
    ids: list[int]
    loader: DataLoader[Batch]


@dataclass(frozen=True)
class Loaders:
    """The three splits of a run."""

    train: TrainLoader
    val: EvalLoader
    test: EvalLoader


def sample_ids(rows: Sequence[Row], split: str) -> list[int]:
    """The positions in split.csv of the images of a split."""
    return [sample_id for sample_id, row in enumerate(rows) if row.split == split]


def eval_batches(ids: Sequence[int], batch_size: int, rank: int, world_size: int) -> list[list[Key]]:
    """Evaluation batches of one process: whole batches dealt out in turn, and an empty one where the last turn does
    not reach all, so that all processes take as many turns.

    A batch holds the same images on any number of processes, so its logits are the same bits (on the same kind of
    device, with the same number of threads).
    """
    turns = -(-len(ids) // (batch_size * world_size))
    starts = [(turn * world_size + rank) * batch_size for turn in range(turns)]
    return [[(0, int(sample_id)) for sample_id in ids[start : start + batch_size]] for start in starts]


def make_loader(images: Dataset[Batch], batches: Any, device: torch.device, num_workers: int) -> DataLoader[Any]:
    """A loader that yields `Batch`: workers live on from epoch to epoch and work ahead; memory is pinned where the
    device copies from it. There are no more workers than batches."""
    num_workers = min(num_workers, len(batches))
    if num_workers:  # at its end, Python sends SIGTERM to those that are left, and would wait for them for ever
        multiprocessing.util.Finalize(None, _kill_workers, exitpriority=0)
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
        prefetch_factor=AHEAD if num_workers else None,
        worker_init_fn=heed_only_the_parent,
    )


def heed_only_the_parent(worker: int) -> None:
    """In a loader worker: the signals of a scheduler, a launcher or a keyboard are for the process that trains, which
    still needs its images. A worker whose parent was killed before this call ends: torch looks for a change of the
    parent from here on alone, and would let it live for ever."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent and multiprocessing.get_start_method() == "fork" and os.getppid() != parent.pid:
        os._exit(1)


def _kill_workers() -> None:
    for process in multiprocessing.active_children():
        process.kill()


def _as_it_is(batch: Any) -> Any:
    return batch


def loader_workers(config: DataConfig, device: torch.device, local_processes: int) -> int:
    """Loader processes for each training process: on CPU none, because they would take the cores that train."""
    if config.num_workers is not None:
        return config.num_workers
    return 0 if device.type == "cpu" else min(8, max(1, available_cores() // local_processes))


def workers_that_fit(wanted: int, images: int, image_size: int, local_processes: int, free: int | None) -> int:
    """As many of the wanted loader processes as can hand over their batches: more would be killed by a bus error.

    Args:
        images: in the largest batch.
        free: bytes of shared memory; None: without limit.
    """
    each = AHEAD * images * 3 * image_size**2 * local_processes
    if free is None or wanted * each <= SHARE * free:
        return wanted
    fitting = int(SHARE * free) // each
    log.warning(
        f"shared memory: {free >> 20:,} MiB are free in /dev/shm, enough for {plural(fitting, 'loader worker')} "
        f"of {wanted} for each process: give a container more (docker run --shm-size {-(-wanted * each // 2**29)}g)"
    )
    return fitting
