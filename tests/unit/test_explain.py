"""Heat maps: where the evidence is, on models whose evidence is known; and what is said where there are none."""

import io

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from skindist.errors import UserError
from skindist.inference.explain import explain
from skindist.report.pictures import as_jpeg, beside_heat_map, contact_sheet


class Bright(nn.Module):
    """Bright red speaks for malignant, bright blue for benign; the map of features is the image at a quarter."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.pool4 = nn.AvgPool2d(4)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 2, bias=False)
        nn.init.zeros_(self.fc.weight)
        with torch.no_grad():
            self.fc.weight[1] = torch.tensor([2.0, 0.0, -1.0])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.global_pool(self.pool4(images)).flatten(1))
        return logits


def spot(channel: int, top: int, left: int) -> Tensor:
    image = torch.zeros(3, 32, 32)
    image[channel, top : top + 8, left : left + 8] = 1
    return image


def test_the_evidence_is_where_it_was_put_and_has_its_sign() -> None:
    maps = explain(Bright(), torch.stack([spot(0, 0, 0), spot(2, 24, 24), spot(1, 0, 0)]))
    assert maps.shape == (3, 32, 32)
    assert maps[0].argmax() < 8 * 32
    assert maps[0].max() == 1
    assert maps[0, 16:, 16:].abs().max() < 1e-6
    assert maps[1].min() == -1
    assert maps[1].argmin() >= 24 * 32
    assert (maps[2] == 0).all()  # green says nothing


def test_two_kinds_of_evidence_keep_their_proportion() -> None:
    (found,) = explain(Bright(), (spot(0, 0, 0) + spot(2, 24, 24))[None])
    assert found[2:6, 2:6].mean() > 0.9
    assert found[26:30, 26:30].mean() == pytest.approx(-0.5, abs=0.05)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "mobilenetv3_small_050"])
def test_convolutional_models_have_maps_and_are_left_as_they_were(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=2).train()
    next(model.children()).eval()  # as layers are that keep their statistics
    modes = [layer.training for layer in model.modules()]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.inference_mode(False):
        maps = explain(model, torch.randn(2, 3, 64, 64))
    assert maps.shape == (2, 64, 64)
    assert maps.abs().amax(dim=(1, 2)).tolist() == pytest.approx([1, 1])
    assert [layer.training for layer in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "mobilenetv3_small_050"])
def test_no_activation_before_the_pooled_map_is_kept(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A heat map finds room where predicting does, and is what it is with all gradients."""
    torch.manual_seed(0)
    model, images = timm.create_model(name, num_classes=2).eval(), torch.randn(2, 3, 64, 64)
    frozen = next(model.parameters()).requires_grad_(False)
    weights = {weight.data_ptr() for weight in model.parameters()}
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(0 if tensor.data_ptr() in weights else tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = explain(model, images)
    assert sum(kept) < images.numel() / 4
    assert {weight.requires_grad for weight in model.parameters() if weight is not frozen} == {True}
    assert not frozen.requires_grad
    monkeypatch.setattr("skindist.inference.explain.without_gradients", lambda module: module)
    assert torch.equal(maps, explain(model, images))


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_a_model_without_a_map_of_features_is_refused(name: str) -> None:
    model = timm.create_model(name, num_classes=2)
    size = 224 if "224" in name else 160
    with pytest.raises(UserError, match="no heat maps of this model"):
        explain(model, torch.zeros(1, 3, size, size))


def test_the_picture_is_the_image_and_beside_it_the_image_under_colour() -> None:
    heat = np.zeros((64, 64), np.float32)
    heat[:32], heat[32:] = 1, -1
    picture = Image.open(io.BytesIO(as_jpeg(beside_heat_map(np.full((64, 64, 3), 200, np.uint8), heat))))
    assert picture.size == (128, 64)
    pixels = np.asarray(picture).astype(int)
    assert pixels[:, 8:56].mean(axis=(0, 1)) == pytest.approx([200] * 3, abs=2)
    assert pixels[8:24, 72:120].mean(axis=(0, 1)) == pytest.approx([212, 122, 80], abs=4)  # 0.4 of 200, 0.6 of orange
    assert pixels[40:56, 72:120].mean(axis=(0, 1)) == pytest.approx([80, 134, 212], abs=4)


def test_a_contact_sheet_is_small_and_holds_no_words_of_the_file() -> None:
    tiles = [np.full((224, 224, 3), value, np.uint8) for value in (10, 240)]
    picture = Image.open(io.BytesIO(contact_sheet(["as it is", "hair"], [tiles, tiles])))
    assert picture.size == (256, 276)
    assert not picture.getexif()
    assert np.asarray(picture)[84, [64, 192]].mean(axis=1).round().tolist() == [10, 240]
