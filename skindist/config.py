"""The experiment, as data: frozen dataclasses whose defaults are the reference recipe.

Values come from these defaults, then `--config FILE.yaml`, then `--section.key value`. Processes, devices and precision
are not here: they belong to `accelerate launch` and its YAML file. This module imports no framework, so that `--help`
answers at once.
"""

import argparse
import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import jsonargparse

from skindist.errors import UserError

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

Monitor = Literal[
    "val/loss", "val/accuracy", "val/balanced_accuracy", "val/auroc", "val/sensitivity", "val/specificity"
]


@dataclass(frozen=True)
class DataConfig:
    """Data: a folder with the class folders benign/ and malignant/, or the same under train/, val/ and test/."""

    path: str | None = None
    """Folder of images; a folder already split into train/, val/ and test/ keeps its split."""
    metadata: str | None = None
    """CSV file with one row an image, found by file name or ISIC id: patient_id, lesion_id, age, sex, site, ..."""
    on_bad: Literal["quarantine", "error"] = "quarantine"
    """Images that cannot be used: leave them out and list them in quarantine.csv, or refuse to start."""
    max_bad: float = 0.05
    """Share of bad images above which the run is refused in any case."""
    leaks: Literal["warn", "error", "drop-from-train"] = "warn"
    """Copies, lesions or patients on two sides of a given split: say so, refuse, or train without them."""
    cache_dir: str | None = None
    """Folder of prepared pixels; null: $SKINDIST_CACHE, else ~/.cache/skindist. `skindist clear-cache` empties it."""
    fractions: tuple[float, float, float] = (0.90, 0.05, 0.05)
    """Shares of train, validation and test, for a folder that is not split; they add up to 1."""
    image_size: int = 224
    """Side in pixels of the square that the model sees."""
    augment: bool = True
    """Random crop, flips and colour jitter on training images."""
    num_workers: int | None = None
    """Loader processes for each training process; null: 0 on CPU, else up to 8 by the cores there are."""


@dataclass(frozen=True)
class ModelConfig:
    """Model: any timm image model, with a new two-class head."""

    name: str = "efficientnet_b0"
    """timm model name."""
    pretrained: bool = True
    """Start from timm's pretrained weights (Hugging Face cache or download); false: random weights."""
    weights: str | None = None
    """Start from this local .safetensors or .pth file instead; every backbone key must match."""
    drop_rate: float = 0.0
    """Dropout before the head."""
    drop_path_rate: float = 0.0
    """Stochastic depth."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer: Adadelta as in the reference recipe, or any other that timm or torch knows by name."""

    name: str = "adadelta"
    """Optimizer name, as in timm.optim.list_optimizers()."""
    lr: float = 0.01
    """Learning rate at its peak."""
    rho: float = 0.9
    """Adadelta's decay of the squared averages."""
    eps: float = 1e-6
    """Term added for numerical stability, for the optimizers that have one."""
    weight_decay: float = 0.0
    """Weight decay (not applied to biases and normalisation layers)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up: held, or cosine to zero at the last step of train.epochs."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from zero."""


@dataclass(frozen=True)
class TrainConfig:
    """Training loop."""

    epochs: int = 10
    """Epochs at most."""
    batch_size: int = 32
    """GLOBAL batch of one optimizer step: it is split over processes."""
    micro_batch_size: int | Literal["auto"] | None = None
    """Images that one process holds at a time: its part of the batch is accumulated from as many passes as that
    takes. null: the whole part at once; auto: the largest number that fits into memory."""
    eval_batch_size: int = 64
    """Images in one evaluation batch on one process; memory and speed only."""
    channels_last: bool = True
    """Keep images and weights in channels-last memory order: faster convolutions."""
    freeze_batchnorm: bool = False
    """Keep BatchNorm statistics as they are in the starting weights."""
    non_finite: Literal["error", "skip"] = "error"
    """A step whose loss or gradient is NaN or infinite: end the run, or go on without that step."""
    max_skipped: int = 10
    """Steps that `non_finite: skip` may leave out before it ends the run all the same."""
    log_every: int = 10
    """Optimizer steps between two logged points of the training curves."""


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """Early stopping; the best epoch's weights are tested and saved."""

    patience: int = 2
    """Epochs in a row without improvement after which training stops."""
    min_delta: float = 0.001
    """Smallest change that counts as an improvement."""
    monitor: Monitor = "val/loss"
    """Value to watch: the loss should fall, every other one should rise."""

    @property
    def mode(self) -> Literal["min", "max"]:
        """The direction in which the monitored value improves."""
        return "min" if self.metric == "loss" else "max"

    @property
    def metric(self) -> str:
        """The monitored metric's own name, without the split."""
        return self.monitor.removeprefix("val/")


