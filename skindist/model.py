"""The model: any timm architecture with starting weights that are accounted for and a new, zero-initialised head."""

import copy
import difflib
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.layers import convert_sync_batchnorm
from timm.models._pretrained import PretrainedCfg
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from skindist.config import Config
from skindist.errors import UserError, first_line
from skindist.files import expanded
from skindist.recipe import ModelConfig
from skindist.weights import load_weights, pretrained_file
from skindist.wording import plural

FEW = 16  # images, below which BatchNorm's statistics cost accuracy (Wu and He 2018, Group Normalization, figure 1)
log = logging.getLogger("skindist")


@dataclass(frozen=True)
class Preprocessing:
    """Mean and standard deviation of each colour channel, for pixel values from 0 to 1, and the interpolation of
    resized images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


def build_model(config: ModelConfig, num_classes: int = 2, load: bool = True) -> nn.Module:
    """Return the timm model `config.name`: images (N, 3, H, W) to logits (N, num_classes), all zero at first.

    The head is zero-initialised, weight and bias, as in BiT (Kolesnikov et al. 2020): the first loss is exactly
    ln(num_classes), where timm's default heads were measured to start between 1.7 and 12. A head in `config.weights`
    that has the same shape is loaded instead. One INFO line on the logger `skindist` says what the model starts from.

    With `load=False` neither files nor the network are touched: for processes that receive their weights from rank 0.

    Raises:
        UserError: unknown name, no classifier head, weights that cannot be found, read or fetched or that do not fit.
    """
    pretrained_cfg = _look_up(config.name)
    weights = expanded(config.weights) if load and config.weights is not None else None
    pretrained = load and config.pretrained and weights is None
    model = _create(config, pretrained_file(config.name, pretrained_cfg) if pretrained else None)
    head = _reset_head(model, config.name, num_classes)
    if weights is not None:
        start = load_weights(model, head, weights, config.name)
    elif pretrained:
        start = f"backbone from {pretrained_cfg.hf_hub_id or pretrained_cfg.url}, new zero head"
    else:
        start = "random weights, new zero head" if load else "no weights loaded, new zero head"
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    log.info("model: %s, %.2f M parameters, %s", config.name, size, start)
    return model


def refuse_size(name: str, size: int) -> None:
    """Raise UserError where a timm model takes images of one size alone, and not of this one (in pixels)."""
    pretrained_cfg = _look_up(name)
    side = pretrained_cfg.input_size[-1]
    if pretrained_cfg.fixed_input_size and side != size:
        raise UserError(f"--data.image_size {size}: {name} takes images of {side} pixels alone; give {side}")


def try_size(model: nn.Module, name: str, size: int) -> None:
    """Raise UserError where a timm model on the CPU fails with images of a size (in pixels) that is not its own."""
    side = _look_up(name).input_size[-1]
    if side == size:
        return
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:  # no common base: windows that do not divide, kernels larger than what is left
        raise UserError(
            f"--data.image_size {size}: {name} cannot compute with images of {size} pixels ({first_line(error)}); "
            f"its own size is {side}"
        ) from None


def preprocessing(model: nn.Module) -> Preprocessing:
    """Return what the weights of a timm `model` were trained with, 3 channels each."""
    data = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    return Preprocessing(mean=tuple(data["mean"]), std=tuple(data["std"]), interpolation=data["interpolation"])


def freeze_backbone(model: nn.Module) -> None:
    """Let nothing of a timm model learn but the layers that give its logits."""
    head = head_keys(model, model.num_classes)  # type: ignore[arg-type]
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in head)


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with BatchNorm over the images of all processes; its weights keep their names.

    Raises:
        UserError: not on CUDA, for which alone torch has it.
    """
    if device.type != "cuda":
        raise UserError(
            f"--train.sync_batchnorm true needs a GPU (CUDA), and this is {device.type}: leave it out; to be free of "
            "small parts of a batch, use fewer processes or --train.freeze_batchnorm true"
        )
    synchronised: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return synchronised


