"""`fit`: the story of one run. `launch/train.py` calls it; so can a script or a notebook:

from skindist import Config, DataConfig, fit
results = fit(Config(data=DataConfig(path="lesions")))
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from skindist.config import Config
from skindist.data.loading import Batch, LesionImages, TrainBatches, eval_batches, loader_workers, make_loader
from skindist.data.prepare import Prepared
from skindist.data.split import SPLITS, Row, describe
from skindist.data.store import PixelStore, Source, ensure_store, store_folder
from skindist.data.transforms import normalizer
from skindist.distributed import buffers, group
from skindist.distributed.group import decide
from skindist.early_stopping import EarlyStopping
from skindist.evaluation.metrics import compute
from skindist.machine import cache_folder
from skindist.model import build_model, preprocessing
from skindist.optim import build_optimizer
from skindist.randomness import Stream, derived_seed
from skindist.run.lock import RunLock
from skindist.training.engine import Learner, evaluate, train_one_epoch
from skindist.training.interruption import Guard
from skindist.training.rehearsal import find_micro_batch_size, warm_up
from skindist.training.results import summary, write_results
from skindist.training.run_folder import find_run, open_run, prepare_data, settle
from skindist.training.saving import Saver
from skindist.training.tracking import Tracker

log = logging.getLogger("skindist")


def fit(config: Config) -> dict[str, Any]:
    """Train, stop early, test the best epoch, and leave the run folder.

    Returns:
        What results.json holds, on every process.

    Raises:
        UserError: a mistake in the config, the data, the weights or the launch; raised on every process.
        TrainingError: training diverged or the disk is full; raised on every process.
        OutOfMemory: raised on the process that it happened to.
        Stopped: SIGTERM or SIGUSR1 came; the state is saved, and the same config continues it.
    """
    with RunLock() as lock:
        return _fit(config.with_absolute_paths(), lock)


def _fit(config: Config, lock: RunLock) -> dict[str, Any]:
    """The run; the main process takes the lock, the caller releases it."""
    log_with = None if config.tracking.wandb == "disabled" else "wandb"
    accelerator = group.start(log_with, config.run.timeout_minutes)
    run = decide(accelerator, find_run, config)
    config = decide(accelerator, settle, config, run)
    data = decide(accelerator, prepare_data, config, run, patient=True)
    learner = build_learner(accelerator, config)
    config = find_memory(learner, config)
    batches = build_batches(accelerator, config, data.rows)
    log.info(f"{describe(data.rows)}\n{group.describe(accelerator)}\nrun: {run}")
    loaders, ids = build_loaders(learner, config, data, batches)
    wandb_id = decide(accelerator, open_run, run, config, data, lock, patient=True)

    warm_up(learner, config.data.image_size)
    saver = Saver(run, learner, config, data.rows, lock)
    state, stopping = saver.restore()
    rank_buffers: Tensor | None = None
    with (
        saver,
        Tracker(accelerator, run, config, wandb_id) as tracker,
        Guard(config, accelerator, lock) as guard,
    ):

        def after_step() -> None:
            if guard.save_now(state.global_step):
                saver.save(state, stopping)
                guard.stop_if_agreed()

        def after_batch() -> None:
            if guard.stop_now():
                if state.epoch_step:  # an epoch that is trained, but not judged
                    saver.save(state, stopping, rank_buffers)
                guard.stop_if_agreed()

        while state.epoch < config.train.epochs and not stopping.should_stop:
            train_one_epoch(learner, loaders["train"], batches, state, config, tracker.log, after_step)
            rank_buffers = buffers.average_buffers(accelerator, learner.module)
            val = evaluate(learner, loaders["val"], ids["val"], "val", after_batch)
            state.epoch, state.epoch_step = state.epoch + 1, 0
            metrics = decide(accelerator, compute, val.probabilities, val.labels)
            stopping = decide(accelerator, judge, stopping, metrics[config.early_stopping.metric], state.epoch)
            if stopping.best_epoch == state.epoch:
                state.best_step = state.global_step
            tracker.log_epoch(state, metrics, is_best=state.best_step == state.global_step)
            saver.save(state, stopping)

        best = decide(accelerator, saver.load, state.best_step)
        learner.module.load_state_dict(best.weights)
        final = {split: evaluate(learner, loaders[split], ids[split], split, after_batch) for split in ("val", "test")}
        results = decide(accelerator, write_results, run, config, data, learner, state, stopping, final)
        tracker.finish(results, final["test"], loaders["test"].dataset if config.tracking.images else None)
    log.info(summary(results, run))
    group.finish(accelerator)
    return results


def build_learner(accelerator: Accelerator, config: Config) -> Learner:
    """The model and its optimizer, prepared. Only the main process loads weights, and hands them to the others."""
    torch.manual_seed(derived_seed(config.run.seed, Stream.INITIAL_WEIGHTS))
    loaded: list[nn.Module] = []
    decide(accelerator, lambda: loaded.append(build_model(config.model)), patient=True)
    module = loaded[0] if accelerator.is_main_process else build_model(config.model, load=False)
    if config.train.channels_last:
        module.to(memory_format=torch.channels_last)
    model, optimizer = accelerator.prepare(module, build_optimizer(module, config.optim))
    buffers.broadcast_weights(accelerator, module)
    pixels = preprocessing(module)
    normalize = normalizer(pixels.mean, pixels.std, accelerator.device)
    return Learner(accelerator, model, module, optimizer, normalize, config.train.channels_last)


def find_memory(learner: Learner, config: Config) -> Config:
    """The config with `train.micro_batch_size: auto` replaced by what fits, the same on every rank."""
    if config.train.micro_batch_size != "auto":
        return config
    most = -(-config.train.batch_size // learner.accelerator.num_processes)
    found = find_micro_batch_size(learner, config.data.image_size, most)
    log.info(f"memory: {found} images at a time on each process (--train.micro_batch_size)")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch_size=found))


def build_batches(accelerator: Accelerator, config: Config, rows: list[Row]) -> TrainBatches:
    """This process's part of every global batch of the training images."""
    ids = [sample_id for sample_id, row in enumerate(rows) if row.split == "train"]
    return TrainBatches(ids, config.train, config.run.seed, accelerator.process_index, accelerator.num_processes)


