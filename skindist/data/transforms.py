"""From stored pixels to what the model sees: crops and flips of uint8 pixels here, colours on the device.

The colour jitter is one gain and one offset for each image and channel, so that it costs nothing: the normalisation
that every pixel goes through anyway takes them in.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from skindist.randomness import Stream, generator

AREA = (0.7, 1.0)  # a lesion's border must stay in view, so crops keep at least this share of the square
RATIO = 1.1  # of a crop's sides, at most
JITTER = 0.1  # of brightness and of contrast
TINT = 0.05  # of each channel: the colour of the light

IDENTITY = torch.tensor([[1.0] * 3, [0.0] * 3])


class View(NamedTuple):
    """One random view of an image: the box of pixels that is enlarged to the whole, mirrored or not, and the gain and
    the offset of its R, G and B, for pixel values from 0 to 1."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool
    upside_down: bool
    gain: tuple[float, float, float]
    offset: tuple[float, float, float]


def draw_view(height: int, width: int, seed: int, epoch: int, sample_id: int) -> View:
    """The view of a sample in an epoch: a pure function of (seed, epoch, sample id), on any process and worker.

    A crop of 70 to 100 % of the largest square's area, anywhere in the image, flips (a lesion has no up or left), and
    slight changes of brightness, contrast and the colour of the light.
    """
    draws = generator(seed, Stream.AUGMENTATION, epoch, sample_id).random(11).tolist()
    area, ratio, top, left, mirrored, upside_down, brightness, contrast, *tint = draws
    side = min(height, width) * math.sqrt(AREA[0] + (AREA[1] - AREA[0]) * area)
    stretch = math.sqrt(RATIO) ** (2 * ratio - 1)
    crop_height, crop_width = min(height, round(side / stretch)), min(width, round(side * stretch))
    bright, contrast = 1 + JITTER * (2 * brightness - 1), 1 + JITTER * (2 * contrast - 1)
    red, green, blue = (bright * (1 + TINT * (2 * channel - 1)) for channel in tint)
    about_grey = 0.5 - 0.5 * contrast
    return View(
        int(top * (height - crop_height + 1)),
        int(left * (width - crop_width + 1)),
        crop_height,
        crop_width,
        mirrored < 0.5,
        upside_down < 0.5,
        (red * contrast, green * contrast, blue * contrast),
        (red * about_grey, green * about_grey, blue * about_grey),
    )


def crop(pixels_HWC: Tensor, view: View, size: int) -> Tensor:
    """The view's pixels: uint8 (H, W, 3) to uint8 (`size`, `size`, 3)."""
    rows, columns = slice(view.top, view.top + view.height), slice(view.left, view.left + view.width)
    image_1CHW = pixels_HWC[None, rows, columns].permute(0, 3, 1, 2)  # so, torch sees channels-last: twice as fast
    image_1CHW = interpolate(image_1CHW, (size, size), mode="bilinear", antialias=True)
    flipped = [dim for dim, flip in ((2, view.upside_down), (3, view.mirrored)) if flip]
    return (image_1CHW.flip(flipped) if flipped else image_1CHW)[0].permute(1, 2, 0)


def central_square(pixels_HWC: Tensor, size: int) -> Tensor:
    """The square in the middle, as timm's evaluation transform cuts it: uint8 (H, W, 3) to (size, size, 3)."""
    height, width, _ = pixels_HWC.shape
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return pixels_HWC[top : top + size, left : left + size]


def normalizer(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """A function from uint8 images (B, C, H, W) and their colours (B, 2, C) to float32
    `(pixel / 255 * gain + offset - mean) / std`, on `device`.

    Its constants are put there once: making them at each batch would make the host wait for the device.
    """
    mean_C, std_C = torch.tensor(mean).to(device), torch.tensor(std).to(device)

    def normalize(images_BCHW: Tensor, colours_B2C: Tensor) -> Tensor:
        gain_BC, offset_BC = colours_B2C.unbind(dim=1)
        scale, shift = gain_BC / (255 * std_C), (offset_BC - mean_C) / std_C
        return images_BCHW * scale[:, :, None, None] + shift[:, :, None, None]

    return normalize
