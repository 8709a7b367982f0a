"""What a model learns from, and how: the sections of the config whose defaults are the reference recipe."""

from dataclasses import dataclass
from typing import Literal

from skindist.section import Section, setting

Word = str | int | float | bool  # of a table; YAML takes a bare 1 for a number
Monitor = Literal[
    "val/loss",
    "val/accuracy",
    "val/balanced_accuracy",
    "val/auroc",
    "val/sensitivity",
    "val/specificity",
    "val/auprc",
    "val/partial_auroc",
    "val/brier",
]


@dataclass(frozen=True)
class DataConfig(Section):
    """Data: a folder with the class folders benign/ and malignant/, or the same under train/, val/ and test/."""

    path: str | None = setting(None, path=True)
    """Required: folder of images; a folder already split into train/, val/ and test/ keeps its split."""
    metadata: str | None = setting(None, path=True)
    """CSV file with one row an image, found by file name or ISIC id: patient_id, lesion_id, age, sex, site, ..."""
    label_column: str | None = None
    """Column of that table with the labels, of images in any layout; null: class folders tell them."""
    malignant: tuple[Word, ...] = ("malignant", "1", "true")
    """What that column says of a malignant image; case does not matter."""
    benign: tuple[Word, ...] = ("benign", "0", "false")
    """What it says of a benign one."""
    other: Literal["error", "drop"] = "error"
    """Images of which it says something else: refuse to start, or leave them out and say how many."""
    split_column: str | None = None
    """Column of that table with train, val or test; null: the folder is split, or a split is drawn."""
    on_bad: Literal["quarantine", "error"] = "quarantine"
    """Images that cannot be used: leave them out and list them in quarantine.csv, or refuse to start."""
    max_bad: float = setting(0.05, lambda share: 0 <= share <= 1, "from 0 to 1")
    """Share of bad images above which the run is refused in any case."""
    leaks: Literal["warn", "error", "drop-from-train"] = "warn"
    """Copies, lesions or patients on two sides of a given split: say so, refuse, or train without them."""
    cache_dir: str | None = setting(None, path=True, free=True)
    """Folder of prepared pixels; null: $SKINDIST_CACHE, else ~/.cache/skindist. `skindist clear-cache` empties it."""
    fractions: tuple[float, float, float] = setting(
        (0.90, 0.05, 0.05),
        lambda shares: len(shares) == 3 and min(shares) > 0 and abs(sum(shares) - 1) < 1e-6,
        "three shares above 0 that add up to 1",
    )
    """Shares of train, validation and test, for a folder that is not split; they add up to 1."""
    fold: int | None = setting(None, lambda n: n >= 0, "0 or more, or null")
    """Cross-validation: cut all images but those of the test part into data.folds, and take this one, from 0, as
    validation. All folds and seeds share one test part. null: none."""
    folds: int = setting(5, lambda n: n >= 2, "2 or more")
    """Into how many parts data.fold cuts them."""
    image_size: int = setting(224, lambda side: 32 <= side <= 4096, "from 32 to 4096 pixels")
    """Side in pixels of the square that the model sees."""
    augment: bool = True
    """Random crop, turn, shear, mirror and colour jitter on training images."""
    num_workers: int | None = setting(None, lambda n: 0 <= n <= 1000, "from 0 to 1000", free=True)
    """Loader processes for each training process; null: 0 on CPU, else up to 8 by the cores there are."""


@dataclass(frozen=True)
class ModelConfig(Section):
    """Model: any timm image model, with a new two-class head."""

    name: str = "efficientnet_b0"
    """timm model name."""
    pretrained: bool = True
    """Start from timm's pretrained weights (Hugging Face cache or download); false: random weights."""
    weights: str | None = setting(None, path=True)
    """Start from this local .safetensors or .pth file instead; every backbone key must match."""
    drop_rate: float = setting(0.0, lambda share: 0 <= share < 1, "from 0 to below 1")
    """Dropout before the head."""
    drop_path_rate: float = setting(0.0, lambda share: 0 <= share < 1, "from 0 to below 1")
    """Stochastic depth."""

    @property
    def starts_trained(self) -> bool:
        """Whether all but the head was trained before."""
        return self.pretrained or self.weights is not None


