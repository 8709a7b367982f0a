"""What is told of predicted images: a row of each, what else is known of them, and what they were computed with."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import psutil
import torch

from skindist.data.prepare import Prepared
from skindist.data.scan import CLASSES
from skindist.data.split import PARTS, Row, leaked
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.known import Known
from skindist.evaluation.predictions import Predictions
from skindist.run.folder import PREDICTED
from skindist.wording import plural

PACKAGES = ("skindist", "torch", "torchvision", "timm", "accelerate", "datasets", "evaluate", "wandb", "numpy")


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
    (malignant minus benign), and what the metadata say of it. A column of theirs whose name is taken becomes "table_"
    and its name."""
    probabilities = calibration.apply(found).probabilities
    columns = list(dict.fromkeys(column for values in data.metadata.values() for column in values))
    header = list(PREDICTED)
    for column in columns:
        name = column
        while name in header:
            name = f"table_{name}"
        header.append(name)
    lines = []
    for sample_id, label, *values in zip(found.ids, found.labels, probabilities, found.logits, strict=True):
        path = data.rows[sample_id].path
        known = data.metadata.get(path, {})
        numbers = (repr(float(value)) for value in values)
        lines.append((path, CLASSES[label], *numbers, *(known.get(column, "") for column in columns)))
    return tuple(header), lines


def tell_leaks(results: dict[str, Any], rows: Sequence[Row]) -> None:
    """Add how many test images belong together with training or validation images, and say it in the verdict."""
    results["leaks"] = leaks = leaked(rows)
    if not any(leaks.values()):
        return
    tested = sum(row.split == "test" for row in rows)
    parts = [f"{count:,} with a {PARTS[split]} image" for split, count in leaks.items() if count]
    results["verdict"] += (
        f" Of the {plural(tested, 'test image')} some belong together with others (copies, one lesion or one patient), "
        f"{' and '.join(parts)}: the figures flatter."
    )


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
