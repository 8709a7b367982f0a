"""The loop: `train_one_epoch` and `evaluate` are plain functions over explicit parts. Write another loop from them."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from tqdm import tqdm

from skindist.config import Config
from skindist.data.loading import Batch, TrainBatches
from skindist.data.transforms import IDENTITY
from skindist.errors import TrainingError
from skindist.optim import learning_rate
from skindist.randomness import Stream, derived_seed
from skindist.training.distributed import average_buffers, gather_rows
from skindist.training.state import TrainState

Log = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Predictions:
    """Every image of a split once, in the order of its sample ids: ids, probability of malignant, label, each (N,)."""

    ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Learner:
    """What is trained and with what: the prepared (wrapped) model, its bare module, the prepared optimizer, and the
    function from uint8 to normalised images."""

    accelerator: Accelerator
    model: nn.Module
    module: nn.Module
    optimizer: torch.optim.Optimizer
    normalize: Callable[[Tensor, Tensor], Tensor]
    channels_last: bool = True
    pending: list[Tensor] = field(default_factory=list)  # loss and accuracy of steps, still on the device

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) as uint8 to the device, coloured and normalised there; labels (B,)."""
        device = self.accelerator.device
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        images_BCHW = batch.images_BCHW.to(device, non_blocking=True).contiguous(memory_format=memory_format)
        colours_B2C = batch.colours_B2C.to(device, non_blocking=True)
        return self.normalize(images_BCHW, colours_B2C), batch.labels_B.to(device, non_blocking=True)