def build_loaders(
    learner: Learner, config: Config, data: Prepared, batches: TrainBatches
) -> tuple[dict[str, DataLoader[Batch]], dict[str, list[int]]]:
    """By split, the loaders of this process and the sample ids of all processes. Each machine makes the pixels once."""
    accelerator, size, seed = learner.accelerator, config.data.image_size, config.run.seed
    root, cache = Path(config.data.path or ""), cache_folder(config.data.cache_dir)
    sources = [Source(root / row.path, row.sha256, *shape) for row, shape in zip(data.rows, data.sizes, strict=True)]
    interpolation = preprocessing(learner.module).interpolation
    group.on_each_machine(accelerator, ensure_store, cache, sources, size, interpolation)
    store = PixelStore(store_folder(cache, sources, size, interpolation))
    ids = {split: [sample_id for sample_id, row in enumerate(data.rows) if row.split == split] for split in SPLITS}
    workers = loader_workers(config.data, accelerator.device, group.local_processes())
    plain = LesionImages(store, data.rows, size, seed, augmented=False)
    augmented = LesionImages(store, data.rows, size, seed, augmented=config.data.augment)
    loaders = {"train": make_loader(augmented, batches, accelerator.device, workers)}
    for split in ("val", "test"):
        mine = eval_batches(
            ids[split], config.train.eval_batch_size, accelerator.process_index, accelerator.num_processes
        )
        loaders[split] = make_loader(plain, mine, accelerator.device, workers)
    return loaders, ids


def judge(stopping: EarlyStopping, value: float, epoch: int) -> EarlyStopping:
    """The tracker after one more epoch: decided once, then handed to every process."""
    stopping.update(value, epoch)
    return stopping
