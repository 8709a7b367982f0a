"""Where the curves go: the run's own record is the truth, and W&B and others get them as far as they can."""

import logging
from dataclasses import dataclass

from accelerate import Accelerator

from skindist.report.words import describe_epoch
from skindist.run import record
from skindist.run.folder import Run
from skindist.run.record import Event
from skindist.tracking.other_trackers import OtherTrackers
from skindist.tracking.wandb_sink import WandbSink
from skindist.training.state import TrainState

log = logging.getLogger("skindist")


@dataclass(frozen=True)
class Tracker:
    """Takes the events of all processes; those of the main one count."""

    accelerator: Accelerator
    run: Run
    wandb: WandbSink
    others: OtherTrackers

    def log(self, event: Event) -> None:
        """Append an event to the record, and offer it to the trackers."""
        if self.accelerator.is_main_process:
            record.append(self.run.record, event)
            self.wandb.log(event)
            self.others.log(event)

    def log_epoch(self, state: TrainState, metrics: dict[str, float], first_epoch: int) -> None:
        """Log the validation metrics of a finished epoch and say them in one line. Epochs before the first one do not
        count for early stopping."""
        speed = state.images_per_second
        values = {f"val/{name}": value for name, value in metrics.items()}
        self.log({**values, "train/images_per_second": speed, "epoch": state.epoch, "global_step": state.global_step})
        is_best, counts = state.best_step == state.global_step, state.epoch >= first_epoch
        log.info(describe_epoch(state.epoch, metrics, speed, is_best, counts))
