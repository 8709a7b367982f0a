"""The loop: `train_one_epoch` is a plain function over explicit parts. Write another one from it and `evaluate`."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from skindist.config import Config
from skindist.data.loading import Batch, TrainLoader
from skindist.distributed import host
from skindist.distributed.buffers import average_buffers, read_buffers, write_buffers
from skindist.errors import TrainingError
from skindist.optim import learning_rate, set_learning_rate
from skindist.prediction.evaluate import progress
from skindist.prediction.memory import advised
from skindist.randomness import Stream, derived_seed
from skindist.recipe import TrainConfig
from skindist.training.learner import Learner
from skindist.training.loss import summed_loss
from skindist.training.state import TrainState
from skindist.wording import plural

Log = Callable[[dict[str, float]], None]
SETTLED = 3  # steps of a process until memory is allocated and kernels are chosen: they do not count for its speed
HALVINGS = 16  # of fp16's loss scale, from the 2**16 that it starts at to 1: until then, an overflow is its search
log = logging.getLogger("skindist")


def train_one_epoch(
    learner: Learner,
    train: TrainLoader,
    state: TrainState,
    config: Config,
    record: Log = lambda event: None,
    after_step: Callable[[], None] = lambda: None,
    rate: Callable[[int, int], float] | None = None,
) -> None:
    """Take all steps of an epoch, from where `state` is, and advance it; then give every rank the mean of all ranks'
    BatchNorm statistics.

    A point of the curve is recorded every `train.log_every` steps. Losses stay on the device until a point is recorded
    or the state is saved. So no step waits for it, except in fp16, with `train.non_finite: skip` and with
    `train.sync_batchnorm`.

    Args:
        after_step: called after each step but the epoch's last, when `state` is up to date but for its window.
        rate: the learning rate of a step, from the number of the step and of the steps in an epoch; None: that of
            the config.

    Raises:
        TrainingError: a loss or gradient is NaN or infinite; the message names the step.
        OutOfMemory: on the process that it happened to.
    """
    rate = rate or partial(learning_rate, epochs=config.train.epochs, config=config.optim)
    set_train_mode(learner.model, config.keeps_statistics)
    learner.unaveraged = None
    micro_batches, sizes = train.start(state.epoch, state.epoch_step)
    title, done = f"epoch {state.epoch + 1}/{config.train.epochs}", {"total": len(sizes), "initial": state.epoch_step}
    with progress(None, title, "step", learner.accelerator, **done) as bar:
        for size in sizes[state.epoch_step :]:
            started = time.perf_counter()
            lr = rate(state.global_step, len(sizes))
            set_learning_rate(learner.optimizer, lr)
            mine = list(islice(micro_batches, train.batches.passes(size)[train.batches.rank]))
            learner.pending.append(train_step(learner, mine, size, state.global_step, config, train.class_weights_K))
            state.global_step += 1
            state.epoch_step += 1
            state.images_seen += size
            learner.steps += 1
            bar.update()
            if state.epoch_step == len(sizes) or state.epoch_step % config.train.log_every == 0:
                collect_window(learner, state, config.train)
                loss, accuracy = np.mean(state.window, axis=0).tolist() if state.window else (math.nan, math.nan)
                state.window.clear()
                where = {"epoch": state.epoch + state.epoch_step / len(sizes), "global_step": state.global_step}
                counts = {"train/skipped_steps": len(state.skipped), "train/overflowed_steps": len(state.overflowed)}
                counts = {name: count for name, count in counts.items() if count}
                record({"train/loss": loss, "train/accuracy": accuracy, "train/lr": lr, **counts, **where})
                bar.set_postfix(loss=f"{loss:.4f}")
            state.count_time(time.perf_counter() - started, size if learner.steps > SETTLED else 0)
            if state.epoch_step < len(sizes):
                after_step()
    learner.unaveraged = average_buffers(learner.accelerator, learner.models)


def train_step(
    learner: Learner,
    micro_batches: Sequence[Batch],
    size: int,
    global_step: int,
    config: Config,
    class_weights_K: Tensor | None = None,
) -> Tensor:
    """One optimizer step over this rank's part of a global batch of `size` images.

    A step whose loss or gradient is not finite changes no weight and no mean of BatchNorm where `train.non_finite` says
    skip. Nor does one that overflows in fp16 change weights or their average.

    Returns:
        On the device, (3,): this rank's part of the batch's mean loss, and of its share of right answers; the
        gradient's largest magnitude (fp16's gradient scaler looks itself: 0, or infinite where it skipped the step).
    """
    accelerator, skips = learner.accelerator, config.train.non_finite == "skip"
    statistics = read_buffers(learner.module) if skips else None  # a bad image spoils them in the forward pass
    totals = torch.zeros(3, device=accelerator.device)
    for micro_step, batch in enumerate(micro_batches):
        torch.manual_seed(
            derived_seed(config.run.seed, Stream.DROPOUT, global_step, micro_step, accelerator.process_index)
        )
        synchronised = micro_step == len(micro_batches) - 1
        with advised(len(batch.ids_B)), nullcontext() if synchronised else accelerator.no_sync(learner.model):
            images_BCHW, labels_B = learner.to_device(batch)
            logits_BK = learner.logits_to_learn_from(images_BCHW)
            # Summed and divided by the GLOBAL batch: parts that differ in size still add up to the exact mean.
            loss = summed_loss(logits_BK, labels_B, config.train.label_smoothing, class_weights_K) / size
            accelerator.backward(loss * accelerator.num_processes)  # DDP divides by the number of processes
        totals[0] += loss.detach()
        totals[1] += (logits_BK.detach().argmax(dim=1) == labels_B).sum() / size
    if accelerator.scaler is None:
        gradients = [parameter.grad for parameter in learner.module.parameters() if parameter.grad is not None]
        totals[2] = nn.utils.get_total_norm(gradients, norm_type=math.inf)
    if statistics is not None and not host.sum_ranks(totals).isfinite().all():
        write_buffers(learner.module, statistics)
    else:
        learner.optimizer.step()
        if accelerator.scaler is not None and accelerator.optimizer_step_was_skipped:
            totals[2].fill_(math.inf)
        elif learner.average is not None:
            learner.average.update(learner.module, step=global_step + 1)
    learner.optimizer.zero_grad(set_to_none=True)
    return totals


def collect_window(learner: Learner, state: TrainState, train: TrainConfig) -> None:
    """Bring the loss and accuracy of the pending steps from all ranks into the state's window, and note which were
    skipped: the one place of the loop that waits for the device (in fp16 and with `non_finite: skip`, each step does).

    Raises:
        TrainingError: on every rank alike, when a step was not finite, or one more than may be skipped.
    """
    if not learner.pending:
        return
    steps = host.sum_ranks(torch.stack(learner.pending)).tolist()
    learner.pending.clear()
    scaler = learner.accelerator.scaler
    for number, (loss, accuracy, gradient) in enumerate(steps, start=state.global_step - len(steps) + 1):
        if math.isfinite(loss) and math.isfinite(gradient):
            state.window.append([loss, accuracy])
            continue
        what = f"the gradient is {gradient}" if math.isfinite(loss) else f"the training loss is {loss}"
        if scaler is not None and math.isfinite(loss):
            what = "the gradient overflows in fp16"
            if len(state.overflowed) < HALVINGS + number // scaler.get_growth_interval():  # it tries twice the scale
                state.overflowed.append(number)
                state.window.append([loss, accuracy])
                continue
        state.skipped.append(number)
        if train.non_finite == "error" or len(state.skipped) > train.max_skipped:
            count = len(state.skipped) + len(state.overflowed) - 1
            before = f", after {plural(count, 'skipped step')}" if count else ""
            raise TrainingError(
                f"{what} at step {number}{before}: lower --optim.lr, train without fp16 (--mixed_precision bf16 or "
                "no), or allow for some such steps with --train.non_finite skip and --train.max_skipped"
            )
        log.warning(f"step {number} is skipped: {what} ({len(state.skipped)} of at most {train.max_skipped})")


def set_train_mode(model: nn.Module, keep_statistics: bool) -> None:
    """Training mode, with BatchNorm layers held at their statistics if asked."""
    model.train()
    if keep_statistics:
        for layer in model.modules():
            if isinstance(layer, _BatchNorm):
                layer.eval()
