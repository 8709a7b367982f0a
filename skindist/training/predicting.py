"""What it takes to predict, trained here or not: a model on all processes, pixels, and the loaders that read them."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from skindist.data.loading import (
    Batch,
    EvalLoader,
    eval_batches,
    loader_workers,
    make_loader,
    sample_ids,
    workers_that_fit,
)
from skindist.data.prepare import Prepared
from skindist.data.store import PixelStore, Source, ensure_store, store_folder
from skindist.data.transforms import normalizer
from skindist.distributed import buffers, group
from skindist.launcher import this_launch
from skindist.machine import cache_folder, free_shared_memory
from skindist.model import Preprocessing
from skindist.recipe import DataConfig
from skindist.training.learner import Predictor


def build_predictor(
    accelerator: Accelerator,
    module: nn.Module,
    load: Callable[[nn.Module], None],
    pixels: Preprocessing,
    views: int = 1,
) -> Predictor:
    """The model on this process's device. Only the main process loads weights, and hands them to the others."""
    group.on_main(accelerator, load, module, may_take_hours=True)
    module.to(memory_format=torch.channels_last)
    module.to(accelerator.device)
    buffers.broadcast_weights(accelerator, module)
    return Predictor(accelerator, module, normalizer(pixels.mean, pixels.std, accelerator.device), views=views)


def open_store(accelerator: Accelerator, config: DataConfig, data: Prepared, interpolation: str) -> PixelStore:
    """The pixels of all images, which each machine makes once."""
    root, cache, size = Path(config.path or ""), cache_folder(config.cache_dir), config.image_size
    sources = [Source(root / row.path, row.sha256, *shape) for row, shape in zip(data.rows, data.sizes, strict=True)]
    group.on_each_machine(accelerator, ensure_store, cache, sources, size, interpolation)
    return PixelStore(store_folder(cache, sources, size, interpolation))


def eval_loader(
    accelerator: Accelerator, data: Prepared, images: Dataset[Batch], split: str, batch_size: int, workers: int
) -> EvalLoader:
    """A split to evaluate: this process's part of it, as `images` give it."""
    ids = sample_ids(data.rows, split)
    mine = eval_batches(ids, batch_size, accelerator.process_index, accelerator.num_processes)
    return EvalLoader(split, ids, make_loader(images, mine, accelerator.device, workers))


def choose_workers(accelerator: Accelerator, config: DataConfig, images: int) -> int:
    """Loader processes of this process, as many as the cores and the shared memory allow; call it on every process.

    Args:
        images: in the largest batch.
    """
    wanted = loader_workers(config, accelerator.device, group.processes_on_my_cores(accelerator))
    return workers_that_fit(wanted, images, config.image_size, this_launch().local_world_size, free_shared_memory())
