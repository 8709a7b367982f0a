"""`fit`: the story of one run. `launch/train.py` calls it; so can a script or a notebook:

from skindist import Config, DataConfig, fit
if __name__ == "__main__":  # loader processes may import the file again
    results = fit(Config(data=DataConfig(path="lesions")))
"""

import dataclasses
import logging
from typing import Any

import torch
from accelerate import Accelerator

from skindist.config import Config
from skindist.cpu_threads import on_own_core
from skindist.data.loading import LesionImages, Loaders, TrainBatches, TrainLoader, batch_sizes, make_loader, sample_ids
from skindist.data.prepare import Prepared
from skindist.data.split import describe
from skindist.data.transforms import normalizer
from skindist.distributed import buffers, group, host, peers
from skindist.distributed.contact import Contact
from skindist.distributed.group import decide, on_main
from skindist.evaluation.predictions import Predictions
from skindist.folding import pairs_to_fold
from skindist.launcher import check_batch, this_launch
from skindist.model import (
    build_model,
    freeze_backbone,
    noisy_batchnorm,
    preprocessing,
    refuse_lone_image,
    refuse_size,
    synchronise_batchnorm,
    try_size,
)
from skindist.optim import build_optimizer
from skindist.prediction.evaluate import evaluate
from skindist.prediction.loaders import choose_workers, eval_loader, open_store
from skindist.prediction.memory import memory_explained
from skindist.prediction.stress import stress_test
from skindist.randomness import Stream, derived_seed
from skindist.report.words import describe_places, describe_results
from skindist.run.folder import Run
from skindist.run.lock import RunLock
from skindist.run.opening import choose_folder, claim, keep_micro_batch_size, prepare_data
from skindist.tracking.other_trackers import OtherTrackers, check_trackers
from skindist.tracking.wandb_sink import WandbSink
from skindist.training.engine import train_one_epoch
from skindist.training.interruption import Interruptions
from skindist.training.learner import Learner, RunningAverage
from skindist.training.loss import class_weights
from skindist.training.rehearsal import capture_steps, find_eval_batch_size, find_micro_batch_size, warm_up
from skindist.training.restoring import load_best, restore
from skindist.training.saving import Saver
from skindist.training.tracker import Tracker
from skindist.wording import plural

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
    with memory_explained(), RunLock() as lock:
        return _fit(config.with_absolute_paths(), lock)


def _fit(config: Config, lock: RunLock) -> dict[str, Any]:
    """The run; the main process takes the lock, the caller releases it."""
    check_batch(config.train.batch_size, this_launch().world_size)
    check_trackers(config.tracking)
    log_with = "wandb" if "wandb" in config.tracking.names else None
    accelerator = group.join_group(log_with, config.run.timeout_minutes, config.train.deterministic)
    peers.check_flags(host.gather(config.without_paths()))
    run = decide(accelerator, choose_folder, config, may_take_hours=True)
    config = decide(accelerator, keep_micro_batch_size, config, run)
    data = decide(accelerator, prepare_data, config, run, may_take_hours=True)
    devices = f"{group.describe(accelerator)}, mixed precision {accelerator.mixed_precision}"
    log.info(f"{describe(data.rows)}\n{devices}\nrun: {run.path}")
    learner = build_learner(accelerator, config)
    config = settle_memory(learner, config, len(sample_ids(data.rows, "train")))
    loaders = build_loaders(learner, config, data)
    wandb_id = decide(accelerator, claim, run, config, data, lock, may_take_hours=True)

    state, stopping = restore(run, learner, config, data.rows)
    contact = Contact(accelerator.device, config.run.timeout_minutes)
    with (
        Saver(run, learner, config, data.rows, lock) as saver,
        WandbSink(accelerator, run, config, wandb_id) as wandb,
        OtherTrackers(accelerator, run, config, wandb_id, state.global_step) as others,
        Interruptions(config, accelerator, lock, contact.beat) as interruptions,
        contact,
    ):
        tracker = Tracker(accelerator, run, wandb, others)

        def between_steps() -> None:
            if interruptions.should_save(state.global_step):
                saver.save(state, stopping)
                interruptions.stop_if_agreed()

        def between_batches() -> None:
            if interruptions.should_stop():
                if state.epoch_step:  # an epoch that is trained, but not judged
                    saver.save(state, stopping)
                interruptions.stop_if_agreed()

        with on_own_core(accelerator.device.type == "cpu"):
            while state.epoch < config.train.epochs and not stopping.should_stop:
                train_one_epoch(learner, loaders.train, state, config, tracker.log, between_steps)
                val = evaluate(learner, loaders.val, between_batches)
                metrics = decide(accelerator, validation_metrics, val)
                state.finish_epoch()
                if stopping.update(metrics[config.early_stopping.metric], state.epoch):
                    state.best_step = state.global_step
                tracker.log_epoch(state, metrics, stopping.first_epoch)
                saver.save(state, stopping)

            learner.graphs = {}  # their memory is free for what follows
            load_best(saver, learner, state.best_step)
            learner.views = config.evaluation.views
            final = {split.name: evaluate(learner, split, between_batches) for split in (loaders.val, loaders.test)}
            images: Any = loaders.test.loader.dataset
            stress = (learner, config.data, data, images, config.train.eval_batch_size, between_batches)
            disturbed = stress_test(*stress) if config.evaluation.stress else {}
        contact.leave()  # what follows is the main process's work, and may take long
        outcome = (run, config, data, learner, state, stopping, final, disturbed, images)
        results = decide(accelerator, judge, *outcome, may_take_hours=True)
        wandb.finish(results, final["test"], images if config.tracking.images else None)
        others.finish(results, state.global_step)
        if accelerator.is_main_process:
            draw_page(run)
    log.info(f"{describe_results(results)}\n{describe_places(run.results_file, run.report)}")
    group.leave_group(accelerator)
    return results


