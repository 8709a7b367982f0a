"""The model's build: its zero head, its names and rates, its preprocessing, and the seed of random weights."""

import math
from typing import Any

import pytest
import timm
import torch
from torch import nn

from skindist.config import Config
from skindist.errors import UserError
from skindist.model import (
    Preprocessing,
    build_model,
    noisy_batchnorm,
    preprocessing,
    refuse_lone_image,
    refuse_size,
    synchronise_batchnorm,
    try_size,
)
from skindist.recipe import ModelConfig, TrainConfig

# The head


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("test_resnet", 32),
        ("test_vit", 160),
        ("test_efficientnet", 32),
        ("levit_128s", 224),  # two heads, each batch normalisation and linear
        ("dla46_c", 32),  # convolution
    ],
)
def test_the_first_loss_is_ln_2(name: str, side: int) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=name, pretrained=False)).eval()
    images = torch.randn(4, 3, side, side)
    with torch.no_grad():
        logits = model(images)
    assert logits.shape == (4, 2)
    assert logits.abs().max() == 0
    assert nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0])).item() == pytest.approx(math.log(2))


def test_the_head_learns_although_it_starts_at_zero() -> None:
    model = build_model(ModelConfig(name="test_resnet", pretrained=False))
    loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 1, 1]))
    gradients = torch.autograd.grad(loss, list(model.get_submodule("fc").parameters()))
    assert [gradient.abs().max() > 0 for gradient in gradients] == [True, True]


def test_number_of_classes() -> None:
    model = build_model(ModelConfig(name="test_resnet", pretrained=False), num_classes=5)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_a_model_without_a_head_is_refused() -> None:
    name = "mobilenetv5_300m_enc"
    with pytest.raises(UserError, match=rf"--model\.name {name}.*no classifier head"), torch.device("meta"):
        build_model(ModelConfig(name=name, pretrained=False))


# Names and rates


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("efficientnet-b0", "efficientnet_b0"), ("resnet10t.c3_in1", "resnet10t.c3_in1k"), ("ResNet-18", "resnet18")],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"--model\.name {name}.*did you mean .*{nearest}"):
        build_model(ModelConfig(name=name, pretrained=False))


@pytest.mark.parametrize("name", ["", "hf-hub:timm/qqq", "local-dir:/"])
def test_a_name_like_no_other_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"--model\.name .*no such model"):
        build_model(ModelConfig(name=name))


def test_a_name_with_a_pretrained_tag() -> None:
    assert build_model(ModelConfig(name="resnet10t.c3_in1k", pretrained=False)).num_classes == 2


def test_rates_reach_the_model() -> None:
    config = ModelConfig(name="test_resnet", pretrained=False, drop_rate=0.25, drop_path_rate=0.5)
    model = build_model(config)
    assert model.drop_rate == 0.25
    # Stochastic depth grows linearly from 0 in the first block to the given rate in the last.
    assert [part.drop_prob for part in model.modules() if type(part).__name__ == "DropPath"][-1] == 0.5


def test_a_rate_of_zero_overrides_another_default() -> None:
    with torch.device("meta"):
        default = timm.create_model("swin_tiny_patch4_window7_224")
        ours = build_model(ModelConfig(name="swin_tiny_patch4_window7_224", pretrained=False))
    drops = [[p for p in m.modules() if type(p).__name__ == "DropPath"] for m in (default, ours)]
    assert drops[0] and not drops[1]


def test_a_model_without_drop_path() -> None:
    build_model(ModelConfig(name="dla46_c", pretrained=False))
    with pytest.raises(UserError, match=r"--model\.drop_path_rate: dla46_c"):
        build_model(ModelConfig(name="dla46_c", pretrained=False, drop_path_rate=0.1))


# Preprocessing and seed


def test_preprocessing_is_the_models_own() -> None:
    image_net_means = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")
    halves = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    assert preprocessing(build_model(ModelConfig(name="resnet10t", pretrained=False))) == image_net_means
    assert preprocessing(build_model(ModelConfig(name="test_vit", pretrained=False))) == halves


