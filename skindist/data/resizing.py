"""An image at the size of evaluation: as a store keeps it, and the square of it that a model sees.

The pixels are those of timm's evaluation transform before its central crop: the short side resized to the image size,
with the model's interpolation. A large JPEG is decoded at a half, a quarter or an eighth of its size where that leaves
twice the pixels that are needed.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from skindist.data.inspection import decode, open_image, upright_size
from skindist.data.transforms import central_square


def stored_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height in the store: the short side is `size`, the long one as torchvision's Resize rounds it."""
    long = int(size * max(width, height) / min(width, height))
    return (size, long) if height > width else (long, size)


def resized(image: Image.Image, shape: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    """An opened file as upright RGB of this width and height, its `stored_size`."""
    # Decoded at twice that, as PIL for thumbnails: within half a grey level of decoding it whole, on average.
    return decode(image, (2 * min(shape), 2 * min(shape))).resize(shape, resampling)


def seen_pixels(path: Path, size: int, interpolation: str) -> Tensor | str:
    """What a model sees of one file, (`size`, `size`, 3) uint8, as by way of a store; or why the file cannot be used,
    within `reading_images`."""
    return open_image(path, lambda _, image: seen_square(image, size, interpolation))


def seen_square(image: Image.Image, size: int, interpolation: str) -> Tensor:
    """The same of an opened file, or of an upright RGB picture."""
    shape = stored_size(*upright_size(image)[0], size)
    picture = resized(image, shape, Image.Resampling[interpolation.upper()])
    return central_square(torch.from_numpy(np.array(picture)), size)
