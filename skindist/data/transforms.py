"""From stored pixels to what the model sees: crops, turns and flips of uint8 pixels here, colours on the device.

The colour jitter is one gain and one offset for each image and channel, so that it costs nothing: the normalisation
that every pixel goes through anyway takes them in.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from skindist.randomness import Stream, generator

AREA = (0.4, 1.0)  # a crop's share of the largest square
RATIO = 1.25  # of a crop's sides, at most
SHEAR = math.radians(15)  # at most, to either side
JITTER = 0.3  # of brightness and of contrast
TINT = 0.1  # of each channel: the colour of the light

IDENTITY = torch.tensor([[1.0] * 3, [0.0] * 3])
Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]


class View(NamedTuple):
    """One random view of an image: where its points come from, and the gain and the offset of its R, G and B, for
    pixel values from 0 to 1.

    `matrix` takes (x, y, 1) in the view to (x, y) in the image, both from -1, its left or upper border, to 1.
    """

    matrix: Matrix
    gain: tuple[float, float, float]
    offset: tuple[float, float, float]


def draw_view(height: int, width: int, seed: int, epoch: int, sample_id: int) -> View:
    """The view of a sample in an epoch: a pure function of (seed, epoch, sample id), on any process and worker.

    A box of 40 to 100 % of the largest square's area, anywhere in the image, turned by any angle about its middle and
    mirrored or not (a lesion has no up or left), sheared, and changed in brightness, contrast and colour of the light.
    """
    draws = generator(seed, Stream.AUGMENTATION, epoch, sample_id).random(12).tolist()
    area, ratio, angle, shear, left, top, mirrored, *colours = draws
    side = min(height, width) * math.sqrt(AREA[0] + (AREA[1] - AREA[0]) * area)
    stretch = math.sqrt(RATIO) ** (2 * ratio - 1)
    box_width, box_height = side * stretch, side / stretch
    turn, slant = 2 * math.pi * angle, math.tan(SHEAR * (2 * shear - 1))
    across = box_width if mirrored < 0.5 else -box_width
    x = (2 * left - 1) * max(0.0, 1 - box_width / width)
    y = (2 * top - 1) * max(0.0, 1 - box_height / height)
    cos, sin = math.cos(turn), math.sin(turn)
    matrix = (
        (cos * across / width, (cos * slant - sin) * box_height / width, x),
        (sin * across / height, (sin * slant + cos) * box_height / height, y),
    )
    return View(matrix, *draw_colours(colours))


def draw_colours(draws: Sequence[float]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Gain and offset of R, G and B, from five draws between 0 and 1: brightness, contrast about mid-grey, tint."""
    bright, contrast = (1 + JITTER * (2 * draw - 1) for draw in draws[:2])
    red, green, blue = (bright * (1 + TINT * (2 * draw - 1)) for draw in draws[2:])
    about_grey = 0.5 - 0.5 * contrast
    return (red * contrast, green * contrast, blue * contrast), (
        red * about_grey,
        green * about_grey,
        blue * about_grey,
    )


def warp(pixels_HWC: Tensor, matrix: Matrix, size: int) -> Tensor:
    """The view's pixels: uint8 (H, W, 3) to uint8 (`size`, `size`, 3), bilinear; beyond its border, an image goes on as
    in a mirror."""
    from_x, from_y, shift = torch.tensor(matrix, dtype=torch.float32).T[:, :, None, None]
    middles = torch.linspace(-1, 1, size) * (size - 1) / size  # of the view's pixels
    grid_2HW = from_x * middles + from_y * middles[:, None] + shift  # as affine_grid's bits, in a tenth of its time
    image_1CHW = pixels_HWC[None].permute(0, 3, 1, 2).float()
    seen_1CHW = grid_sample(image_1CHW, grid_2HW.permute(1, 2, 0)[None], padding_mode="reflection", align_corners=False)
    seen_HWC = seen_1CHW[0].permute(1, 2, 0).contiguous().add_(0.5)
    return seen_HWC.to(torch.int16).to(torch.uint8)  # straight to uint8, torch takes three times as long


def turned(images_BCHW: Tensor, number: int) -> Tensor:
    """Square images (B, C, S, S) in one of their 8 positions, from 0 to 7: mirrored left to right (1), top to bottom
    (2), rows and columns exchanged (4), and what these add up to; 0: as they are."""
    dims = [dim for dim, bit in ((3, 1), (2, 2)) if number & bit]
    images_BCHW = images_BCHW.flip(dims) if dims else images_BCHW
    return images_BCHW.transpose(2, 3) if number & 4 else images_BCHW


def mean_of_views(
    module: Callable[[Tensor], Tensor],
    images_BCHW: Tensor,
    views: int,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """The mean of what `module` gives, (B, K) float32, over the first `views` positions of each image; see `turned`."""
    seen = (turned(images_BCHW, number).contiguous(memory_format=memory_format) for number in range(views))
    total_BK: Tensor = sum(module(images).float() for images in seen)  # type: ignore[assignment]
    return total_BK / views


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
