"""The optimizer by name, and the learning rate as a pure function of the step."""

import difflib
import inspect
import json
import math
from collections.abc import Mapping
from typing import Any, cast

import timm.optim
import torch
from torch import nn

from skindist.errors import UserError, first_line
from skindist.launcher import this_launch
from skindist.model import head_keys
from skindist.recipe import OptimConfig

ADADELTA_EPS = 1e-6  # of the reference recipe
HEAD_LR_FACTOR = 5.0  # of a new head on layers that have learnt already


def build_optimizer(model: nn.Module, config: OptimConfig, pretrained: bool = False) -> torch.optim.Optimizer:
    """Any optimizer that timm or torch knows; it gets those of rho and eps that it has and that are given.

    Args:
        pretrained: whether all but the head of a timm model was trained before.

    Raises:
        UserError: unknown name, or one that cannot be used here.
    """
    known = [str(name) for name in timm.optim.list_optimizers()]
    if config.name.lower() not in known:
        nearest = difflib.get_close_matches(config.name.lower(), known, n=3) or ["adadelta"]
        raise UserError(f"--optim.name {config.name}: no such optimizer; nearest: {', '.join(nearest)}")
    accepted = inspect.signature(timm.optim.get_optimizer_class(config.name, bind_defaults=False)).parameters
    eps = ADADELTA_EPS if config.eps is None and config.name.lower() == "adadelta" else config.eps
    asked = {"rho": config.rho, "eps": eps}
    options: dict[str, Any] = {key: value for key, value in asked.items() if key in accepted and value is not None}
    refuse_unsaveable(config.name, options)
    optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
        model,
        config.name,
        lr=config.lr,
        weight_decay=config.weight_decay,
        layer_decay=None if config.layer_decay == 1 else config.layer_decay,
        **options,
    )
    factor = config.head_lr_factor or (HEAD_LR_FACTOR if pretrained else 1.0)
    if factor != 1:
        set_head_apart(optimizer, model, factor)
    return optimizer


def refuse_unsaveable(name: str, options: Mapping[str, Any]) -> None:
    """Raise UserError where an optimizer takes no plain step on this machine, or has a state that no checkpoint can
    hold (tensors, and what JSON knows): before the training, not after its first epoch."""
    on_cpu = this_launch().on_cpu or not torch.accelerator.is_available()
    device = "cpu" if on_cpu else torch.accelerator.current_accelerator()
    weight = nn.Parameter(torch.zeros(2, 2, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        trial = timm.optim.create_optimizer_v2([weight], name, lr=0.1, **options)
        trial.step()
        state = trial.state_dict()
        kept = [value for moments in state["state"].values() for value in moments.values()]
        json.dumps([state["param_groups"], [value for value in kept if not isinstance(value, torch.Tensor)]])
    except Exception as error:  # no common base: missing packages, missing devices, other ways to step
        raise UserError(f"--optim.name {name}: cannot be used here ({first_line(error)}); choose another") from None


def set_head_apart(optimizer: torch.optim.Optimizer, model: nn.Module, factor: float) -> None:
    """Give the head of a timm model groups of its own, with a multiple of the rate."""
    keys = head_keys(model, cast(int, model.num_classes))
    head = {parameter for key, parameter in model.named_parameters() if key in keys}
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if parameter in head]
        group["params"] = [parameter for parameter in group["params"] if parameter not in head]
        if own:
            optimizer.add_param_group(group | {"params": own, "lr_scale": factor * group.get("lr_scale", 1.0)})
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate; a group has its own share or multiple of it (`optim.layer_decay`, `optim.head_lr_factor`)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over a saved state dict, with moments in the memory order of their parameters, as a fresh run has them."""
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor):  # copied in any case: what was read is a view of the file
                alike = value.shape == parameter.shape
                moments[name] = torch.empty_like(parameter).copy_(value) if alike else value.clone()


def epoch_of_half_rate(epochs: int, config: OptimConfig) -> int:
    """The epoch (from 1) in which the learning rate comes down to half of its peak; 1 where it never falls."""
    if config.schedule == "constant":
        return 1
    return math.ceil(config.warmup_epochs + (epochs - config.warmup_epochs) / 2)


def learning_rate(step: int, steps_per_epoch: int, epochs: int, config: OptimConfig) -> float:
    """Learning rate of optimizer step `step` (from 0): the same on any number of processes, and nothing to save."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    progress = (step - warmup) / max(1, epochs * steps_per_epoch - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
