"""The state of a run to disk, in the background: training waits for a copy of the tensors, not for the disk.

The next save, and the end of the run, wait for the last.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from skindist.config import Config
from skindist.data.split import Row, fingerprint
from skindist.determinism import repeats, tf32
from skindist.distributed import buffers
from skindist.distributed.group import decide
from skindist.early_stopping import EarlyStopping
from skindist.run.checkpoint import Checkpoint, copied, load_checkpoint, prune, save_checkpoint, step_folder
from skindist.run.folder import Run
from skindist.run.lock import RunLock
from skindist.training.engine import collect_window
from skindist.training.learner import Learner
from skindist.training.state import TrainState

AVERAGE = "average."  # before the names of averaged weights


class Saver(AbstractContextManager["Saver"]):
    """Saves a run while it is entered; what it saves is on disk when it is left."""

    def __init__(self, run: Run, learner: Learner, config: Config, rows: list[Row], lock: RunLock) -> None:
        self.run, self.learner, self.config, self.lock = run, learner, config, lock
        self.identity = experiment(config, rows) | {"environment": environment(learner)}
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._written: Future[None] | None = None

    def __exit__(self, *_: object) -> None:
        self._finish_writing()
        self._writer.shutdown()

    def save(self, state: TrainState, stopping: EarlyStopping) -> None:
        """Write a checkpoint of this step, then prune the old ones; the disk is waited for later.

        Call it on every rank.

        Raises:
            TrainingError: on every rank, when the disk refused the checkpoint before this one, or another process has
                taken the run over.
        """
        accelerator = self.learner.accelerator
        collect_window(self.learner, state, self.config.train)
        rank_buffers = self.learner.unaveraged if state.epoch_step else None
        if rank_buffers is None:
            rank_buffers = buffers.gather_buffers(self.learner.models)
        values = {
            "train": asdict(state),
            "early_stopping": stopping.state_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
            **self.identity,
        }
        decide(accelerator, self._begin_writing, values, rank_buffers)

    def _begin_writing(self, values: dict[str, Any], rank_buffers: Tensor) -> None:
        self.lock.check()
        self._finish_writing()
        checkpoint = copied(
            Checkpoint(all_weights(self.learner), self.learner.optimizer.state_dict(), values, rank_buffers)
        )
        step, best_step = values["train"]["global_step"], values["train"]["best_step"]
        folder = step_folder(self.run.checkpoints, step)
        best = step_folder(self.run.checkpoints, best_step) if best_step else None

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
        return load_checkpoint(step_folder(self.run.checkpoints, global_step))


def all_weights(learner: Learner) -> dict[str, Tensor]:
    """What a checkpoint holds: the weights by name, and their average, if there is one, as "average.<name>"."""
    average = {} if learner.average is None else learner.average.module.state_dict()
    return learner.module.state_dict() | {f"{AVERAGE}{name}": tensor for name, tensor in average.items()}


def split_weights(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a checkpoint, and their average, both by name; the second is empty where there is none."""
    average = {name.removeprefix(AVERAGE): tensor for name, tensor in weights.items() if name.startswith(AVERAGE)}
    return {name: tensor for name, tensor in weights.items() if not name.startswith(AVERAGE)}, average


def experiment(config: Config, rows: list[Row]) -> dict[str, Any]:
    """What a checkpoint is of: another config or other images are another experiment."""
    return {"config": config.without_paths(), "data": fingerprint(rows)}


def environment(learner: Learner) -> dict[str, Any]:
    """What may change a run's bits although its config is the same."""
    accelerator = learner.accelerator
    return {
        "mixed_precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "gpu": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else None,
        "deterministic": repeats(accelerator.device),
        "tf32": tf32(accelerator.device),
        **{name: version(name) for name in ("skindist", "torch", "timm")},
    }