def noisy_batchnorm(model: nn.Module, config: Config, images: int, processes: int) -> str | None:
    """What to say if BatchNorm takes its statistics from few images; None if it does not.

    Args:
        images: that one process holds at a time.
    """
    together = images * (processes if config.train.sync_batchnorm else 1)
    learns = any(isinstance(layer, _BatchNorm) for layer in model.modules()) and not config.keeps_statistics
    if not learns or together >= FEW:
        return None
    return (
        f"BatchNorm sees {plural(together, 'image')} at a time, and below {FEW} its statistics are noisy: use a larger "
        "--train.batch_size or --train.micro_batch_size, fewer processes, --train.sync_batchnorm true (GPUs), or "
        "--train.freeze_batchnorm true"
    )


def refuse_lone_image(model: nn.Module, config: Config, images: int, size: int) -> None:
    """Raise UserError where BatchNorm cannot learn, as it sees one image at a time, of which one pixel is left.

    Args:
        images: that one process holds at a time, at least.
        size: of an image, in pixels.
    """
    if images > 1 or config.train.sync_batchnorm or config.keeps_statistics:
        return
    try:  # without computing anything
        copy.deepcopy(model).to("meta").train()(torch.empty(1, 3, size, size, device="meta"))
    except ValueError:
        raise UserError(
            f"BatchNorm cannot learn from one image at a time at --data.image_size {size}: use a larger "
            "--train.batch_size or --train.micro_batch_size, fewer processes, or --train.freeze_batchnorm true"
        ) from None


def head_keys(model: nn.Module, num_classes: int) -> set[str]:
    """The keys of the layers of a timm model that give the logits: of some heads, other layers come before these.

    Raises:
        AttributeError: no timm model.
    """
    found = model.get_classifier()  # type: ignore[operator]
    heads = found if isinstance(found, (tuple, list)) else (found,)
    parts = {part for module in heads for part in module.modules()}
    head: set[str] = set()
    for path, part in model.named_modules():
        if part in parts and num_classes in (getattr(part, "out_features", 0), getattr(part, "out_channels", 0)):
            head.update(f"{path}.{key}" for key, _ in part.named_parameters(recurse=False))
    return head


def _look_up(name: str) -> PretrainedCfg:
    """Return what timm knows about `name`, an architecture with or without `.tag`."""
    models = timm.list_models()
    if name.partition(".")[0] in models:
        with suppress(RuntimeError):  # a tag that timm does not know
            if cfg := timm.get_pretrained_cfg(name):
                return cfg
    near = difflib.get_close_matches(name.lower(), models + timm.list_pretrained(), n=5)
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() gives all names"
    raise UserError(f"--model.name {name}: timm {timm.__version__} has no such model; {hint}")


def _create(config: ModelConfig, file: str | None) -> nn.Module:
    """Build the model with its original head, which makes timm load `file` strictly."""
    source: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": {"file": file}} if file else {}
    # A rate of zero is passed on too: some models have another default. Models without the option refuse it.
    rates: dict[str, Any] = {"drop_rate": config.drop_rate, "drop_path_rate": config.drop_path_rate}
    while True:
        try:
            return timm.create_model(config.name, **source, **rates)
        except TypeError as error:
            refused = next((rate for rate in rates if f"'{rate}'" in str(error)), None)
            if refused is None:
                raise
            if rates.pop(refused):
                raise UserError(f"--model.{refused}: {config.name} has no such option; set it to 0.0") from None
        except Exception as error:  # no common base: safetensors, pickle, zip file, missing and misshapen keys
            if file is None:
                raise
            raise UserError(
                f"--model.name {config.name}: its pretrained weights {file} cannot be loaded ({first_line(error)}); "
                "delete that file to fetch it again, or give --model.weights FILE"
            ) from error


def _reset_head(model: nn.Module, name: str, num_classes: int) -> set[str]:
    """Give the model a zero head for `num_classes`; return the keys of the head, new and discarded ones."""
    before: dict[str, Tensor] = model.state_dict()
    try:
        model.reset_classifier(num_classes)  # type: ignore[operator]
        head = head_keys(model, num_classes)
    except AttributeError:
        head = set()
    if not head:
        raise UserError(f"--model.name {name}: no classifier head found that could be replaced; choose another model")
    after: dict[str, Tensor] = model.state_dict()
    head |= {key for key in after.keys() & before.keys() if after[key].shape != before[key].shape}  # auxiliary heads
    # timm also renews the hidden layers of some heads: these keep what they had.
    model.load_state_dict({k: torch.zeros_like(v) if k in head else before.get(k, v) for k, v in after.items()})
    return head | (before.keys() - after.keys())
