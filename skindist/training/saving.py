"""The state of a run on disk and back: written in the background, restored only where it means the same.

Training waits for a copy of the tensors, not for the disk. The next save, and the end of the run, wait for the last.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from skindist.config import Config, changes
from skindist.data.split import Row, fingerprint
from skindist.distributed import buffers
from skindist.distributed.group import decide
from skindist.early_stopping import EarlyStopping
from skindist.errors import UserError
from skindist.optim import load_optimizer
from skindist.run.checkpoint import (
    Checkpoint,
    copied,
    load_checkpoint,
    newest_intact,
    prune,
    save_checkpoint,
    step_folder,
)
from skindist.run.lock import RunLock
from skindist.training.engine import Learner, collect_window
from skindist.training.state import TrainState
from skindist.training.tracking import rewind

log = logging.getLogger("skindist")


class Saver:
    """Saves a run and restores it. Call its methods on every rank, but for `load`; it is left when all is on disk."""

    def __init__(self, run: Path, learner: Learner, config: Config, rows: list[Row], lock: RunLock) -> None:
        self.run, self.learner, self.config, self.lock = run, learner, config, lock
        self.checkpoints = run / "checkpoints"
        self.meaning: dict[str, Any] = {"config": config.without_paths(), "data": fingerprint(rows)}
        self.place = place(learner)
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._written: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_writing()
        self._writer.shutdown()

    def save(self, state: TrainState, stopping: EarlyStopping, rank_buffers: Tensor | None = None) -> None:
        """Write a checkpoint of this step, then prune the old ones; the disk is waited for later.

        Args:
            rank_buffers: each rank's BatchNorm statistics (ranks, values), if they are not those of now.

        Raises:
            TrainingError: on every rank, when the disk refused the checkpoint before this one, or another process has
                taken the run over.
        """
        accelerator = self.learner.accelerator
        collect_window(self.learner, state, self.config.train)
        if rank_buffers is None:
            rank_buffers = buffers.gather_buffers(accelerator, self.learner.module)
        values = {
            "train": asdict(state),
            "early_stopping": stopping.state_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
            **self.meaning,
            "place": self.place,
        }
        decide(accelerator, self._begin_writing, values, rank_buffers)

    def _begin_writing(self, values: dict[str, Any], rank_buffers: Tensor) -> None:
        self.lock.check()
        self._finish_writing()
        weights, optimizer = self.learner.module.state_dict(), self.learner.optimizer.state_dict()
        checkpoint = copied(Checkpoint(weights, optimizer, values, rank_buffers))
        folder, best_step = step_folder(self.checkpoints, values["train"]["global_step"]), values["train"]["best_step"]
        best = step_folder(self.checkpoints, best_step) if best_step else None

        def write() -> None:
            save_checkpoint(folder, checkpoint)
            prune(folder, best, self.config.checkpoint.keep)

        self._written = self._writer.submit(write)

    def _finish_writing(self) -> None:
        written, self._written = self._written, None
        if written:
            written.result()

    def load(self, global_step: int) -> Checkpoint:
        """The checkpoint of a step, once all are on disk. Call it on the main process only."""
        self._finish_writing()
        return load_checkpoint(step_folder(self.checkpoints, global_step))

    def restore(self) -> tuple[TrainState, EarlyStopping]:
        """Start afresh, or go on from the newest intact checkpoint, which the main process reads for all.

        Raises:
            UserError: on every rank, when the checkpoint was made with other data, config or precision, or
                `run.resume` demands one and there is none.
        """
        asked, learner = self.config.early_stopping, self.learner
        state, stopping = TrainState(), EarlyStopping(asked.patience, asked.min_delta, asked.mode)
        checkpoint = decide(learner.accelerator, self._read, patient=True)
        if checkpoint is None:
            return state, stopping
        learner.module.load_state_dict(checkpoint.weights)
        load_optimizer(learner.optimizer, checkpoint.optimizer)
        buffers.restore_buffers(learner.accelerator, learner.module, checkpoint.rank_buffers)
        if learner.accelerator.scaler and checkpoint.state["scaler"]:
            learner.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        stopping.load_state_dict(checkpoint.state["early_stopping"])
        state = TrainState(**checkpoint.state["train"])
        within = f", {state.epoch_step} steps into the next" if state.epoch_step else ""
        log.info(f"resumed after epoch {state.epoch}{within}, step {state.global_step}")
        return state, stopping

    def _read(self) -> Checkpoint | None:
        folder = newest_intact(self.checkpoints)
        if folder is None and self.config.run.resume == "must":
            raise UserError(f"--run.resume must: no intact checkpoint in {self.run}")
        checkpoint = load_checkpoint(folder) if folder else None
        if checkpoint:
            self._refuse_another_meaning(checkpoint.state)
        state = checkpoint.state["train"] if checkpoint else {"global_step": 0, "epoch": 0}
        rewind(self.run / "metrics.jsonl", state["global_step"], state["epoch"])
        return checkpoint

    def _refuse_another_meaning(self, saved: Mapping[str, Any]) -> None:
        """Refuse what would make another experiment of the run; say what may change its last bits."""
        then, now = saved["place"], self.place
        differences = changes(saved["config"], self.meaning["config"])
        if saved["data"] != self.meaning["data"]:
            differences.append("other images, labels or split than in split.csv")
        if then["mixed_precision"] != now["mixed_precision"]:
            differences.append(f"--mixed_precision {then['mixed_precision']} -> {now['mixed_precision']}")
        if differences:
            raise UserError(
                f"the checkpoints in {self.run} belong to another run: {'; '.join(differences)}. "
                "Give what they were made with, or another --run.dir"
            )
        if moved := [f"{what} {then[what]} -> {now[what]}" for what in now if then[what] != now[what]]:
            log.warning(
                f"resumed elsewhere ({', '.join(moved)}): every batch holds the same images, but sums may round "
                "differently, and BatchNorm sees the images of one process at a time"
            )


def place(learner: Learner) -> dict[str, Any]:
    """What may change a run's bits although its config is the same."""
    accelerator = learner.accelerator
    return {
        "mixed_precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        **{name: version(name) for name in ("skindist", "torch", "timm")},
    }
