"""The pixels of a split, and the loaders that read them."""

from pathlib import Path

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
from skindist.distributed import group
from skindist.distributed.group import Accelerator
from skindist.launcher import this_launch
from skindist.machine import cache_folder, free_shared_memory
from skindist.recipe import DataConfig


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
    """Loader processes of this process, as many as the cores and the shared memory allow to each of all that train on
    this machine; call it on every process.

    Args:
        images: in the largest batch.
    """
    launch = this_launch()
    wanted = loader_workers(config, accelerator.device, launch.at_once * group.processes_on_my_cores(accelerator))
    processes = launch.at_once * launch.local_world_size
    return workers_that_fit(wanted, images, config.image_size, processes, free_shared_memory())