@dataclass(frozen=True)
class OptimConfig(Section):
    """Optimizer: Adadelta as in the reference recipe, or any other that timm or torch knows by name."""

    name: str = "adadelta"
    """Optimizer name, as in timm.optim.list_optimizers()."""
    lr: float = setting(0.1, lambda x: 0 < x <= 1000, "above 0 and at most 1000")
    """Learning rate at its peak."""
    rho: float = setting(0.9, lambda share: 0 <= share < 1, "from 0 to below 1")
    """Adadelta's decay of the squared averages."""
    eps: float | None = setting(None, lambda x: 0 < x <= 1000, "above 0 and at most 1000, or null")
    """Term added for numerical stability, for the optimizers that have one; null: 1e-6 for Adadelta, else their own."""
    weight_decay: float = setting(0.0, lambda x: 0 <= x <= 1000, "from 0 to 1000")
    """Weight decay (not applied to biases and normalisation layers)."""
    layer_decay: float = setting(1.0, lambda factor: 0 < factor <= 1, "above 0 and at most 1")
    """Learning rate of each layer as a factor of the one above it, so that early layers change less; 1: all alike."""
    head_lr_factor: float | None = setting(None, lambda x: 0 < x <= 1000, "above 0 and at most 1000, or null")
    """Learning rate of the new head as a multiple of lr; null: 5 on pretrained weights, 1 from scratch."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after warm-up: held, or cosine to zero at the last step of train.epochs."""
    warmup_epochs: float = setting(1.0, lambda x: x >= 0, "from 0 to train.epochs")
    """Epochs of linear warm-up from zero."""


@dataclass(frozen=True)
class TrainConfig(Section):
    """Training loop."""

    epochs: int = setting(10, lambda n: n >= 1, "1 or more")
    """Epochs at most."""
    batch_size: int = setting(32, lambda n: n >= 1, "1 or more")
    """GLOBAL batch of one optimizer step, at most: an epoch is cut into equal batches, each split over processes."""
    micro_batch_size: int | Literal["auto"] | None = setting(None, lambda n: n == "auto" or n > 0, "1 or more, or auto")
    """Images that one process holds at a time: its part of the batch is accumulated from as many passes as that
    takes. null: the whole part at once; auto: the largest number that fits into memory."""
    eval_batch_size: int = setting(64, lambda n: n >= 1, "1 or more", free=True)
    """Images in one evaluation batch on one process; memory and speed only."""
    label_smoothing: float = setting(0.1, lambda share: 0 <= share < 1, "from 0 to below 1")
    """Share of each label that is spread over both classes, in the training loss alone."""
    class_weights: float = setting(0.0, lambda power: 0 <= power <= 1, "from 0 to 1")
    """Weight of a class in the training loss: its share of the images to the power of minus this. 0: all alike; 0.5:
    the square root; 1: both classes count the same. Probabilities keep the true shares."""
    channels_last: bool = True
    """Keep images and weights in channels-last memory order: faster convolutions."""
    ema: float = setting(0.999, lambda decay: 0 <= decay < 1, "from 0 to below 1")
    """Decay of the running average of the weights, which is what is judged and saved; 0: none. It spans the last third
    of all steps, until it has this decay."""
    freeze_batchnorm: bool | None = None
    """Keep BatchNorm statistics as they are in the starting weights; null: those of pretrained weights, unless
    sync_batchnorm is on."""
    freeze_backbone: bool = False
    """Keep all starting weights, and BatchNorm statistics, and learn the head alone (a linear probe)."""
    cuda_graph: bool = setting(True, free=True)
    """On a GPU, capture a step's passes once and launch them as one: the same bits, and less waiting for the CPU."""
    deterministic: bool = setting(True, free=True)
    """On a GPU, choose kernels that add up in the same order each time, so that a run can be repeated bit for bit."""
    sync_batchnorm: bool = False
    """BatchNorm over the images of all processes, as on one. GPUs only."""
    non_finite: Literal["error", "skip"] = setting("error", free=True)
    """A step whose loss or gradient is NaN or infinite: end the run, or go on without that step."""
    max_skipped: int = setting(10, lambda n: n >= 0, "0 or more", free=True)
    """Steps that `non_finite: skip` may leave out before it ends the run all the same."""
    log_every: int = setting(10, lambda n: n >= 1, "1 or more", free=True)
    """Optimizer steps between two logged points of the training curves."""

    def passes(self, images: int, world_size: int) -> int:
        """From how many passes, at most, each process accumulates its part of a batch of so many images."""
        part = -(-images // world_size)
        return -(-part // self.micro_batch_size) if isinstance(self.micro_batch_size, int) else 1


@dataclass(frozen=True)
class EarlyStoppingConfig(Section):
    """Early stopping; the best epoch's weights are tested and saved."""

    patience: int = setting(2, lambda n: n >= 1, "1 or more")
    """Epochs in a row without improvement after which training stops."""
    min_delta: float = setting(0.001, lambda x: x >= 0, "0 or more")
    """Smallest change that counts as an improvement."""
    first_epoch: int | None = setting(None, lambda n: n >= 1, "1 or more, or null")
    """Epochs before this one cannot be the best, and use up no patience; null: that in which the learning rate comes
    down to half of its peak."""
    monitor: Monitor = "val/loss"
    """Value to watch: the loss and the Brier score should fall, every other one should rise."""

    @property
    def mode(self) -> Literal["min", "max"]:
        """The direction in which the monitored value improves."""
        return "min" if self.metric in ("loss", "brier") else "max"

    @property
    def metric(self) -> str:
        """The monitored metric's own name, without the split."""
        return self.monitor.removeprefix("val/")
