"""The engine's steps, its evaluation and its checkpoints, beside the loop that most users write."""

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import Subset

from benchmarks import plain
from benchmarks.measuring import (
    BATCH,
    SIZE,
    Figure,
    endless,
    open_store,
    plain_images,
    ratio_figure,
    side_by_side,
    speed,
    training_loader,
    wait_for_device,
)
from benchmarks.plain import in_a_new_process
from skindist.config import Config
from skindist.cpu_threads import on_own_core
from skindist.data.loading import Batch, EvalLoader, LesionImages, eval_batches, loader_workers, make_loader, sample_ids
from skindist.data.prepare import prepare
from skindist.distributed.group import join_group, leave_group
from skindist.early_stopping import EarlyStopping
from skindist.launcher import this_launch
from skindist.machine import available_cores
from skindist.prediction.evaluate import evaluate
from skindist.prediction.memory import black_images
from skindist.recipe import DataConfig, ModelConfig, TrainConfig
from skindist.run.folder import Run
from skindist.run.lock import RunLock
from skindist.training.engine import set_train_mode, train_step
from skindist.training.learner import Learner
from skindist.training.rehearsal import capture_steps
from skindist.training.saving import Saver
from skindist.training.state import TrainState
from skindist.training.trainer import build_learner

DEFAULTS = Config(model=ModelConfig(pretrained=False), train=TrainConfig(freeze_batchnorm=True))
"""As the defaults train: random weights cost what pretrained ones do, if BatchNorm keeps the statistics of both."""


def training(data: Path, folder: Path) -> list[Figure]:
    """The engine's steps fed by the loader, and the same steps on one batch that is in memory already."""
    learner = learner_in_training()
    accelerator = learner.accelerator
    device, processes = accelerator.device, accelerator.num_processes
    workers = loader_workers(DEFAULTS.data, device, this_launch().local_world_size)
    prepared = prepare(DataConfig(path=str(data)), seed=0)
    ours = endless(training_loader(data, prepared, workers, device, rank=accelerator.process_index, ranks=processes))
    held, steps = next(ours), 200 if device.type == "cuda" else 8
    speeds = side_by_side(
        lambda: processes * speed(lambda: take_steps(learner, islice(ours, steps))),
        lambda: processes * speed(lambda: take_steps(learner, [held] * steps)),
    )
    there = f"{processes} x {device.type}, mixed precision {accelerator.mixed_precision}"
    what = f"training EfficientNet-B0 on {there}, images/s"
    leave_group(accelerator)
    return [ratio_figure(what, "one batch held in memory", *speeds)]


def beside_plain(data: Path, folder: Path) -> list[Figure]:
    """The engine's steps with all defaults, and those of the loop that most users write: files, float32, no more."""
    prepared = prepare(DataConfig(path=str(data)), seed=0)
    learner = learner_in_training()
    accelerator = learner.accelerator
    device, workers = accelerator.device, loader_workers(DEFAULTS.data, accelerator.device, 1)
    steps = 200 if device.type == "cuda" else 8
    ours = endless(training_loader(data, prepared, workers, device))
    images = plain_images(data, folder, prepared, "train")
    with in_a_new_process(plain.training, DEFAULTS.model.name, device, images, workers, steps) as theirs:
        speeds = side_by_side(lambda: speed(lambda: take_steps(learner, islice(ours, steps))), theirs)
    what = f"training with the defaults on {device.type}, mixed precision {accelerator.mixed_precision}, images/s"
    return [ratio_figure(what, "a plain loop: ImageFolder, float32", *speeds)]


def evaluation(data: Path, folder: Path) -> list[Figure]:
    """The prediction of an epoch's validation, and that of the loop that most users write."""
    prepared = prepare(DataConfig(path=str(data)), seed=0)
    learner = build_learner(join_group(), DEFAULTS)
    device, store = learner.accelerator.device, open_store(data, prepared)
    workers = loader_workers(DEFAULTS.data, device, 1)
    plain_pixels = LesionImages(store, prepared.rows, SIZE, seed=0, augmented=False)
    ids = list(range(min(256, len(sample_ids(prepared.rows, "train")))))
    batches = make_loader(plain_pixels, eval_batches(ids, DEFAULTS.train.eval_batch_size, 0, 1), device, workers)
    split = EvalLoader("val", ids, batches)
    images = Subset(plain_images(data, folder, prepared, "train", augmented=False), ids)
    batch = DEFAULTS.train.eval_batch_size
    with in_a_new_process(plain.evaluation, DEFAULTS.model.name, device, images, workers, batch) as theirs:
        speeds = side_by_side(lambda: speed(lambda: len(evaluate(learner, split).ids)), theirs)
    return [ratio_figure(f"evaluation on {device.type}, float32, images/s", "a plain loop", *speeds)]


