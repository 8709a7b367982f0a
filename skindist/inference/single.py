"""A saved model and a picture, without a folder, a group of processes or a cache: what the model sees, what it says."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from skindist.data.inspection import FORMATS, decode
from skindist.data.resizing import seen_square
from skindist.data.transforms import IDENTITY, mean_of_views, normalizer
from skindist.evaluation.predictions import sigmoid
from skindist.inference.description import Description
from skindist.inference.saved_model import SavedModel


def open_picture(file: Path, known: Description) -> Image.Image:
    """The upright picture in a file, as skindist reads it: a JPEG no larger than need be."""
    with Image.open(file, formats=FORMATS) as image:
        return decode(image, (2 * known.image_size, 2 * known.image_size))


def square_of(picture: Image.Image, known: Description) -> Tensor:
    """The pixels of an RGB picture that the model sees, (S, S, 3) uint8. Raises TypeError for what is no picture."""
    if not isinstance(picture, Image.Image):
        raise TypeError(
            f"{type(picture).__name__}: is no PIL image; open_picture makes one of a file, and PIL.Image.fromarray of "
            "an array (H, W, 3) uint8"
        )
    return seen_square(picture, known.image_size, known.preprocessing.interpolation)


def normalised(squares: Sequence[Tensor], known: Description) -> Tensor:
    """What the model is given of squares (S, S, 3) uint8: (N, 3, S, S) float32."""
    normalize = normalizer(known.preprocessing.mean, known.preprocessing.std, torch.device("cpu"))
    return normalize(torch.stack(list(squares)).permute(0, 3, 1, 2), IDENTITY.expand(len(squares), -1, -1))


def probabilities(model: SavedModel, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
    """The calibrated probability of malignant of each RGB picture, (N,). Raises TypeError for what is no picture."""
    if len(pictures) == 0:
        return np.empty(0)
    known, calibration = model.description, model.description.frozen.calibration
    with torch.inference_mode():
        images_NCHW = normalised([square_of(picture, known) for picture in pictures], known)
        benign_N, malignant_N = mean_of_views(model.module, images_NCHW, known.views).double().unbind(dim=1)
    logits_N = (malignant_N - benign_N).numpy()
    return sigmoid(calibration.of(logits_N))
