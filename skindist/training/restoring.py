"""A run's state back from disk: the main process reads it, every rank gets it, and only where it means the same."""

import logging
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from skindist.config import Config, changes
from skindist.data.split import Row
from skindist.distributed import buffers
from skindist.distributed.group import decide, on_main
from skindist.early_stopping import EarlyStopping
from skindist.errors import UserError
from skindist.optim import epoch_of_half_rate, load_optimizer
from skindist.run import record
from skindist.run.checkpoint import Checkpoint, join_optimizer, load_checkpoint, split_optimizer
from skindist.run.folder import Run
from skindist.training.learner import Learner
from skindist.training.saving import Saver, environment, experiment, split_weights
from skindist.training.state import TrainState
from skindist.wording import plural

log = logging.getLogger("skindist")


def restore(run: Run, learner: Learner, config: Config, rows: list[Row]) -> tuple[TrainState, EarlyStopping]:
    """Start afresh, or go on from the newest intact checkpoint. Call it on every rank.

    Raises:
        UserError: on every rank, when the checkpoint was made with other data, config or precision, or `run.resume`
            demands one and there is none.
    """
    asked, accelerator = config.early_stopping, learner.accelerator
    first_epoch = asked.first_epoch or epoch_of_half_rate(config.train.epochs, config.optim)
    state, stopping = TrainState(), EarlyStopping(asked.patience, asked.min_delta, asked.mode, first_epoch)
    found = on_main(accelerator, read_newest, run, learner, config, rows, may_take_hours=True)
    checkpoint = share_checkpoint(accelerator, found)
    if checkpoint is None:
        return state, stopping
    weights, average = split_weights(checkpoint.weights)
    learner.module.load_state_dict(weights)
    if learner.average is not None:
        learner.average.module.load_state_dict(average)
    load_optimizer(learner.optimizer, checkpoint.optimizer)
    buffers.restore_buffers(accelerator, learner.models, checkpoint.rank_buffers)
    if accelerator.scaler and checkpoint.state["scaler"]:
        accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
    stopping.load_state_dict(checkpoint.state["early_stopping"])
    state = TrainState(**checkpoint.state["train"])
    within = f", {plural(state.epoch_step, 'step')} into the next" if state.epoch_step else ""
    log.info(f"resumed after epoch {state.epoch}{within}, step {state.global_step}")
    return state, stopping


def load_best(saver: Saver, learner: Learner, global_step: int) -> None:
    """Give every rank the weights of a saved step, or their average, which was judged: training is over."""
    best = on_main(learner.accelerator, saver.load, global_step)
    if best:
        weights, average = split_weights(best.weights)
        learner.module.load_state_dict(average or weights)
    learner.average = None
    buffers.broadcast_weights(learner.accelerator, learner.module)


def read_newest(run: Run, learner: Learner, config: Config, rows: list[Row]) -> Checkpoint | None:
    """The newest checkpoint that is whole, if it is of this experiment; the curves end where it was made."""
    folder = run.newest_checkpoint()
    if folder is None and config.run.resume == "must":
        raise UserError(f"--run.resume must: no intact checkpoint in {run.path}")
    checkpoint = load_checkpoint(folder) if folder else None
    if checkpoint:
        refuse_another_experiment(run, checkpoint.state, experiment(config, rows), environment(learner))
    state = checkpoint.state["train"] if checkpoint else {"global_step": 0, "epoch": 0}
    record.rewind(run.record, state["global_step"], state["epoch"])
    return checkpoint


def refuse_another_experiment(
    run: Run, saved: Mapping[str, Any], asked: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Raise UserError if a checkpoint is of another experiment; say what may change its last bits."""
    then = saved["environment"]
    differences = changes(saved["config"], asked["config"])
    if saved["data"] != asked["data"]:
        differences.append("other images, labels or split than in split.csv")
    if then["mixed_precision"] != now["mixed_precision"]:
        differences.append(f"--mixed_precision {then['mixed_precision']} -> {now['mixed_precision']}")
    if differences:
        raise UserError(
            f"the checkpoints in {run.path} belong to another run: {'; '.join(differences)}. "
            "Give what they were made with, or another --run.dir"
        )
    known = [what for what in now if what in then]  # another version may have said less
    if moved := [f"{what} {then[what]} -> {now[what]}" for what in known if then[what] != now[what]]:
        log.warning(
            f"resumed elsewhere ({', '.join(moved)}): every batch holds the same images, but sums may round "
            "differently, and a BatchNorm that takes new statistics sees the images of one process at a time"
        )


def share_checkpoint(accelerator: Accelerator, checkpoint: Checkpoint | None) -> Checkpoint | None:
    """Give every rank the main process's checkpoint: its tensors as tensors, the rest as JSON values."""
    if accelerator.num_processes == 1:
        return checkpoint
    moments, values = split_optimizer(checkpoint.optimizer) if checkpoint else ({}, {})
    state, values = decide(accelerator, lambda: (checkpoint.state if checkpoint else None, values))
    if state is None:
        return None
    weights = buffers.broadcast_tensors(accelerator, checkpoint.weights if checkpoint else {})
    moments = buffers.broadcast_tensors(accelerator, moments)
    ranks = buffers.broadcast_tensors(accelerator, {"ranks": checkpoint.rank_buffers} if checkpoint else {})
    return Checkpoint(weights, join_optimizer(moments, values), state, ranks["ranks"])
