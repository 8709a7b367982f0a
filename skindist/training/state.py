"""How far a run has come: the one small object that a checkpoint holds beside weights and optimizer."""

from dataclasses import dataclass, field


@dataclass
class TrainState:
    """Counted in finished epochs, optimizer steps (of the run, and of the epoch in progress) and training images.

    `window` holds the loss and accuracy of each step since the last point of the curve, `skipped` the steps that were
    left out because they were not finite. All are plain JSON values.
    """

    epoch: int = 0
    global_step: int = 0
    epoch_step: int = 0
    window: list[list[float]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    images_seen: int = 0
    train_seconds: float = 0.0
    best_step: int = 0
