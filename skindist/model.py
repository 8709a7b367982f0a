"""The model: any timm architecture with starting weights that are accounted for and a new, zero-initialised head.

Weights come from a local file, from timm's pretrained weights (cache first, then one quick look at the network) or from
the random generator on request. Nothing is left random in silence, and no failure is retried for a minute.
"""

import difflib
import logging
import threading
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.models._hub import check_cached_file, download_cached_file
from timm.models._pretrained import PretrainedCfg
from torch import Tensor, nn

from skindist.config import ModelConfig
from skindist.errors import UserError

NETWORK_SECONDS = 4.0
"""Longest wait for a first sign of life from the network."""
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")

logger = logging.getLogger("skindist")


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
    weights = Path(config.weights).expanduser() if load and config.weights is not None else None
    pretrained = load and config.pretrained and weights is None
    model = _create(config, _pretrained_file(config.name, pretrained_cfg) if pretrained else None)
    head = _reset_head(model, config.name, num_classes)
    if weights is not None:
        start = _load_weights(model, head, weights, config.name)
    elif pretrained:
        start = f"backbone from {pretrained_cfg.hf_hub_id or pretrained_cfg.url}, new zero head"
    else:
        start = "random weights, new zero head" if load else "no weights loaded, new zero head"
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    logger.info("model: %s, %.2f M parameters, %s", config.name, size, start)
    return model


def preprocessing(model: nn.Module) -> Preprocessing:
    """Return what the weights of a timm `model` were trained with, 3 channels each."""
    data = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    return Preprocessing(mean=tuple(data["mean"]), std=tuple(data["std"]), interpolation=data["interpolation"])


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
                f"--model.name {config.name}: its pretrained weights {file} cannot be loaded ({_first_line(error)}); "
                "delete that file to fetch it again, or give --model.weights FILE"
            ) from error


def _reset_head(model: nn.Module, name: str, num_classes: int) -> set[str]:
    """Give the model a zero head for `num_classes`; return the keys of the head, new and discarded ones."""
    before: dict[str, Tensor] = model.state_dict()
    try:
        model.reset_classifier(num_classes)  # type: ignore[operator]
        found = model.get_classifier()  # type: ignore[operator]
    except AttributeError:
        found = ()
    heads = found if isinstance(found, (tuple, list)) else (found,)
    parts = {part for module in heads for part in module.modules()}
    head: set[str] = set()
    for path, part in model.named_modules():
        if part in parts and num_classes in (getattr(part, "out_features", 0), getattr(part, "out_channels", 0)):
            head.update(f"{path}.{key}" for key, _ in part.named_parameters(recurse=False))
    if not head:
        raise UserError(f"--model.name {name}: no classifier head found that could be replaced; choose another model")
    after: dict[str, Tensor] = model.state_dict()
    head |= {key for key in after.keys() & before.keys() if after[key].shape != before[key].shape}  # auxiliary heads
    # timm also renews the hidden layers of some heads: these keep what they had.
    model.load_state_dict({k: torch.zeros_like(v) if k in head else before.get(k, v) for k, v in after.items()})
    return head | (before.keys() - after.keys())


def _load_weights(model: nn.Module, head: set[str], file: Path, name: str) -> str:
    """Load every backbone key from `file`, and the head where its shapes are ours; return what was loaded, in words."""
    own: dict[str, Tensor] = model.state_dict()
    given = _read_weights(file)
    head_fits = all(key in given and given[key].shape == own[key].shape for key in head & own.keys())
    kept = own.keys() if head_fits else own.keys() - head
    given = {key: tensor for key, tensor in given.items() if key in kept or key not in head}
    optional = head | {key for key in own if key.endswith("num_batches_tracked")}
    differences = {
        "missing": sorted(own.keys() - given.keys() - optional),
        "unexpected": sorted(given.keys() - own.keys()),
        "of another shape": [
            f"{key} {tuple(given[key].shape)} for {tuple(own[key].shape)}"
            for key in sorted(own.keys() & given.keys())
            if given[key].shape != own[key].shape
        ],
    }
    if any(differences.values()):
        listed = "; ".join(
            f"{len(keys)} {kind} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
            for kind, keys in differences.items()
            if keys
        )
        raise UserError(
            f"--model.weights {file}: does not fit --model.name {name}: {listed}. "
            "The file probably belongs to another model"
        )
    other = file.name.partition(".")[0]
    if other != name.partition(".")[0] and other in timm.list_models():  # tf_efficientnet_b0 and efficientnet_b0
        logger.warning("--model.weights %s: the keys fit --model.name %s, but is it not %s?", file, name, other)
    model.load_state_dict(own | given)
    count = len(given.keys() - head)
    return f"backbone from {file} ({count} tensors), {'head from the same file' if head_fits else 'new zero head'}"


