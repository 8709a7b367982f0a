"""How far a run has come: the one small object that a checkpoint holds beside weights and optimizer."""

from dataclasses import dataclass, field


@dataclass
class TrainState:
    """Counted in finished epochs, optimizer steps (of the run, and of the epoch in progress) and training images.

    `window` holds the loss and accuracy of each step since the last point of the curve, `skipped` the steps that were
    left out because they were not finite, `overflowed` those that fp16's gradient scaler left out while it looked for
    its scale. `timed_images` and `timed_seconds` leave out the first steps of a process, which are slow. All are plain
    JSON values.
    """

    epoch: int = 0
    global_step: int = 0
    epoch_step: int = 0
    window: list[list[float]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    overflowed: list[int] = field(default_factory=list)
    images_seen: int = 0
    train_seconds: float = 0.0
    best_step: int = 0
    timed_images: int = 0
    timed_seconds: float = 0.0

    def finish_epoch(self) -> None:
        """The epoch in progress is trained and judged."""
        self.epoch, self.epoch_step = self.epoch + 1, 0

    def count_time(self, seconds: float, timed_images: int) -> None:
        """Add the time of a step, and of how many images it tells the speed."""
        self.train_seconds += seconds
        if timed_images:
            self.timed_images += timed_images
            self.timed_seconds += seconds

    @property
    def images_per_second(self) -> float | None:
        """Training speed once it has settled; of all steps where there were only a few; None without any."""
        if self.timed_seconds:
            return self.timed_images / self.timed_seconds
        return self.images_seen / self.train_seconds if self.train_seconds else None
