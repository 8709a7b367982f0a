"""When to stop: a pure tracker, floats in and a decision out. It knows nothing of ranks, tensors or files."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass
class EarlyStopping:
    """Stop after `patience` epochs in a row in which the monitored value did not improve by more than `min_delta`.

    `best` is the value of the last improvement, so many small steps below `min_delta` count once they add up. Epochs
    before `first_epoch` do not count: they cannot be the best, and use up no patience.
    """

    patience: int = 2
    min_delta: float = 0.001
    mode: Literal["min", "max"] = "min"
    first_epoch: int = 1
    best: float | None = None
    best_epoch: int | None = None
    epochs_without_improvement: int = 0

    def update(self, value: float, epoch: int) -> bool:
        """Take the value of one finished epoch; return whether it is the new best.

        Raises:
            ValueError: the value is NaN, which is neither better nor worse than anything.
        """
        if math.isnan(value):
            raise ValueError(f"the monitored value of epoch {epoch} is NaN")
        if epoch < self.first_epoch:
            return False
        gain = math.inf if self.best is None else (self.best - value if self.mode == "min" else value - self.best)
        if gain > self.min_delta:
            self.best, self.best_epoch, self.epochs_without_improvement = value, epoch, 0
            return True
        self.epochs_without_improvement += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.epochs_without_improvement >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values from which `load_state_dict` goes on."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state, its settings included.

        Raises:
            KeyError: the state lacks a field.
        """
        for key in asdict(self):
            setattr(self, key, state[key])