@dataclass(frozen=True)
class RunConfig:
    """The run: where it writes, its seed, how it resumes."""

    dir: str | None = None
    """Folder of the run; null: runs/<time>-<model>."""
    seed: int = 0
    """Seed of the split, the order of images, the augmentation and dropout."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: continue the run in run.dir if there is one; never: refuse then; must: refuse where there is none."""
    timeout_minutes: float = 10.0
    """Time after which processes that wait for another one in training give up, and the run ends."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints; one is written at the end of each epoch in any case."""

    every_steps: int | None = None
    """Optimizer steps between two checkpoints within an epoch; null: none by steps."""
    every_minutes: float | None = 10.0
    """Minutes after which the next step is saved; null: none by time."""
    keep: int = 2
    """Newest checkpoints to keep, beside the best epoch's."""


@dataclass(frozen=True)
class TrackingConfig:
    """Weights & Biases; metrics.jsonl in the run folder is written in any case."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online with an API key, else offline."""
    project: str = "skindist"
    """W&B project."""
    name: str | None = None
    """Name of the run in W&B; null: <model>-<W&B id>, as the run folder's name may name people."""
    images: bool = False
    """Send the 16 test images with the largest error to W&B; false: no image leaves."""


PATHS = (
    ("data", "path"), ("data", "metadata"), ("data", "cache_dir"), ("model", "weights"), ("run", "dir")
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """One run. The defaults are the reference recipe."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def with_absolute_paths(self) -> "Config":
        """The same with absolute paths, so that the saved one means the same from any folder."""

        def absolute(path: str | None) -> str | None:
            return path and str(Path(path).expanduser().resolve())

        return replace(
            self,
            data=replace(
                self.data,
                path=absolute(self.data.path),
                metadata=absolute(self.data.metadata),
                cache_dir=absolute(self.data.cache_dir),
            ),
            model=replace(self.model, weights=absolute(self.model.weights)),
            run=replace(self.run, dir=absolute(self.run.dir)),
        )

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, Any]]) -> "Config":
        """What `to_dict` gave; a key that is missing has its default."""
        given = {
            section: {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}
            for section, keys in values.items()
        }
        return cls(**{part.name: part.default_factory(**given.get(part.name, {})) for part in fields(cls)})  # type: ignore[operator]

    def without_paths(self) -> dict[str, dict[str, Any]]:
        """The same without local paths: these may name people, and mean nothing elsewhere."""
        values = self.to_dict()
        for section, key in PATHS:
            values[section].pop(key)
        return values

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by section, as config.yaml holds them."""
        return {
            section: {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
            for section, values in asdict(self).items()
        }


def parse_config(args: Sequence[str] | None = None, prog: str | None = None) -> Config:
    """Read the command line (`sys.argv` when `args` is None) into a checked Config.

    Raises:
        UserError: unknown flag or key, a value of the wrong type or out of range.
        SystemExit: status 0 after `--help` and `--print_config`.
    """
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [--config FILE.yaml] [--section.key VALUE ...]",
        description="Fine-tune an ImageNet-pretrained model on a folder of benign and malignant skin lesions.",
        epilog="Processes, devices and precision belong to the launcher: accelerate launch --config_file "
        "accelerate_config.yaml [--num_processes N] [--mixed_precision no|bf16|fp16] %(prog)s ...",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", metavar="FILE.yaml", help="File with the same sections and keys.")
    parser.add_class_arguments(Config)
    for action in parser._actions:
        if action.dest in Config.__dataclass_fields__:
            action.help = argparse.SUPPRESS  # `--data FILE`, a config file for one section, is one way too many
    try:
        values = parser.instantiate(parser.parse_args(args))
    except jsonargparse.ArgumentError as error:
        raise UserError(_with_nearest(str(error))) from None
    return check(Config(**{section.name: values[section.name] for section in fields(Config)}))


def _with_nearest(message: str) -> str:
    """Name the flag that is wrong, and the valid one that an unknown one resembles most."""
    message = re.sub(r'^Parser key "([\w.]+)": Expected a', r"--\1: expected", " ".join(message.split()))
    message = re.sub(r"<class '(\w+)'>|typing\.", r"\1", message)
    message = re.sub(
        r'^Parser key "([\w.]+)": Does not validate .*? Subtypes: \[(.*?)(?:, NoneType)?\] Errors: .* Given value: '
        r"(.*)$",
        lambda found: f"--{found[1]}: expected {found[2].replace(', ', ' or ')}. Got value: {found[3]}",
        message,
    )
    message = re.sub(r"^Group '(\w+)' does not accept option '(\w+)'", r"Option '\1.\2' is not accepted", message)
    known = [f"{section}.{key}" for section, values in Config().to_dict().items() for key in values]
    if unknown := re.search(r"(?:unrecognized arguments: --|Option ')([\w.]+)", message):
        nearest = difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.3)
        message += f"; nearest: --{nearest[0]}" if nearest else "; --help lists them all"
    return message


def check(config: Config) -> Config:
    """Return the config, or raise UserError naming the flag whose value is out of range."""
    fractions, model, optim, train = config.data.fractions, config.model, config.optim, config.train
    rules = {
        "data.fractions": (
            abs(sum(fractions) - 1) < 1e-6 and min(fractions) > 0,
            "three shares above 0 that add up to 1",
        ),
        "data.max_bad": (0 <= config.data.max_bad <= 1, "from 0 to 1"),
        "data.image_size": (config.data.image_size >= 32, "at least 32 pixels"),
        "data.num_workers": ((config.data.num_workers or 0) >= 0, "0 or more"),
        "model.drop_rate": (0 <= model.drop_rate < 1, "from 0 to below 1"),
        "model.drop_path_rate": (0 <= model.drop_path_rate < 1, "from 0 to below 1"),
        "optim.lr": (0 < optim.lr < math.inf, "above 0"),
        "optim.rho": (0 <= optim.rho < 1, "from 0 to below 1"),
        "optim.eps": (0 < optim.eps < math.inf, "above 0"),
        "optim.weight_decay": (0 <= optim.weight_decay < math.inf, "0 or more"),
        "optim.warmup_epochs": (0 <= optim.warmup_epochs <= train.epochs, "from 0 to train.epochs"),
        "train.epochs": (train.epochs >= 1, "1 or more"),
        "train.batch_size": (train.batch_size >= 1, "1 or more"),
        "train.micro_batch_size": (
            not isinstance(train.micro_batch_size, int) or train.micro_batch_size >= 1,
            "1 or more, or auto",
        ),
        "train.max_skipped": (train.max_skipped >= 0, "0 or more"),
        "train.eval_batch_size": (train.eval_batch_size >= 1, "1 or more"),
        "train.log_every": (train.log_every >= 1, "1 or more"),
        "early_stopping.patience": (config.early_stopping.patience >= 1, "1 or more"),
        "early_stopping.min_delta": (0 <= config.early_stopping.min_delta < math.inf, "0 or more"),
        "checkpoint.every_steps": ((config.checkpoint.every_steps or 1) >= 1, "1 or more, or null"),
        "checkpoint.every_minutes": ((config.checkpoint.every_minutes or 1) > 0, "above 0, or null"),
        "checkpoint.keep": (config.checkpoint.keep >= 2, "2 or more, in case the newest is damaged"),
        "run.seed": (config.run.seed >= 0, "0 or more"),
        "run.timeout_minutes": (config.run.timeout_minutes >= 0.5, "0.5 or more"),
    }
    values = config.to_dict()
    for flag, (valid, wanted) in rules.items():
        if not valid:
            section, key = flag.split(".")
            raise UserError(f"--{flag} {values[section][key]}: must be {wanted}")
    return config
