"""The experiment, as data: frozen dataclasses. recipe.py has the sections that decide what is learned. Here are those
that surround them (the run, its checkpoints, how the model is judged, where the curves go), the whole, and what differs
between two.

A new field is one edit: its type, default, range and help stand together. Processes, devices and precision are not
here: they belong to `accelerate launch` and its YAML file.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, cast

from skindist.errors import UserError
from skindist.files import expanded
from skindist.recipe import DataConfig, EarlyStoppingConfig, ModelConfig, OptimConfig, TrainConfig
from skindist.section import Section, setting

VIEWS = 8  # positions of a square image, at most


@dataclass(frozen=True)
class RunConfig(Section):
    """The run: where it writes, its seed, how it resumes."""

    dir: str | None = setting(None, path=True, free=True)
    """Folder of the run; null: runs/<time>-<pid>-<model>."""
    seed: int = setting(0, lambda n: n >= 0, "0 or more")
    """Seed of all that is drawn: split, first weights, order, augmentation, dropout, intervals, stress test."""
    resume: Literal["auto", "never", "must"] = setting("auto", free=True)
    """auto: continue the run in run.dir if there is one; never: refuse then; must: refuse where there is none."""
    timeout_minutes: float = setting(10.0, lambda x: 0.5 <= x <= 10_000, "from 0.5 to 10000", free=True)
    """Time after which processes that wait for another one in training give up, and the run ends."""


@dataclass(frozen=True)
class CheckpointConfig(Section):
    """Checkpoints; one is written at the end of each epoch in any case."""

    every_steps: int | None = setting(None, lambda n: n >= 1, "1 or more, or null")
    """Optimizer steps between two checkpoints within an epoch; null: none by steps."""
    every_minutes: float | None = setting(10.0, lambda x: x > 0, "above 0, or null")
    """Minutes after which the next step is saved; null: none by time."""
    keep: int = setting(2, lambda n: n >= 2, "2 or more, in case the newest is damaged")
    """Newest checkpoints to keep, beside the best epoch's."""


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """What the finished model is judged by; training does not depend on it."""

    sensitivity: float = setting(0.95, lambda share: 0 < share <= 1, "above 0 and at most 1")
    """Share of the malignant validation images that the operating threshold must find."""
    prevalence: float | None = setting(None, lambda share: 0 < share < 1, "above 0 and below 1, or null")
    """Share of malignant images at which PPV, NPV and biopsies are stated; null: that of each set."""
    views: int = setting(VIEWS, lambda n: 1 <= n <= VIEWS, f"from 1 to {VIEWS}")
    """Positions (turned and mirrored) in which the finished model sees each image; its logit is their mean. Saved with
    the model; timm and transformers see an image in one. While it trains, an epoch is judged by one."""
    stress: bool = False
    """Predict disturbed test images, too (ink, hair, blur, ...), and say what that changes: nine times the time that
    testing takes."""
    explain: int = setting(4, lambda n: 0 <= n <= 100, "from 0 to 100")
    """Pictures of each kind of error, with a heat map of what the model goes by, in RUN/errors; 0: none."""


@dataclass(frozen=True)
class TrackingConfig(Section):
    """Where the curves go; metrics.jsonl in the run folder is written in any case."""

    to: str = "wandb"
    """Trackers, with commas between them: wandb, tensorboard, trackio, mlflow, or another that Accelerate knows."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: what WANDB_MODE says; else online with an API key, and offline without one."""
    project: str = "skindist"
    """Project in W&B, trackio and MLflow."""
    name: str | None = None
    """Name of the run there; null: <model>-<W&B id>, as the run folder's name may name people."""
    images: bool = False
    """Send the 16 test images with the largest error to W&B; false: no image leaves."""

    @property
    def names(self) -> list[str]:
        """The trackers, without W&B if it is disabled."""
        named = [name.strip() for name in self.to.split(",")]
        return [name for name in named if name and not (name == "wandb" and self.wandb == "disabled")]