# What the main process alone does is imported when it is done: this takes seconds, and no training waits for it.


def validation_metrics(found: Predictions) -> dict[str, float]:
    """Every metric by name."""
    from skindist.evaluation.modules import compute

    return compute(found.probabilities, found.labels)


def judge(*outcome: Any) -> dict[str, Any]:
    """Write what a finished run leaves; return what results.json holds."""
    from skindist.training.results import write_results

    return write_results(*outcome)


def draw_page(run: Run) -> None:
    """Write the page of the run."""
    from skindist.report.run_page import draw_run_page

    draw_run_page(run)


def build_learner(accelerator: Accelerator, config: Config) -> Learner:
    """The model and its optimizer, prepared. Only the main process loads weights, and hands them to the others."""
    refuse_size(config.model.name, config.data.image_size)
    torch.manual_seed(derived_seed(config.run.seed, Stream.INITIAL_WEIGHTS))
    loaded = on_main(accelerator, build_model, config.model, may_take_hours=True)
    module = build_model(config.model, load=False) if loaded is None else loaded
    decide(accelerator, try_size, module, config.model.name, config.data.image_size)
    if config.train.freeze_backbone:
        freeze_backbone(module)
    if config.train.sync_batchnorm:
        module = synchronise_batchnorm(module, accelerator.device)
    memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
    module.to(memory_format=memory_format)
    pairs = pairs_to_fold(module) if config.keeps_statistics else ()
    optimizer = build_optimizer(module, config.optim, config.model.starts_trained)
    model, optimizer = accelerator.prepare(module, optimizer)
    buffers.broadcast_weights(accelerator, module)
    pixels = preprocessing(module)
    normalize = normalizer(pixels.mean, pixels.std, accelerator.device)
    average = RunningAverage(module, config.train.ema) if config.train.ema else None
    return Learner(
        accelerator,
        module,
        normalize,
        memory_format,
        model=model,
        optimizer=optimizer,
        average=average,
        pairs=pairs,
    )


def settle_memory(learner: Learner, config: Config, images: int) -> Config:
    """Lay out what steps need in memory: DDP's buckets, and what a GPU replays. Return the config with what fits for
    `train.micro_batch_size: auto`, the same on every rank; in evaluation, too, no more images at a time than fit.

    Args:
        images: that are trained on.
    """
    auto, size = config.train.micro_batch_size == "auto", config.data.image_size
    batches = batch_sizes(images, config.train.batch_size)
    if images < config.train.batch_size:
        log.info(f"--train.batch_size {config.train.batch_size}: there are {images} training images, in one batch")
    warm_up(learner, size)  # before what fits is measured: NCCL takes memory for itself when gradients first meet
    if auto:
        found = find_micro_batch_size(learner, size, -(-max(batches) // learner.accelerator.num_processes))
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch_size=found))
    capture_steps(learner, config, batches)
    if auto:
        predicted = find_eval_batch_size(learner, size, config.train.eval_batch_size)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_batch_size=predicted))
        log.info(
            f"memory: {plural(found, 'image')} at a time on each process (--train.micro_batch_size), "
            f"{predicted:,} in evaluation (--train.eval_batch_size)"
        )
    return config


def build_loaders(learner: Learner, config: Config, data: Prepared) -> Loaders:
    """The loaders of this process, and the pixels that they read, which each machine makes once."""
    accelerator = learner.accelerator
    rank, world_size = accelerator.process_index, accelerator.num_processes
    batches = TrainBatches(sample_ids(data.rows, "train"), config.train, config.run.seed, rank, world_size)
    refuse_lone_image(learner.module, config, batches.fewest, config.data.image_size)
    if noisy := noisy_batchnorm(learner.module, config, batches.most, world_size):
        log.info(noisy)
    store = open_store(accelerator, config.data, data, preprocessing(learner.module).interpolation)
    workers = choose_workers(accelerator, config.data, max(batches.most, config.train.eval_batch_size))
    plain, augmented = (
        LesionImages(store, data.rows, config.data.image_size, config.run.seed, augmented=augmented)
        for augmented in (False, config.data.augment)
    )
    weights_K = class_weights([data.rows[sample_id].label for sample_id in batches.ids], config.train.class_weights)
    weights_K = None if weights_K is None else weights_K.to(accelerator.device)
    train = TrainLoader(batches, make_loader(augmented, batches, accelerator.device, workers), weights_K)
    val, test = (
        eval_loader(accelerator, data, plain, split, config.train.eval_batch_size, workers) for split in ("val", "test")
    )
    return Loaders(train, val, test)
