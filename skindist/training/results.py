"""What a finished run leaves: predictions, the best model, and results.json."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import psutil
import torch

from skindist.config import Config
from skindist.data.loading import LesionImages, sample_ids
from skindist.data.prepare import Prepared
from skindist.data.scan import CLASSES
from skindist.data.split import SPLITS, count_rows
from skindist.determinism import repeats, tf32
from skindist.early_stopping import EarlyStopping
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.differences import summarize
from skindist.evaluation.judgement import Frozen, freeze, judge
from skindist.evaluation.known import Known
from skindist.evaluation.predictions import Predictions
from skindist.evaluation.stress import describe_stress
from skindist.files import finite
from skindist.inference.saved_model import save_model
from skindist.randomness import Stream, derived_seed
from skindist.report.model_card import model_card
from skindist.run.folder import PREDICTED, Run
from skindist.training.learner import Learner, Predictor
from skindist.training.pictures import draw_errors, draw_stress
from skindist.training.state import TrainState

PACKAGES = ("skindist", "torch", "torchvision", "timm", "accelerate", "datasets", "evaluate", "wandb", "numpy")


def write_results(
    run: Run,
    config: Config,
    data: Prepared,
    learner: Learner,
    state: TrainState,
    stopping: EarlyStopping,
    predictions: dict[str, Predictions],
    disturbed: dict[str, Predictions],
    images: LesionImages,
) -> dict[str, Any]:
    """Write predictions-*.csv, model/, pictures and, last, results.json; return what the latter holds.

    Threshold and calibration are fixed from the validation images before a test image is looked at.
    """
    seed, asked = derived_seed(config.run.seed, Stream.BOOTSTRAP), config.evaluation
    known = {split: known_of(data, sample_ids(data.rows, split)) for split in SPLITS}
    frozen = freeze(predictions["val"], known["val"], asked, seed)
    val, test = ((predictions[split], known[split]) for split in ("val", "test"))
    results = judge(frozen, val, test, known["train"], asked, seed)
    results["stress"] = stress_of(frozen, predictions["test"], disturbed, known["test"], seed)
    for split, found in predictions.items():
        run.write_predictions(split, *prediction_rows(found, frozen.calibration, data))
    results |= {
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
        "overflowed_steps": state.overflowed,
        "train_seconds": state.train_seconds,
        "images_per_second": state.images_per_second,
        "world_size": learner.accelerator.num_processes,
        "mixed_precision": learner.accelerator.mixed_precision,
        "deterministic": repeats(learner.accelerator.device),
        "tf32": tf32(learner.accelerator.device),
        "versions": versions(),
        "hardware": hardware(learner.accelerator.device),
    }
    told: dict[str, Any] = finite(results)  # every process is told what the file holds
    card, trained_on = model_card(config, told), summarize(known["train"])
    show_test(run, learner, images, data, frozen, predictions["test"], bool(disturbed), asked.explain)
    save_model(run.model, learner.module, config.data.image_size, frozen, trained_on, card, learner.views)
    run.write_results(told)
    return told


def stress_of(
    frozen: Frozen, test: Predictions, disturbed: dict[str, Predictions], known: Known, seed: int
) -> list[dict[str, Any]]:
    """What results.json says of the stress test; nothing where there was none."""
    plain, *changed = (frozen.calibration.apply(found) for found in (test, *disturbed.values()))
    return describe_stress(
        plain, dict(zip(disturbed, changed, strict=True)), frozen.threshold.value, known.groups, seed
    )


def show_test(
    run: Run,
    predictor: Predictor,
    images: LesionImages,
    data: Prepared,
    frozen: Frozen,
    test: Predictions,
    stress: bool,
    explain: int,
) -> None:
    """Draw what there is to look at of the test images."""
    calibrated, threshold = frozen.calibration.apply(test), frozen.threshold.value
    if stress:
        draw_stress(run, images, calibrated)
    draw_errors(run, predictor, images, data.rows, calibrated, threshold, explain)


def known_of(data: Prepared, ids: Sequence[int]) -> Known:
    """What is known of images besides their pixels, in the order of their sample ids."""
    rows = [data.rows[sample_id] for sample_id in ids]
    return Known(
        np.array([row.label for row in rows], np.int64),
        np.array([row.group for row in rows], np.str_),
        [data.facts[sample_id] for sample_id in ids],
        [data.metadata.get(row.path, {}) for row in rows],
    )


def prediction_rows(
    found: Predictions, calibration: Calibration, data: Prepared
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The columns and one row an image: path, label, calibrated probability of malignant, logit as the model gives it
    (malignant minus benign), and what the metadata say of it. A column of theirs that is called like one of ours
    becomes "table_" and its name."""
    probabilities = calibration.apply(found).probabilities
    columns = list(dict.fromkeys(column for values in data.metadata.values() for column in values))
    lines = []
    for sample_id, label, *values in zip(found.ids, found.labels, probabilities, found.logits, strict=True):
        path = data.rows[sample_id].path
        known = data.metadata.get(path, {})
        numbers = (repr(float(value)) for value in values)
        lines.append((path, CLASSES[label], *numbers, *(known.get(column, "") for column in columns)))
    return (*PREDICTED, *(f"table_{column}" if column in PREDICTED else column for column in columns)), lines


def versions() -> dict[str, str]:
    """What the figures were computed with."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def hardware(device: torch.device) -> dict[str, Any]:
    """What the run ran on, without names of machines or people."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": platform.machine(),
        "cpu_cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
    }