@dataclass(frozen=True)
class Config:
    """One run. The defaults are the reference recipe."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata={"free": True})
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig, metadata={"free": True})
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata={"free": True})

    def __post_init__(self) -> None:
        for section in fields(self):
            value, kind = getattr(self, section.name), cast(type[Section], section.type)
            if not isinstance(value, kind):
                raise UserError(f"{section.name}: must be {kind.__name__}(...), not {value!r}")
        if self.data.fold is not None and self.data.fold >= self.data.folds:
            raise UserError(f"--data.fold {self.data.fold}: must be below --data.folds {self.data.folds}")
        if self.data.fold is None and self.data.folds != DataConfig.folds:
            raise UserError(
                f"--data.folds {self.data.folds}: name the fold to validate on, too (--data.fold 0); skindist folds "
                "trains all of them"
            )
        if self.optim.warmup_epochs > self.train.epochs:
            raise self.optim.out_of_range("warmup_epochs")
        if (self.early_stopping.first_epoch or 0) > self.train.epochs:
            raise UserError(
                f"--early_stopping.first_epoch {self.early_stopping.first_epoch}: must be at most --train.epochs "
                f"{self.train.epochs}, or no epoch could be the best"
            )
        if self.train.freeze_backbone and not self.model.starts_trained:
            raise UserError(
                "--train.freeze_backbone true: random weights would be kept; start from trained ones with "
                "--model.pretrained true or --model.weights FILE"
            )

    @property
    def keeps_statistics(self) -> bool:
        """Whether BatchNorm keeps the statistics of the starting weights."""
        asked = self.train.freeze_batchnorm
        if asked is None:
            asked = self.model.starts_trained and not self.train.sync_batchnorm
        return asked or self.train.freeze_backbone

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> "Config":
        """What `to_dict` gave; a key that is missing has its default."""
        default = cls()
        given = {
            section: {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}
            for section, keys in values.items()
        }
        return replace(default, **{name: replace(getattr(default, name), **keys) for name, keys in given.items()})

    def with_absolute_paths(self) -> "Config":
        """The same, to be saved: it means the same from any folder."""
        config = self
        for section, key in marked("path"):
            values = getattr(config, section)
            if path := getattr(values, key):
                absolute = os.path.realpath(expanded(path))
                config = replace(config, **{section: replace(values, **{key: absolute})})
        return config

    def without_paths(self) -> dict[str, dict[str, Any]]:
        """The same without local paths: these may name people, and mean nothing elsewhere."""
        values = self.to_dict()
        for section, key in marked("path"):
            values[section].pop(key)
        return values

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by section, as config.yaml holds them."""
        return {name: section.to_dict() for name, section in vars(self).items()}


def marked(fact: Literal["path", "free"]) -> list[tuple[str, str]]:
    """Section and key of each field of which this is said, there or of its whole section."""
    return [
        (section.name, key.name)
        for section in fields(Config)
        for key in fields(getattr(Config(), section.name))
        if key.metadata.get(fact) or section.metadata.get(fact)
    ]


def in_common(configs: Sequence[Config]) -> dict[str, dict[str, Any]]:
    """By section, the settings that have one value in all of these."""
    first, *others = [config.to_dict() for config in configs]
    return {
        name: {key: value for key, value in values.items() if all(other[name][key] == value for other in others)}
        for name, values in first.items()
    }


def changes(saved: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """What differs between a saved config and this one, both by section, as "key saved -> new"; free fields may."""
    free, found = marked("free"), []
    for section, values in config.items():
        for key, value in values.items():
            then = saved.get(section, {})
            if (section, key) not in free and (key not in then or then[key] != value):
                old = repr(then[key]) if key in then else "(unknown to the skindist that began it)"
                found.append(f"{section}.{key} {old} -> {value!r}")
    return found