def test_random_weights_follow_the_callers_seed() -> None:
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(build_model(ModelConfig(name="test_resnet", pretrained=False)).state_dict())
    key = "layer1.0.conv1.weight"
    assert torch.equal(models[0][key], models[1][key])
    assert not torch.equal(models[0][key], models[2][key])


def from_scratch(**train: Any) -> Config:
    return Config(model=ModelConfig(pretrained=False), train=TrainConfig(**train))


def test_few_images_for_batchnorm_are_mentioned() -> None:
    model = timm.create_model("test_resnet", num_classes=2)
    said = noisy_batchnorm(model, from_scratch(), 4, 8)
    assert said is not None
    assert said.startswith("BatchNorm sees 4 images at a time, and below 16")
    assert "--train.sync_batchnorm true" in said
    assert noisy_batchnorm(model, from_scratch(), 16, 1) is None
    assert noisy_batchnorm(model, from_scratch(sync_batchnorm=True), 4, 8) is None
    assert noisy_batchnorm(model, from_scratch(freeze_batchnorm=True), 4, 8) is None
    assert noisy_batchnorm(model, Config(train=TrainConfig(freeze_backbone=True)), 4, 8) is None
    assert noisy_batchnorm(model, Config(), 4, 8) is None, "pretrained statistics are kept"
    assert noisy_batchnorm(torch.nn.Linear(2, 2), from_scratch(), 4, 8) is None


def test_batchnorm_cannot_learn_from_one_pixel() -> None:
    """EfficientNet halves a side five times: of 32 pixels one is left, of 64 two."""
    model = timm.create_model("efficientnet_b0", num_classes=2)
    with pytest.raises(UserError, match=r"one image at a time at --data\.image_size 32"):
        refuse_lone_image(model, from_scratch(), 1, 32)
    refuse_lone_image(model, from_scratch(), 2, 32)
    refuse_lone_image(model, from_scratch(), 1, 64)
    refuse_lone_image(model, from_scratch(freeze_batchnorm=True), 1, 32)
    assert next(model.parameters()).device.type == "cpu"


def test_a_model_of_one_size_takes_no_other() -> None:
    with pytest.raises(UserError, match=r"image_size 64: vit_tiny_patch16_224 takes images of 224 pixels alone"):
        refuse_size("vit_tiny_patch16_224", 64)
    refuse_size("vit_tiny_patch16_224", 224)
    refuse_size("efficientnet_b0", 64)


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("halonet26t", 64, r"image_size 64: halonet26t cannot compute with images of 64 pixels \(AssertionError"),
        ("levit_128s", 96, r"cannot compute with images of 96 pixels \(RuntimeError: .*; its own size is 224"),
    ],
)
def test_a_model_that_fails_at_a_size_is_refused(name: str, size: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        try_size(timm.create_model(name), name, size)
    try_size(timm.create_model("test_resnet"), "test_resnet", 32)


@pytest.mark.parametrize("name", ["efficientnet_b0", "test_resnet"])
def test_synchronised_batchnorm_keeps_weights_and_predictions(name: str) -> None:
    """What it computes on GPUs is tested in tests/gpu: torch has it on a CPU in no other mode."""
    model = timm.create_model(name, num_classes=2).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    keys, before = list(model.state_dict()), model(images)
    again = synchronise_batchnorm(model, torch.device("cuda"))
    assert any(isinstance(layer, torch.nn.SyncBatchNorm) for layer in again.modules())
    assert list(again.state_dict()) == keys
    assert torch.equal(again(images), before)


def test_synchronised_batchnorm_is_refused_without_a_gpu() -> None:
    for kind in ("cpu", "mps"):
        with pytest.raises(
            UserError, match=rf"--train.sync_batchnorm true needs a GPU .* this is {kind}: leave it out"
        ):
            synchronise_batchnorm(torch.nn.BatchNorm2d(3), torch.device(kind))
