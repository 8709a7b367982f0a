"""Real runs on sets with a planted shortcut: the verdict calls them out, and leaves the same set without it alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skindist.data.demo import draw_lesion
from skindist.data.scan import CLASSES
from skindist.evaluation.beside_shortcut import BETTER, NOT_BETTER
from skindist.training.trainer import fit
from tests.helpers.jobs import tiny_config

COUNT, SIZE, SMALL = 400, 48, 36
FLAGS = (
    "--data.image_size=48", "--data.fractions=[0.5,0.2,0.3]", "--train.epochs=15", "--optim.lr=1.0",
    "--optim.schedule=cosine", "--optim.warmup_epochs=0", "--early_stopping.patience=15",
    "--train.ema=0.9", "--train.label_smoothing=0",
)  # fmt: skip


def train(folder: Path, resized: tuple[float, float], lesions_differ: bool = True) -> dict[str, Any]:
    """A run on drawn lesions, a share of which, by class, was enlarged from a smaller size."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / "data" / name).mkdir(parents=True)
        for index in range(COUNT // 2):
            small = rng.random() < resized[label]
            lesion = draw_lesion(np.random.default_rng([label, index]), bool(label) and lesions_differ, SIZE)
            if small:
                lesion = lesion.resize((SMALL, SMALL)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            lesion.save(folder / "data" / name / f"{index:03d}.png")
    return fit(tiny_config(folder / "data", folder / "run", *FLAGS))


@pytest.mark.slow
def test_the_set_as_it_is_is_not_called_out(tmp_path: Path) -> None:
    results = train(tmp_path, resized=(0, 0))
    assert results["shortcut"]["verdict"] == BETTER, results["verdict"]


@pytest.mark.slow
def test_all_malignant_images_enlarged_are_called_out(tmp_path: Path) -> None:
    results = train(tmp_path, resized=(0, 1))
    assert results["test"]["auroc"]["value"] > 0.9, "a figure to be proud of"
    assert results["shortcut"]["verdict"] == NOT_BETTER, results["verdict"]
    assert "not clearly better than the shortcut" in results["verdict"]


@pytest.mark.slow
def test_a_model_that_only_knows_the_shortcut_is_called_out(tmp_path: Path) -> None:
    """There is nothing else to know: all lesions are drawn as benign ones."""
    results = train(tmp_path, resized=(0.1, 0.9), lesions_differ=False)
    assert results["test"]["auroc"]["low"] > 0.6
    assert results["shortcut"]["verdict"] == NOT_BETTER, results["verdict"]
