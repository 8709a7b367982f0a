"""skindist: distributed fine-tuning that tells malignant from benign skin lesions."""

from importlib import import_module
from typing import Any

_HOME = {
    "Config": "skindist.config",
    "DataConfig": "skindist.config",
    "EarlyStopping": "skindist.early_stopping",
    "EarlyStoppingConfig": "skindist.config",
    "ModelConfig": "skindist.config",
    "OptimConfig": "skindist.config",
    "RunConfig": "skindist.config",
    "TrackingConfig": "skindist.config",
    "TrainConfig": "skindist.config",
    "TrainingError": "skindist.errors",
    "UserError": "skindist.errors",
    "build_model": "skindist.model",
    "evaluate": "skindist.training.engine",
    "fit": "skindist.training.trainer",
    "train_one_epoch": "skindist.training.engine",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import skindist` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'skindist' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
