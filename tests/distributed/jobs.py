"""What the ranks of a test do; they return plain values, and the tests compare those between ranks and group sizes."""

import hashlib
import os
import signal
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from torch import nn

from skindist.cli import show_log, train
from skindist.config import CheckpointConfig, Config
from skindist.data.loading import Batch
from skindist.distributed import buffers, group
from skindist.errors import Stopped, TrainingError, UserError
from skindist.parsing import parse_config
from skindist.run.folder import Run
from skindist.run.lock import RunLock
from skindist.run.opening import prepare_data
from skindist.training import engine, interruption, trainer
from skindist.training.engine import Learner, evaluate, set_train_mode, train_step
from skindist.training.interruption import Interruptions
from skindist.training.rehearsal import warm_up
from skindist.training.saving import Saver
from tests.conftest import TINY


def tiny_config(data: Path, run: Path, *flags: str) -> Config:
    """The config of a run that takes seconds."""
    return parse_config([*TINY, f"--data.path={data}", f"--run.dir={run}", "--tracking.wandb=disabled", *flags])


def observe(data: Path, run: Path, *flags: str) -> dict[str, Any]:
    """What this rank loads in two epochs, predicts with the first weights, and has learnt after 5 steps."""
    config = tiny_config(data, run, *flags)
    accelerator = group.join_group()
    torch.set_num_threads(1)  # the number of threads, like the kind of device, decides the last bit of a sum
    prepared = group.decide(accelerator, prepare_data, config, Run(run))
    learner = trainer.build_learner(accelerator, config)
    loaders = trainer.build_loaders(learner, config, prepared)
    batches = loaders.train.batches
    warm_up(learner, config.data.image_size)
    torch.manual_seed(1)
    nn.init.normal_(head_weight(learner.module))  # a zero head would predict the same for every image

    loaded = []
    for epoch in range(2):
        loaded.append([_fingerprints(batch) for batch in loaders.train.start(epoch)[0]])
    before = evaluate(learner, loaders.val)

    set_train_mode(learner.model, config.train.freeze_batchnorm)
    losses: list[float] = []
    micro_batches, sizes = loaders.train.start(0)
    for step, size in enumerate((sizes * 2)[:5]):
        if step == len(sizes):
            micro_batches, _ = loaders.train.start(1)
        mine = list(islice(micro_batches, batches.accumulation_steps))
        losses.append(accelerator.reduce(train_step(learner, mine, size, step, config))[0].item())
    buffers.average_buffers(accelerator, learner.module)
    after = evaluate(learner, loaders.val)
    result = {
        "loaded": loaded,
        "micro_batches_per_step": batches.accumulation_steps,
        "train_ids": batches.ids.tolist(),
        "first_logits": before.logits.tolist(),
        "probabilities": after.probabilities.tolist(),
        "losses": losses,
        "weights": {name: tensor.numpy() for name, tensor in learner.module.state_dict().items()},
        "backend": str(accelerator.distributed_type),
    }
    group.leave_group(accelerator)
    return result


def prepare(data: Path, run: Path, *flags: str) -> dict[str, Any]:
    """What this rank knows of a folder: the rows, what was left out, and the pixels of every image."""
    config = tiny_config(data, run, *flags)
    accelerator = group.join_group()
    prepared = group.decide(accelerator, prepare_data, config, Run(run))
    learner = trainer.build_learner(accelerator, config)
    images: Any = trainer.build_loaders(learner, config, prepared).val.loader.dataset
    images = images.__getitems__([(0, sample_id) for sample_id in range(len(prepared.rows))])
    pixels = hashlib.sha256(images.images_BCHW.numpy().tobytes()).hexdigest()
    group.leave_group(accelerator)
    return {"rows": prepared.rows, "quarantine": prepared.quarantine, "pixels": pixels}


def head_weight(module: nn.Module) -> torch.Tensor:
    """The weight of a timm model's classifier."""
    head: Any = module
    weight: torch.Tensor = head.get_classifier().weight
    return weight


def _fingerprints(batch: Batch) -> list[tuple[int, str]]:
    looks = zip(batch.images_BCHW, batch.colours_B2C, strict=True)
    pixels = [hashlib.sha256(image.numpy().tobytes() + colour.numpy().tobytes()).hexdigest() for image, colour in looks]
    return list(zip(batch.ids_B.tolist(), pixels, strict=True))


def fit(data: Path, run: Path, *flags: str) -> dict[str, Any]:
    """A whole run."""
    return trainer.fit(tiny_config(data, run, *flags))


def fit_aloud(data: Path, run: Path, *flags: str) -> dict[str, Any]:
    """A whole run, which says what it does."""
    show_log()
    return fit(data, run, *flags)


