"""Pixels in, pixels out: uint8 throughout, so that a batch travels to the device at a quarter of its float size.

Normalisation happens on the device, in what `normalizer` returns.
"""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from skindist.randomness import Stream, derived_seed

Transform = Callable[[Image.Image], Tensor]


def train_transform(size: int) -> Transform:
    """Random crop, flips and a slight colour jitter: RGB image to uint8 (3, size, size).

    A lesion has no up or left, and its border must stay in view, so crops keep at least 70 % of the area.
    """
    steps = [
        v2.PILToTensor(),
        v2.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(0.9, 1.1), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1),
    ]
    transform: Transform = v2.Compose(steps)
    return transform


def eval_transform(size: int) -> Transform:
    """Short side to `size`, then the central square: RGB image to uint8 (3, size, size)."""
    transform: Transform = v2.Compose([v2.PILToTensor(), v2.Resize(size, antialias=True), v2.CenterCrop(size)])
    return transform


def augment(transform: Transform, image: Image.Image, seed: int, epoch: int, sample_id: int) -> Tensor:
    """Apply a random transform as a pure function of (seed, epoch, sample id), on any process and worker.

    torchvision draws from torch's global CPU generator; it is reseeded here and never read without being reseeded.
    """
    torch.default_generator.manual_seed(derived_seed(seed, Stream.AUGMENTATION, epoch, sample_id))
    return transform(image)


def normalizer(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from uint8 (B, C, H, W) to float32 `(pixel / 255 - mean) / std` by channel, on `device`.

    Its constants are put there once: making them at each batch would make the host wait for the device.
    """
    scale = torch.tensor([1 / (255 * s) for s in std]).view(1, -1, 1, 1).to(device)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)]).view(1, -1, 1, 1).to(device)
    return lambda images_BCHW: images_BCHW * scale - shift
