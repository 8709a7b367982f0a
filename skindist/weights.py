"""Starting weights: from a local file, or timm's pretrained ones (cache first, then one quick look at the network).

Nothing is left random in silence, and no failure is retried for a minute.
"""

import logging
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors.torch import load_file
from timm.models._hub import check_cached_file, download_cached_file
from timm.models._pretrained import PretrainedCfg
from torch import Tensor, nn

from skindist.downloads import NETWORK_SECONDS, within
from skindist.errors import UserError, first_line

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")

log = logging.getLogger("skindist")


def load_weights(model: nn.Module, head: set[str], file: Path, name: str) -> str:
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
        log.warning("--model.weights %s: the keys fit --model.name %s, but is it not %s?", file, name, other)
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


def pretrained_file(name: str, cfg: PretrainedCfg) -> str:
    """Return the local path of timm's pretrained weights: from the cache, else downloaded into it."""
    ways_out = "give --model.weights FILE, or start from random weights with --model.pretrained false"
    if not cfg.has_weights:
        raise UserError(f"--model.name {name}: timm has no pretrained weights for it; {ways_out}")
    try:
        return _from_hub(cfg.hf_hub_id) if cfg.hf_hub_id else _from_url(str(cfg.url))
    except Exception as error:  # no common base: HTTP client, proxy, TLS, Hub, full disk
        raise UserError(
            f"--model.name {name}: its pretrained weights are not in the cache and could not be fetched "
            f"({first_line(error)}); {ways_out}"
        ) from error


def _from_hub(repo: str) -> str:
    """Hugging Face Hub: its cache is asked first, because the Hub's own client asks the network first."""
    for file in HUB_FILES:
        cached = try_to_load_from_cache(repo, file)
        if isinstance(cached, str):  # neither None nor the mark "known not to exist"
            return cached
    for file in HUB_FILES:
        try:
            within(NETWORK_SECONDS, partial(get_hf_file_metadata, hf_hub_url(repo, file), timeout=NETWORK_SECONDS))
        except RemoteEntryNotFoundError:
            continue
        return hf_hub_download(repo, file)
    raise FileNotFoundError(f"{repo} has neither {' nor '.join(HUB_FILES)}")


def _from_url(url: str) -> str:
    """A plain web address, as a few old models have."""
    if not check_cached_file(url, check_hash=False):
        ask = partial(get_session().head, url, timeout=NETWORK_SECONDS, follow_redirects=True)
        within(NETWORK_SECONDS, lambda: ask().raise_for_status())
    return str(download_cached_file(url))
