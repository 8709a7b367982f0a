"""The run that deaths and faults are tried on, and what must be the same in the end."""

import json
from pathlib import Path

from skindist.run.checkpoint import newest_intact

FLAGS = (
    "--train.epochs=3", "--model.drop_rate=0.3", "--model.drop_path_rate=0.3", "--early_stopping.patience=9",
    "--optim.layer_decay=0.9", "--optim.head_lr_factor=2",
    "--checkpoint.every_steps=1", "--data.num_workers=2",
)  # fmt: skip
"""Dropout, drop-path, augmentation, BatchNorm, Adadelta and two loader workers."""
STEPS = 3  # an epoch: 36 training images in batches of 12
CHECKPOINT = ("model.safetensors", "optimizer.safetensors", "buffers.safetensors")
FILES = ("predictions-val.csv", "predictions-test.csv", "split.csv", "metrics.jsonl", "model/model.safetensors")


def newest(run: Path) -> Path:
    """The newest checkpoint's folder."""
    return max((run / "checkpoints").glob("step-*"))


def saved_step(run: Path) -> int:
    """The step of the newest checkpoint that is whole, from which the run will go on; 0 without any."""
    folder = newest_intact(run / "checkpoints")
    return int(folder.name.removeprefix("step-")) if folder else 0


def content(file: Path) -> object:
    """What a file holds, but for the time that things took."""
    if file.suffix != ".jsonl":
        return file.read_bytes()
    events = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in event.items() if key != "train/images_per_second"} for event in events]


def assert_same_bytes(run: Path, expected: Path) -> int:
    """Weights, optimizer, BatchNorm, predictions and curve of two finished runs; how many files were compared."""
    assert newest(run).name == newest(expected).name
    for file in CHECKPOINT:
        assert (newest(run) / file).read_bytes() == (newest(expected) / file).read_bytes(), file
    for file in FILES:
        assert content(run / file) == content(expected / file), file
    return len(CHECKPOINT) + len(FILES)
