"""How far a run has come: the one small object that a checkpoint holds beside weights and optimizer."""

from dataclasses import dataclass


@dataclass
class TrainState:
    """Counted in finished epochs, optimizer steps and training images; plain JSON values."""

    epoch: int = 0
    global_step: int = 0
    images_seen: int = 0
    train_seconds: float = 0.0
    best_step: int = 0
    wandb_id: str | None = None
