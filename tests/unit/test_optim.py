"""Optimizers by name, and the learning rate as a function of the step."""

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from skindist.errors import UserError
from skindist.optim import build_optimizer, epoch_of_half_rate, learning_rate, load_optimizer, set_learning_rate
from skindist.recipe import OptimConfig
from skindist.run.checkpoint import join_optimizer, split_optimizer


def test_the_recipe_is_adadelta_with_its_rho_and_eps() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig())
    assert isinstance(optimizer, torch.optim.Adadelta)
    assert {key: optimizer.defaults[key] for key in ("rho", "eps", "weight_decay")} == {
        "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0
    }  # fmt: skip
    assert optimizer.param_groups[0]["lr"] == OptimConfig().lr


def test_one_adadelta_step_by_hand() -> None:
    weight = nn.Linear(1, 1, bias=False)
    nn.init.ones_(weight.weight)
    optimizer = build_optimizer(weight, OptimConfig(lr=0.5))
    torch.autograd.backward((3 * weight.weight).sum())
    optimizer.step()
    # square_avg = 0.1 * 3^2; step = sqrt(0 + eps) / sqrt(square_avg + eps) * 3
    assert weight.weight.item() == pytest.approx(1 - 0.5 * (1e-6**0.5 / (0.9 + 1e-6) ** 0.5 * 3), abs=1e-7)


@pytest.mark.parametrize(
    ("name", "why"),
    [("lamb", "Tensor is not JSON"), ("adafactorbv", "dtype"), ("adahessian", "")],
)
def test_an_optimizer_that_could_not_go_on_is_refused_before_the_training(name: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"--optim\.name {name}: cannot be used here \(.*{why}.*\); choose another"):
        build_optimizer(nn.Linear(2, 2), OptimConfig(name=name))


def test_what_was_read_is_no_longer_a_view_of_the_file(tmp_path: Path) -> None:
    """A file that is open somewhere cannot be deleted on some network disks."""
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, OptimConfig())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors, values = split_optimizer(optimizer.state_dict())
    save_file(tensors, tmp_path / "optimizer.safetensors")
    load_optimizer(optimizer, join_optimizer(load_file(tmp_path / "optimizer.safetensors"), values))
    if Path("/proc/self/maps").exists():
        assert "optimizer.safetensors" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    ("name", "asked", "eps"),
    [
        ("Adadelta", None, 1e-6), ("adabelief", None, 1e-16), ("adafactor", None, 1e-30), ("adamw", None, 1e-8),
        ("adadelta", 1e-3, 1e-3), ("adabelief", 1e-3, 1e-3),
    ],
)  # fmt: skip
def test_an_optimizer_has_its_own_eps_unless_one_is_given(name: str, asked: float | None, eps: float) -> None:
    """With Adadelta's, AdaBelief and Adafactor hardly learn."""
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(name=name, eps=asked))
    assert {group["eps"] for group in optimizer.param_groups} == {eps}


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "AdamW", "lion"])
def test_other_optimizers_by_name(name: str) -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, OptimConfig(name=name, lr=0.01, weight_decay=0.1))
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1, 0.0}  # not on the bias


def test_each_layer_learns_at_its_share_of_the_rate_of_the_one_above() -> None:
    model: Any = timm.create_model("test_resnet", num_classes=2)
    optimizer = build_optimizer(model, OptimConfig(layer_decay=0.5))
    set_learning_rate(optimizer, 0.8)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert [rate[id(layer.weight)] for layer in (model.fc, model.layer4[0].conv1, model.layer3[0].conv1)] == [
        0.8, 0.4, 0.2
    ]  # fmt: skip
    assert len(rate) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("asked", "pretrained", "expected"), [(None, True, 5), (None, False, 1), (2.0, True, 2), (1.0, True, 1)]
)
def test_the_head_of_a_pretrained_model_learns_faster(asked: float | None, pretrained: bool, expected: float) -> None:
    model: Any = timm.create_model("test_resnet", num_classes=2)
    optimizer = build_optimizer(model, OptimConfig(head_lr_factor=asked), pretrained)
    set_learning_rate(optimizer, 1.0)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert (rate[id(model.fc.weight)], rate[id(model.layer1[0].conv1.weight)]) == (expected, 1.0)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_the_head_learns_at_a_multiple_of_the_rate(layer_decay: float) -> None:
    model: Any = timm.create_model("test_resnet", num_classes=2)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1, layer_decay=layer_decay, head_lr_factor=5.0))
    set_learning_rate(optimizer, 0.2)
    group = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    assert [group[id(weight)]["lr"] for weight in (model.fc.weight, model.fc.bias, model.layer4[0].conv1.weight)] == [
        1.0, 1.0, 0.2 * layer_decay
    ]  # fmt: skip
    assert [group[id(weight)]["weight_decay"] for weight in (model.fc.weight, model.fc.bias)] == [0.1, 0.0]
    assert len(group) == sum(len(each["params"]) for each in optimizer.param_groups) == len(list(model.parameters()))


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(UserError, match=r"--optim\.name adadleta.*adadelta"):
        build_optimizer(nn.Linear(2, 2), OptimConfig(name="adadleta"))


@pytest.mark.parametrize(
    ("schedule", "warmup", "epochs", "expected"),
    [
        ("cosine", 1.0, 10, 6),
        ("cosine", 0.0, 10, 5),
        ("cosine", 1.0, 1, 1),
        ("cosine", 0.5, 2, 2),
        ("constant", 1.0, 10, 1),
    ],
)
def test_when_the_rate_has_come_down_to_half(schedule: Any, warmup: float, epochs: int, expected: int) -> None:
    config = OptimConfig(lr=1.0, schedule=schedule, warmup_epochs=warmup)
    found = epoch_of_half_rate(epochs, config)
    assert found == expected
    if schedule == "cosine" and epochs > 1:
        at_start, at_end = (learning_rate(epoch * 100, 100, epochs, config) for epoch in (found - 1, found))
        assert at_end < 0.5 + 1e-9 < at_start or at_start < 1 == found


def test_constant_after_warm_up() -> None:
    config = OptimConfig(lr=1.0, schedule="constant", warmup_epochs=0.5)
    rates = [learning_rate(step, 8, 2, config) for step in range(16)]
    assert rates == [0.25, 0.5, 0.75] + [1.0] * 13


def test_cosine_ends_at_zero() -> None:
    config = OptimConfig(lr=2.0, schedule="cosine", warmup_epochs=0)
    rates = [learning_rate(step, 4, 2, config) for step in (0, 2, 4, 6, 8)]
    assert rates == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0])


def test_cosine_after_warm_up_ends_at_zero() -> None:
    config = OptimConfig(lr=1.0, schedule="cosine", warmup_epochs=1.25)
    rates = [learning_rate(step, 4, 3, config) for step in range(13)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == pytest.approx([(1 + math.cos(math.pi * step / 7)) / 2 for step in range(8)])