def fit_until(step: int, data: Path, run: Path, *flags: str) -> list[list[int]]:
    """A run that dies on every rank after the checkpoint of `step`; returns the ids of the batches it trained on."""
    return _fit(data, run, flags, dies_after=step)


def fit_and_watch(data: Path, run: Path, *flags: str) -> list[list[int]]:
    """A whole run; returns the ids of each batch that this rank trained on."""
    return _fit(data, run, flags, dies_after=None)


def _fit(data: Path, run: Path, flags: tuple[str, ...], dies_after: int | None) -> list[list[int]]:
    original_save, original_step, seen = Saver.save, engine.train_step, []

    def save_and_die(self: Any, state: Any, *args: Any) -> None:
        original_save(self, state, *args)
        if state.global_step == dies_after:
            raise TrainingError("died on purpose")

    def watch(learner: Any, micro_batches: Any, *args: Any) -> Any:
        seen.append([sample_id for batch in micro_batches for sample_id in batch.ids_B.tolist()])
        return original_step(learner, micro_batches, *args)

    setattr(Saver, "save", save_and_die)  # noqa: B010 (mypy lets no function be replaced)
    setattr(engine, "train_step", watch)  # noqa: B010
    try:
        trainer.fit(tiny_config(data, run, *flags))
    except TrainingError:
        return seen
    assert dies_after is None, "the run ended before it could die"
    return seen


def steps_saved(steps: int, seconds_a_step: list[float], signal_at: dict[int, int]) -> list[Any]:
    """The steps after which this rank saves when it is to do so every minute, by a clock of its own; it may send
    itself SIGTERM at a step. The last entry is the exit status that ends it."""
    accelerator = group.join_group()
    rank, now, saved = accelerator.process_index, [0.0], []
    setattr(interruption, "time", SimpleNamespace(monotonic=lambda: now[0]))  # noqa: B010
    with Interruptions(Config(checkpoint=CheckpointConfig(every_minutes=1.0)), accelerator, RunLock()) as interruptions:
        for step in range(1, steps + 1):
            now[0] += seconds_a_step[rank]
            if signal_at.get(rank) == step:
                signal.raise_signal(signal.SIGTERM)
            if interruptions.should_save(step):
                saved.append(step)
            try:
                interruptions.stop_if_agreed()
            except Stopped as stop:
                return [*saved, stop.status]
    return [*saved, 0]


def status_after_a_signal_in_evaluation(data: Path, run: Path, *flags: str) -> int:
    """The exit status of a run that rank 1 (or the only one) sends SIGTERM when it evaluates for the second time."""
    original, evaluations, before = Learner.to_device, [0], [True]

    def to_device(self: Any, batch: Batch) -> Any:
        evaluations[0] += before[0] and not self.module.training
        before[0] = self.module.training
        if evaluations[0] == 2 and os.environ.get("RANK", "1") == "1":
            evaluations[0] += 1
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch)

    setattr(Learner, "to_device", to_device)  # noqa: B010
    return train([*TINY, f"--data.path={data}", f"--run.dir={run}", "--tracking.wandb=disabled", *flags])


def status_in_bf16(flags: list[str]) -> int:
    """The exit status of a launch that asks for bf16."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    return train(flags)


def fit_in_little_memory(data: Path, run: Path, *flags: str) -> dict[str, Any]:
    """A whole run where rank 1 alone has room for 2 images; returns the largest micro-batch that this rank trained on,
    the results, and what the run's config says."""
    original, room = Learner.to_device, 2 if os.environ["RANK"] == "1" else 100
    seen = [0]

    def to_device(self: Any, batch: Batch) -> Any:
        if self.module.training:
            if len(batch.ids_B) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            seen.append(len(batch.ids_B))
        return original(self, batch)

    setattr(Learner, "to_device", to_device)  # noqa: B010
    results = fit(data, run, *flags)
    saved = yaml.safe_load((run / "config.yaml").read_text())["train"]["micro_batch_size"]
    return {"largest": max(seen), "results": results, "saved": saved}


def one_decision(values: list[float]) -> list[Any]:
    """Each rank has an opinion; the main process's counts, an error of its is everyone's.

    Returns:
        What was decided, what `on_main` gave to this rank, and what each of the two refused.
    """
    accelerator = group.join_group()
    mine = values[accelerator.process_index]
    decided = group.decide(accelerator, lambda: mine)

    def refuse() -> None:
        raise UserError("no such folder")

    kept = group.on_main(accelerator, lambda: mine)
    refusals = []
    for run_there in (group.decide, group.on_main):
        try:
            run_there(accelerator, refuse)
        except UserError as error:
            refusals.append(str(error))
    return [decided, kept, *refusals]