def _read_weights(file: Path) -> dict[str, Tensor]:
    """Return the state dict in `file`: plain or nested, without the prefixes of DDP and torch.compile."""
    if not file.is_file():
        raise UserError(f"--model.weights {file}: {'is a folder, not a file' if file.is_dir() else 'no such file'}")
    if file.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise UserError(f"--model.weights {file}: the name must end in .safetensors, {', '.join(TORCH_SUFFIXES)}")
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            with torch.serialization.safe_globals([Namespace]):  # timm's own checkpoints hold their arguments
                content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # no common base: safetensors, pickle, zip file, permissions
        raise UserError(
            f"--model.weights {file}: cannot be read ({type(error).__name__}): the file is corrupt, or holds other "
            "objects than tensors, which are never unpickled because that could run code"
        ) from error
    for key in ("state_dict_ema", "state_dict", "model"):  # averaged weights first, as timm does
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not (isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values())):
        raise UserError(f"--model.weights {file}: holds no state dict (a mapping of names to tensors)")
    state: dict[str, Tensor] = content
    while prefix := next((p for p in WRAPPER_PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _pretrained_file(name: str, cfg: PretrainedCfg) -> str:
    """Return the local path of timm's pretrained weights: from the cache, else downloaded into it."""
    ways_out = "give --model.weights FILE, or start from random weights with --model.pretrained false"
    if not cfg.has_weights:
        raise UserError(f"--model.name {name}: timm has no pretrained weights for it; {ways_out}")
    try:
        return _from_hub(cfg.hf_hub_id) if cfg.hf_hub_id else _from_url(str(cfg.url))
    except Exception as error:  # no common base: HTTP client, proxy, TLS, Hub, full disk
        raise UserError(
            f"--model.name {name}: its pretrained weights are not in the cache and could not be fetched "
            f"({_first_line(error)}); {ways_out}"
        ) from error


def _from_hub(repo: str) -> str:
    """Hugging Face Hub: its cache is asked first, because the Hub's own client asks the network first."""
    for file in HUB_FILES:
        cached = try_to_load_from_cache(repo, file)
        if isinstance(cached, str):  # neither None nor the mark "known not to exist"
            return cached
    for file in HUB_FILES:
        try:
            _within(NETWORK_SECONDS, partial(get_hf_file_metadata, hf_hub_url(repo, file), timeout=NETWORK_SECONDS))
        except RemoteEntryNotFoundError:
            continue
        return hf_hub_download(repo, file)
    raise FileNotFoundError(f"{repo} has neither {' nor '.join(HUB_FILES)}")


def _from_url(url: str) -> str:
    """A plain web address, as a few old models have."""
    if not check_cached_file(url, check_hash=False):
        ask = partial(get_session().head, url, timeout=NETWORK_SECONDS, follow_redirects=True)
        _within(NETWORK_SECONDS, lambda: ask().raise_for_status())
    return str(download_cached_file(url))


def _within(seconds: float, probe: Callable[[], object]) -> None:
    """Run `probe` and raise what it raises, or TimeoutError: the look-up of a host name knows no timeout of its own."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            probe()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    if errors:
        raise errors[0]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
