"""From split.csv to batches: which process gets which images, and the loaders that bring their pixels.

A global batch is decided by (seed, epoch) alone and then divided, so the number of processes changes who computes what
and nothing else.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from skindist.config import DataConfig, TrainConfig
from skindist.data.scan import CLASSES
from skindist.data.split import Row
from skindist.data.transforms import augment, eval_transform, train_transform
from skindist.errors import UserError
from skindist.randomness import Stream, generator

Key = tuple[int, int]  # (epoch, sample id): the epoch travels with the index, so that living workers cannot miss it


class Batch(NamedTuple):
    """Sample ids (B,) int64, images (B, 3, S, S) uint8, labels (B,) int64."""

    ids_B: Tensor
    images_BCHW: Tensor
    labels_B: Tensor


class LesionImages(Dataset[tuple[int, Tensor, int]]):
    """The images of split.csv, addressed by (epoch, sample id); decoded through `datasets`."""

    def __init__(self, root: Path, rows: Sequence[Row], size: int, seed: int, augmented: bool) -> None:
        features = datasets.Features(
            {"image": datasets.Image(mode="RGB"), "label": datasets.ClassLabel(names=list(CLASSES))}
        )
        columns = {"image": [str(root / row.path) for row in rows], "label": [row.label for row in rows]}
        self.rows = datasets.Dataset.from_dict(columns, features=features)
        self.seed = seed
        self.augmented = augmented
        self.transform = train_transform(size) if augmented else eval_transform(size)

    def __getitem__(self, key: Key) -> tuple[int, Tensor, int]:
        epoch, sample_id = key
        row = self.rows[sample_id]
        if self.augmented:
            image = augment(self.transform, row["image"], self.seed, epoch, sample_id)
        else:
            image = self.transform(row["image"])
        return sample_id, image, row["label"]


def global_batches(ids: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The epoch's batches: every id once, in an order of (seed, epoch), in equal parts of at most `batch_size`.

    Equal parts (sizes differ by one at most) leave no tiny last batch and drop no image.
    """
    order = generator(seed, Stream.ORDER, epoch).permutation(ids)
    return np.array_split(order, -(-len(order) // batch_size))


class TrainBatches:
    """Batch sampler of one process: its part of each global batch, as `accumulation_steps` micro-batches of keys."""

    def __init__(self, ids: Sequence[int], config: TrainConfig, seed: int, rank: int, world_size: int) -> None:
        self.ids = np.asarray(ids, dtype=np.int64)
        self.batch_size = config.batch_size
        self.parts = world_size * config.accumulation_steps
        self.mine = range(rank * config.accumulation_steps, (rank + 1) * config.accumulation_steps)
        self.seed = seed
        self.epoch = 0
        if self.batch_size % self.parts:
            raise UserError(
                f"--train.batch_size {self.batch_size} is the global batch and must be divisible by processes x "
                f"--train.accumulation_steps = {world_size} x {config.accumulation_steps}; nearest: "
                f"{max(1, round(self.batch_size / self.parts)) * self.parts}"
            )
        if min(self.sizes()) < self.parts:
            raise UserError(
                f"{len(self.ids)} training images are too few for {world_size} processes x "
                f"{config.accumulation_steps} accumulation steps with --train.batch_size {self.batch_size}; "
                "use fewer processes or a larger batch"
            )

    def sizes(self) -> list[int]:
        """Images in each global batch of the epoch: one optimizer step each."""
        return [len(batch) for batch in global_batches(self.ids, self.batch_size, self.seed, self.epoch)]

    def __len__(self) -> int:
        return -(-len(self.ids) // self.batch_size) * len(self.mine)

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in global_batches(self.ids, self.batch_size, self.seed, self.epoch):
            parts = np.array_split(batch, self.parts)
            for part in self.mine:
                yield [(self.epoch, int(sample_id)) for sample_id in parts[part]]


def eval_batches(ids: Sequence[int], batch_size: int, rank: int, world_size: int) -> list[list[Key]]:
    """Evaluation batches of one process: whole batches dealt out in turn.

    A batch holds the same images on any number of processes, so its logits are the same bits (on the same kind of
    device, with the same number of threads).
    """
    batches = [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]
    return [[(0, int(sample_id)) for sample_id in batch] for batch in batches[rank::world_size]]


def make_loader(images: LesionImages, batches: Any, device: torch.device, num_workers: int) -> DataLoader[Any]:
    """A loader that yields `Batch`; pinned memory where the device copies from it."""
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
    )


def _collate(samples: list[tuple[int, Tensor, int]]) -> Batch:
    ids, images, labels = zip(*samples, strict=True)
    return Batch(torch.tensor(ids), torch.stack(images), torch.tensor(labels))


def loader_workers(config: DataConfig, device: torch.device, local_processes: int) -> int:
    """Loader processes for each training process: on CPU none, because they would take the cores that train."""
    if config.num_workers is not None:
        return config.num_workers
    return 0 if device.type == "cpu" else min(8, max(1, available_cores() // local_processes))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
