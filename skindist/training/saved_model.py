"""The best model on disk, as timm and transformers load it."""

import json
from pathlib import Path
from typing import Any

import timm.models
import torch
from torch import nn

from skindist.config import Config
from skindist.data.scan import CLASSES
from skindist.evaluation.judgement import Frozen
from skindist.files import write_atomic, write_json
from skindist.model import preprocessing
from skindist.report.model_card import model_card


def save_model(folder: Path, module: nn.Module, config: Config, results: dict[str, Any], frozen: Frozen) -> None:
    """Save weights, config and model card: `timm.create_model("local-dir:RUN/model", pretrained=True)` loads them, and
    so does `transformers.AutoModelForImageClassification.from_pretrained("RUN/model")`.

    What was frozen on validation stands in config.json as "skindist"; both libraries let it be.
    """
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
    write_json(folder / "config.json", description | {"skindist": frozen.to_dict()})
    write_atomic(folder / "README.md", model_card(config, results))
