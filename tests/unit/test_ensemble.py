"""Several models as one: its probability is the mean of theirs, and it is saved, read, explained and sent as one."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from skindist.errors import UserError
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.differences import UNITS, TrainingSet
from skindist.evaluation.frozen import Frozen
from skindist.evaluation.operating_point import Threshold
from skindist.inference.description import read_description
from skindist.inference.ensemble import Ensemble
from skindist.inference.explain import explain
from skindist.inference.push import sent
from skindist.inference.saved_model import save_ensemble, save_model
from skindist.inference.single import probabilities
from skindist.inference.sources import load_model

TRAINED_ON = TrainingSet(30, 10, dict.fromkeys(UNITS, (1.0, 2.0, 3.0)))
FROZEN = Frozen(Calibration(), Threshold(0.25, "validation", 0.9))


class Says(nn.Module):
    """The same logits of any image, but of an image that is mirrored other ones."""

    def __init__(self, malignant: float, mirrored: float = 0.0) -> None:
        super().__init__()
        self.malignant, self.mirrored = malignant, mirrored

    def forward(self, images_BCHW: Tensor) -> Tensor:
        upright = images_BCHW[:, 0, 0, 0] == 0
        malignant_B = torch.where(upright, self.malignant, self.mirrored)
        return torch.stack([torch.zeros(len(images_BCHW)), malignant_B], dim=1)


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def test_its_probability_is_the_mean_of_the_calibrated_ones() -> None:
    images = torch.zeros(1, 3, 4, 4)
    images[:, :, :, -1] = 1.0
    members = Ensemble([Says(2.0), Says(-1.0, 3.0)], [Calibration(2.0, 0.5), Calibration()], [1, 2])
    expected = (sigmoid(2.0 / 2.0 + 0.5) + sigmoid((-1.0 + 3.0) / 2)) / 2
    outputs = members(images)
    assert outputs.softmax(dim=1)[0, 1].item() == pytest.approx(expected, abs=1e-6)
    assert outputs.exp().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_it_is_finite_however_sure_its_members_are() -> None:
    outputs = Ensemble([Says(1e4), Says(1e4)], [Calibration()] * 2, [1, 1])(torch.zeros(1, 3, 4, 4))
    assert (outputs[0, 1] - outputs[0, 0]).item() == pytest.approx(1e4)


def save(folder: Path, seed: int, size: int = 32, name: str = "test_resnet", views: int = 1) -> Path:
    torch.manual_seed(seed)
    frozen = Frozen(Calibration(1.0 + seed, 0.1 * seed), FROZEN.threshold)
    save_model(folder, timm.create_model(name, num_classes=2), size, frozen, TRAINED_ON, "# A member", views)
    return folder


def test_it_is_saved_and_read_as_one_model(tmp_path: Path) -> None:
    members = [save(tmp_path / "a", 0), save(tmp_path / "b", 1, views=2)]
    folder = tmp_path / "model"
    save_ensemble(folder, members, FROZEN, TRAINED_ON, "# A card")
    pictures = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (40, 50, 3), np.uint8)) for n in range(3)]
    found = load_model(folder)
    expected = np.mean([probabilities(load_model(member), pictures) for member in members], axis=0)
    assert probabilities(found, pictures) == pytest.approx(expected, abs=1e-6)
    assert (found.description.architecture, found.description.frozen.threshold.value) == ("2 x test_resnet", 0.25)
    of_eight = np.mean([probabilities(load_model(member, views=8), pictures) for member in members], axis=0)
    assert probabilities(load_model(folder, views=8), pictures) == pytest.approx(of_eight, abs=1e-6)
    assert sent(folder) == [
        "config.json", "README.md",
        "member-0/config.json", "member-0/model.safetensors", "member-0/README.md",
        "member-1/config.json", "member-1/model.safetensors", "member-1/README.md",
    ]  # fmt: skip
    images = torch.randn(2, 3, 32, 32)
    maps = explain(found.module, images)
    mean = torch.stack([explain(load_model(member).module, images) for member in members]).mean(dim=0)
    assert torch.allclose(maps, mean / mean.abs().amax(dim=(1, 2), keepdim=True))


def test_members_that_see_other_pixels_are_refused(tmp_path: Path) -> None:
    members = [save(tmp_path / "a", 0), save(tmp_path / "b", 1, size=64)]
    save_ensemble(tmp_path / "model", members, FROZEN, TRAINED_ON, "# A card")
    with pytest.raises(UserError, match="members of 32 and of 64 pixels"):
        read_description(tmp_path / "model")


def test_an_older_skindist_says_that_it_is_too_old(tmp_path: Path) -> None:
    """It knows format 1, and refuses what is newer."""
    save_ensemble(tmp_path / "model", [save(tmp_path / "a", 0)], FROZEN, TRAINED_ON, "# A card")
    assert json.loads((tmp_path / "model/config.json").read_text())["skindist"]["format"] == 2