def checkpoint(data: Path, folder: Path) -> list[Figure]:
    """How long training waits for a checkpoint of EfficientNet-B0 and Adadelta, and what it costs beside the steps."""
    learner = learner_in_training()
    device, steps = learner.accelerator.device, 200 if torch.cuda.is_available() else 10
    batch = black_images(BATCH, SIZE)
    state, stopping, waits = TrainState(), EarlyStopping(2, 0.001, "min"), []

    def steps_and_save(saver: Saver | None) -> int:
        images = take_steps(learner, [batch] * steps)
        if saver:
            state.global_step += 1
            wait_for_device()
            begun = time.perf_counter()
            saver.save(state, stopping)
            waits.append(time.perf_counter() - begun)
        return images

    with Saver(Run(folder / "run"), learner, DEFAULTS, [], RunLock()) as saver:
        speeds = side_by_side(lambda: speed(lambda: steps_and_save(saver)), lambda: speed(lambda: steps_and_save(None)))
        state.global_step += 1
        wait_for_device()
        begun = time.perf_counter()
        saver.save(state, stopping)
        saver.load(state.global_step)
    at_once, wait = time.perf_counter() - begun, statistics.median(waits[1:])
    share = wait / (60 * (DEFAULTS.checkpoint.every_minutes or math.inf))
    return [
        Figure(
            "wait of training for a checkpoint",
            f"{wait:.3f} s",
            f"{at_once:.2f} s (written and read at once)",
            f"{share:.3%} at the default interval",
        ),
        ratio_figure(
            f"training on {device.type} with a checkpoint after every {steps} steps, images/s", "without", *speeds
        ),
    ]


def shared(data: Path, folder: Path) -> list[Figure]:
    """Training on a CPU while another program uses one core, and with one thread less while none does."""
    cores, learner = available_cores(), learner_in_training()
    if learner.accelerator.device.type != "cpu" or cores == 1:
        return [
            Figure("training while another program uses a core", "", "", "for two or more CPU cores, without a GPU")
        ]

    def steps(size: int, count: int, threads: int, busy: bool) -> float:
        torch.set_num_threads(threads)
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        try:
            with on_own_core():  # as in a training
                return speed(lambda: take_steps(learner, [black_images(BATCH, size)] * count))
        finally:
            if other:
                other.kill()
                other.wait()

    figures = []
    for size, count in ((64, 20), (SIZE, 3)):  # in the steps of small images, threads wait for each other often
        job = partial(steps, size, count)
        speeds = side_by_side(partial(job, cores, True), partial(job, cores - 1, False))
        what = f"training at {size} px with {cores} threads while another program uses one of {cores} cores, images/s"
        figures.append(ratio_figure(what, f"alone with {cores - 1}", *speeds))
    return figures


def profile_step() -> str:
    """What the time of three training steps on one batch goes to: the operations that take most, in a table."""
    learner, batch = learner_in_training(), black_images(BATCH, SIZE)
    take_steps(learner, [batch] * 3)
    with torch.profiler.profile() as profiler:
        take_steps(learner, [batch] * 3)
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=50))


def learner_in_training() -> Learner:
    """What a run trains, when its steps begin."""
    learner = build_learner(join_group(), DEFAULTS)
    capture_steps(learner, DEFAULTS, [BATCH * learner.accelerator.num_processes])
    set_train_mode(learner.model, DEFAULTS.keeps_statistics)
    return learner


def take_steps(learner: Learner, batches: Iterable[Batch]) -> int:
    """An optimizer step of the engine on each batch; returns how many images that were."""
    images = 0
    for batch in batches:
        train_step(learner, [batch], len(batch.ids_B) * learner.accelerator.num_processes, 0, DEFAULTS)
        images += len(batch.ids_B)
    return images
