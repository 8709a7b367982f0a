"""What a finished run leaves: predictions, results.json, the best model as timm and transformers load it."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import timm.models
import torch
from torch import nn

from skindist.config import Config
from skindist.data.prepare import Prepared
from skindist.data.scan import CLASSES
from skindist.data.split import count_rows
from skindist.early_stopping import EarlyStopping
from skindist.evaluation.figures import figures
from skindist.evaluation.metrics import DEFAULT_THRESHOLD, METRICS
from skindist.evaluation.predictions import Predictions
from skindist.files import write_atomic, write_csv, write_json
from skindist.model import preprocessing
from skindist.randomness import Stream, derived_seed
from skindist.training.engine import Learner
from skindist.training.state import TrainState

PACKAGES = ("skindist", "torch", "torchvision", "timm", "accelerate", "datasets", "evaluate", "wandb", "numpy")


def write_results(
    run: Path,
    config: Config,
    data: Prepared,
    learner: Learner,
    state: TrainState,
    stopping: EarlyStopping,
    predictions: dict[str, Predictions],
) -> dict[str, Any]:
    """Write predictions-*.csv, model/ and, last, results.json; return what the latter holds."""
    seed = derived_seed(config.run.seed, Stream.BOOTSTRAP)
    results: dict[str, Any] = {}
    for split, found in predictions.items():
        write_predictions(run / f"predictions-{split}.csv", found, data)
        results[split] = figures(found, DEFAULT_THRESHOLD, seed)
    results |= {
        "operating_point": {"threshold": DEFAULT_THRESHOLD, "chosen": "fixed"},
        "early_stopping": {
            "monitor": config.early_stopping.monitor,
            **stopping.state_dict(),
            "epochs": state.epoch,
            "stopped_early": stopping.should_stop and state.epoch < config.train.epochs,
        },
        "images": count_rows(data.rows),
        "left_out": len(data.quarantine),
        "images_seen": state.images_seen,
        "skipped_steps": state.skipped,
        "train_seconds": state.train_seconds,
        "images_per_second": state.images_seen / state.train_seconds if state.train_seconds else None,
        "world_size": learner.accelerator.num_processes,
        "mixed_precision": learner.accelerator.mixed_precision,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "hardware": hardware(learner.accelerator.device),
    }
    save_model(run / "model", learner.module, config, results)
    write_json(run / "results.json", results)
    return results


def write_predictions(file: Path, found: Predictions, data: Prepared) -> None:
    """One line an image: path, label, probability of malignant, and what the metadata say of it."""
    columns = list(dict.fromkeys(column for values in data.metadata.values() for column in values))
    lines = []
    for sample_id, label, probability in zip(found.ids, found.labels, found.probabilities, strict=True):
        path = data.rows[sample_id].path
        known = data.metadata.get(path, {})
        lines.append((path, CLASSES[label], repr(float(probability)), *(known.get(column, "") for column in columns)))
    write_csv(file, ("path", "label", "probability", *columns), lines)


def hardware(device: torch.device) -> dict[str, Any]:
    """What the run ran on, without names of machines or people."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": platform.machine(),
        "cpu_cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
    }


def save_model(folder: Path, module: nn.Module, config: Config, results: dict[str, Any]) -> None:
    """Save weights, config and model card: `timm.create_model("local-dir:RUN/model", pretrained=True)` loads them, and
    so does `transformers.AutoModelForImageClassification.from_pretrained("RUN/model")`."""
    pixels, size = preprocessing(module), config.data.image_size
    data_config = {
        "input_size": (3, size, size), "interpolation": pixels.interpolation, "crop_pct": 1.0, "crop_mode": "center",
        "mean": pixels.mean, "std": pixels.std,
    }  # fmt: skip
    labels = {"label_names": list(CLASSES), "num_classes": len(CLASSES)}
    module.to(memory_format=torch.contiguous_format)  # safetensors knows no other
    timm.models.save_for_hf(module, str(folder), model_config=labels, safe_serialization=True, data_config=data_config)
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves its files unreadable to others
    description = json.loads((folder / "config.json").read_text())
    description.get("model_args", {}).pop("num_classes", None)  # transformers gives it too, and fails on two
    write_json(folder / "config.json", description)
    write_atomic(folder / "README.md", model_card(config, results))


def model_card(config: Config, results: dict[str, Any]) -> str:
    """A short model card: what it is, what it was measured to be worth, what it is not for."""
    test, threshold = results["test"], results["operating_point"]["threshold"]
    lines = "\n".join(
        f"| {metric.title} | {test[name]['value']:.3f} | {test[name]['low']:.3f} to {test[name]['high']:.3f} "
        f"| {test[name]['n']} |"
        for name, metric in METRICS.items()
        if name != "loss"
    )
    return f"""---
library_name: timm
pipeline_tag: image-classification
---
# {config.model.name}: benign or malignant skin lesion

A research model, not a medical device. It gives the probability that a picture of a skin lesion shows a malignant one,
at {config.data.image_size} x {config.data.image_size} pixels; trained with skindist {results["versions"]["skindist"]}
on {results["images"]["train"]["benign"]} benign and {results["images"]["train"]["malignant"]} malignant images.

| test | value | 95 % interval | images |
| --- | --- | --- | --- |
{lines}

Malignant means a probability of {threshold} or more. The figures hold for images like those of the test set; another
camera, clinic or population may give others.

```python
model = timm.create_model("local-dir:model", pretrained=True)
```
"""


def summary(results: dict[str, Any], run: Path) -> str:
    """The last lines on the console."""
    stop, test = results["early_stopping"], results["test"]
    reason = f"stopped early after {stop['epochs']} epochs" if stop["stopped_early"] else f"{stop['epochs']} epochs"
    accuracy, auroc = test["accuracy"], test["auroc"]
    return (
        f"{reason}; best {stop['monitor']} {stop['best']:.4f} in epoch {stop['best_epoch']}\n"
        f"test: accuracy {accuracy['value']:.1%} (95 % interval {accuracy['low']:.1%} to {accuracy['high']:.1%}), "
        f"sensitivity {test['sensitivity']['value']:.1%}, specificity {test['specificity']['value']:.1%}, "
        f"AUROC {auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f}), {accuracy['n']} images\n"
        f"all figures: {run / 'results.json'}; curves: skindist curves {run}"
    )
