"""`fit`: the story of one run. `launch/train.py` calls it; so can a script or a notebook:

from skindist import Config, DataConfig, fit
results = fit(Config(data=DataConfig(path="lesions")))
"""

import logging
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from skindist.config import Config, check
from skindist.data.loading import Batch, LesionImages, TrainBatches, eval_batches, loader_workers, make_loader
from skindist.data.prepare import Prepared
from skindist.data.split import SPLITS, Row, describe
from skindist.data.store import PixelStore, Source, ensure_store, store_folder
from skindist.data.transforms import normalizer
from skindist.early_stopping import EarlyStopping
from skindist.errors import UserError
from skindist.evaluation.metrics import compute
from skindist.machine import cache_folder
from skindist.model import build_model, preprocessing
from skindist.optim import build_optimizer, load_optimizer
from skindist.randomness import Stream, derived_seed
from skindist.training import distributed
from skindist.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    newest_intact,
    prune,
    save_checkpoint,
    step_folder,
)
from skindist.training.distributed import decide
from skindist.training.engine import Learner, collect_window, evaluate, train_one_epoch, warm_up
from skindist.training.results import summary, write_results
from skindist.training.run_folder import find_run, open_run, prepare_data, resolve
from skindist.training.state import TrainState
from skindist.training.stopping import Guard
from skindist.training.tracking import Tracker, rewind

log = logging.getLogger("skindist")


def fit(config: Config) -> dict[str, Any]:
    """Train, stop early, test the best epoch, and leave the run folder.

    Returns:
        What results.json holds, on every process.

    Raises:
        UserError: a mistake in the config, the data, the weights or the launch; raised on every process.
        TrainingError: training diverged or the disk is full; raised on every process.
        Stopped: SIGTERM or SIGUSR1 came; the state is saved, and the same config continues it.
    """
    config = resolve(check(config))
    accelerator = distributed.start(log_with=None if config.tracking.wandb == "disabled" else "wandb")
    run = decide(accelerator, find_run, config)
    data = decide(accelerator, prepare_data, config, run)
    learner = build_learner(accelerator, config)
    batches = build_batches(accelerator, config, data.rows)
    log.info(f"{describe(data.rows)}\n{distributed.describe(accelerator)}\nrun: {run}")
    loaders, ids = build_loaders(learner, config, data, batches)
    decide(accelerator, open_run, run, config, data)

    warm_up(learner, config.data.image_size)
    state, stopping = restore(learner, run, config)
    with Tracker(accelerator, run, config, state.wandb_id) as tracker, Guard(config.checkpoint, accelerator) as guard:

        def after_step() -> None:
            if guard.save_now(state.global_step):
                save(run, learner, state, stopping, config)
                guard.stop_if_agreed()

        while state.epoch < config.train.epochs and not stopping.should_stop:
            train_one_epoch(learner, loaders["train"], batches, state, config, tracker.log, after_step)
            val = evaluate(learner, loaders["val"], ids["val"], "val")
            metrics = decide(accelerator, compute, val.probabilities, val.labels)
            stopping = decide(accelerator, judge, stopping, metrics[config.early_stopping.metric], state.epoch)
            if stopping.best_epoch == state.epoch:
                state.best_step = state.global_step
            tracker.log_epoch(state, metrics, is_best=state.best_step == state.global_step)
            save(run, learner, state, stopping, config)

    best = decide(accelerator, load_checkpoint, step_folder(run / "checkpoints", state.best_step))
    learner.module.load_state_dict(best.weights)
    final = {split: evaluate(learner, loaders[split], ids[split], split) for split in ("val", "test")}
    results = decide(accelerator, write_results, run, config, data, learner, state, stopping, final)
    tracker.finish(results, final["test"], loaders["test"].dataset if config.tracking.images else None)
    log.info(summary(results, run))
    distributed.finish(accelerator)
    return results


def build_learner(accelerator: Accelerator, config: Config) -> Learner:
    """The model and its optimizer, prepared. Only the main process loads weights, and hands them to the others."""
    torch.manual_seed(derived_seed(config.run.seed, Stream.INITIAL_WEIGHTS))
    loaded: list[nn.Module] = []
    decide(accelerator, lambda: loaded.append(build_model(config.model)))
    module = loaded[0] if accelerator.is_main_process else build_model(config.model, load=False)
    if config.train.channels_last:
        module.to(memory_format=torch.channels_last)
    model, optimizer = accelerator.prepare(module, build_optimizer(module, config.optim))
    distributed.broadcast_weights(accelerator, module)
    pixels = preprocessing(module)
    normalize = normalizer(pixels.mean, pixels.std, accelerator.device)
    return Learner(accelerator, model, module, optimizer, normalize, config.train.channels_last)


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
    distributed.on_each_machine(accelerator, ensure_store, cache, sources, size, interpolation)
    store = PixelStore(store_folder(cache, sources, size, interpolation))
    ids = {split: [sample_id for sample_id, row in enumerate(data.rows) if row.split == split] for split in SPLITS}
    workers = loader_workers(config.data, accelerator.device, distributed.local_processes())
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


def save(run: Path, learner: Learner, state: TrainState, stopping: EarlyStopping, config: Config) -> None:
    """Write a checkpoint of this step, then prune the old ones. Call it on every rank."""
    accelerator = learner.accelerator
    collect_window(learner, state)
    buffers = distributed.gather_buffers(accelerator, learner.module)
    values = {
        "train": asdict(state),
        "early_stopping": stopping.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        "world_size": accelerator.num_processes,
    }

    def write() -> None:
        folder = step_folder(run / "checkpoints", state.global_step)
        weights, optimizer = learner.module.state_dict(), learner.optimizer.state_dict()
        save_checkpoint(folder, Checkpoint(weights, optimizer, values, buffers))
        best = step_folder(run / "checkpoints", state.best_step) if state.best_step else None
        prune(folder, best, config.checkpoint.keep)

    decide(accelerator, write)


def restore(learner: Learner, run: Path, config: Config) -> tuple[TrainState, EarlyStopping]:
    """Start afresh, or go on from the newest intact checkpoint, which the main process reads for all."""
    asked = config.early_stopping
    state, stopping = TrainState(), EarlyStopping(asked.patience, asked.min_delta, asked.mode)

    def read() -> Checkpoint | None:
        folder = newest_intact(run / "checkpoints")
        if folder is None and config.run.resume == "must":
            raise UserError(f"--run.resume must: no intact checkpoint in {run}")
        checkpoint = load_checkpoint(folder) if folder else None
        rewind(run / "metrics.jsonl", checkpoint.state["train"]["global_step"] if checkpoint else 0)
        return checkpoint

    checkpoint = decide(learner.accelerator, read)
    if checkpoint is None:
        state.wandb_id = decide(learner.accelerator, secrets.token_hex, 4)
        return state, stopping
    learner.module.load_state_dict(checkpoint.weights)
    load_optimizer(learner.optimizer, checkpoint.optimizer)
    distributed.restore_buffers(learner.accelerator, learner.module, checkpoint.rank_buffers)
    if learner.accelerator.scaler and checkpoint.state["scaler"]:
        learner.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
    stopping.load_state_dict(checkpoint.state["early_stopping"])
    state = TrainState(**checkpoint.state["train"])
    within = f", {state.epoch_step} steps into the next" if state.epoch_step else ""
    log.info(f"resumed after epoch {state.epoch}{within}, step {state.global_step}")
    return state, stopping