def train_one_epoch(
    learner: Learner,
    loader: DataLoader[Batch],
    batches: TrainBatches,
    state: TrainState,
    config: Config,
    log: Log,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train on every image once, from where `state` is; advance it; log the curve every `train.log_every` steps.

    No step waits for the device: losses stay there until a point of the curve is logged or the state is saved.

    Args:
        after_step: called after each step but the epoch's last, when `state` is up to date but for its window.

    Raises:
        TrainingError: a loss is NaN or infinite; the message names the step.
    """
    accelerator, train = learner.accelerator, config.train
    set_train_mode(learner.model, train.freeze_batchnorm)
    batches.epoch, batches.first_step = state.epoch, state.epoch_step
    sizes = batches.sizes()
    micro_batches = iter(loader)
    title, place = f"epoch {state.epoch + 1}/{train.epochs}", {"total": len(sizes), "initial": state.epoch_step}
    with progress(None, title, "step", accelerator, **place) as bar:
        for size in sizes[state.epoch_step :]:
            started = time.perf_counter()
            rate = learning_rate(state.global_step, len(sizes), train.epochs, config.optim)
            for group in learner.optimizer.param_groups:
                group["lr"] = rate
            learner.pending.append(train_step(learner, micro_batches, size, state.global_step, config))
            state.global_step += 1
            state.epoch_step += 1
            state.images_seen += size
            bar.update()
            if state.epoch_step == len(sizes) or state.epoch_step % train.log_every == 0:
                collect_window(learner, state)
                loss, accuracy = np.mean(state.window, axis=0).tolist()
                state.window.clear()
                log(
                    {
                        "train/loss": loss,
                        "train/accuracy": accuracy,
                        "train/lr": rate,
                        "epoch": state.epoch + state.epoch_step / len(sizes),
                        "global_step": state.global_step,
                    }
                )
                bar.set_postfix(loss=f"{loss:.4f}")
            state.train_seconds += time.perf_counter() - started
            if state.epoch_step < len(sizes):
                after_step()
    average_buffers(accelerator, learner.module)
    state.epoch += 1
    state.epoch_step = 0


def train_step(learner: Learner, micro_batches: Iterator[Batch], size: int, global_step: int, config: Config) -> Tensor:
    """One optimizer step over this rank's part of a global batch of `size` images.

    Returns:
        On the device, (2,): this rank's part of the batch's mean loss, and of its share of right answers.
    """
    accelerator, steps = learner.accelerator, config.train.accumulation_steps
    totals = torch.zeros(2, device=accelerator.device)
    for micro_step in range(steps):
        images_BCHW, labels_B = learner.to_device(next(micro_batches))
        torch.manual_seed(
            derived_seed(config.run.seed, Stream.DROPOUT, global_step, micro_step, accelerator.process_index)
        )
        last = micro_step == steps - 1
        with nullcontext() if last else accelerator.no_sync(learner.model):
            logits_BK = learner.model(images_BCHW)
            # Summed and divided by the GLOBAL batch: parts that differ in size still add up to the exact mean.
            loss = nn.functional.cross_entropy(logits_BK, labels_B, reduction="sum") / size
            accelerator.backward(loss * accelerator.num_processes)  # DDP divides by the number of processes
        right = (logits_BK.detach().argmax(dim=1) == labels_B).sum() / size
        totals += torch.stack([loss.detach(), right])
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    return totals


def collect_window(learner: Learner, state: TrainState) -> None:
    """Bring the loss and accuracy of the pending steps from all ranks into the state's window: the one place of the
    loop that waits for the device.

    Raises:
        TrainingError: on every rank alike, when a step's loss is not finite.
    """
    if not learner.pending:
        return
    means = learner.accelerator.reduce(torch.stack(learner.pending), reduction="sum").tolist()
    for number, (loss, _) in enumerate(means, start=1):
        if not math.isfinite(loss):
            raise TrainingError(
                f"the training loss is {loss} at step {state.global_step - len(means) + number}: "
                "lower --optim.lr, or train without fp16 (--mixed_precision bf16 or no)"
            )
    state.window += means
    learner.pending.clear()


@torch.inference_mode()
def evaluate(learner: Learner, loader: DataLoader[Batch], expected_ids: list[int], name: str) -> Predictions:
    """Predict every image of a split exactly once, whatever the number of processes; every rank gets all of them.

    Raises:
        RuntimeError: an image is missing or came twice.
    """
    learner.module.eval()
    known, logits = [torch.empty(0, 2)], [torch.empty(0, 2, device=learner.accelerator.device)]
    for batch in progress(loader, f"evaluating {name}", "batch", learner.accelerator):
        images_BCHW, _ = learner.to_device(batch)
        with learner.accelerator.autocast():
            logits.append(learner.module(images_BCHW).float())
        known.append(torch.stack([batch.ids_B, batch.labels_B], dim=1))
    probabilities_N = torch.cat(logits).cpu().double().softmax(dim=1)[:, 1]
    ids_N, labels_N = torch.cat([part.double() for part in known]).unbind(dim=1)
    table = gather_rows(learner.accelerator, torch.stack([ids_N, probabilities_N, labels_N], dim=1)).numpy()
    table = table[table[:, 0].argsort()]
    ids = table[:, 0].astype(np.int64)
    if not np.array_equal(ids, np.sort(expected_ids)):
        raise RuntimeError(
            f"{name}: {len(ids)} predictions of {len(set(ids.tolist()))} images, not {len(expected_ids)}"
        )
    if not np.isfinite(table).all():
        raise TrainingError(f"{name}: the model's output is not finite: training diverged; lower --optim.lr")
    return Predictions(ids, table[:, 1], table[:, 2].astype(np.int64))


def set_train_mode(model: nn.Module, freeze_batchnorm: bool) -> None:
    """Training mode, with BatchNorm layers held at their statistics if asked."""
    model.train()
    if freeze_batchnorm:
        for layer in model.modules():
            if isinstance(layer, _BatchNorm):
                layer.eval()


def warm_up(learner: Learner, image_size: int) -> None:
    """Two forward and backward passes that change no weight, so that DDP settles its gradient buckets.

    DDP lays out its buckets anew after the first pass, and with 3 or more ranks the layout decides in which order a
    gradient is summed: without this, the first step of a resumed run would not repeat the uninterrupted run's bits.
    """
    if learner.accelerator.num_processes == 1:
        return
    set_train_mode(learner.model, freeze_batchnorm=True)
    images = torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8)
    batch = Batch(torch.arange(2), images, torch.arange(2), IDENTITY.repeat(2, 1, 1))
    for _ in range(2):
        images_BCHW, labels_B = learner.to_device(batch)
        learner.accelerator.backward(nn.functional.cross_entropy(learner.model(images_BCHW), labels_B))
        learner.optimizer.zero_grad(set_to_none=True)


def progress(steps: Any, title: str, unit: str, accelerator: Accelerator, **options: Any) -> Any:
    """A progress bar on the main process, where a terminal shows it."""
    hidden = None if accelerator.is_main_process else True
    return tqdm(steps, title, unit=unit, leave=False, disable=hidden, **options)
