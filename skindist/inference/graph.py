"""From pictures of any size to decisions, as one module without a file or a library around it: what is exported.

It computes what the data path computes: the resize of PIL, the central square, the normalisation, the calibration and
the threshold. The resize is two matrix products, whose weights are computed in the graph from the picture's size. That
is plain arithmetic, so every runtime has it, and none has a resize of its own with other corners, other antialiasing
or another rounding.
"""

from collections.abc import Callable

import torch
from scipy.special import logit
from torch import Tensor, nn

from skindist.data.transforms import mean_of_views
from skindist.errors import UserError
from skindist.inference.saved_model import SavedModel


def triangle(t: Tensor) -> Tensor:
    """PIL's BILINEAR: the weight of a pixel at a distance `t` >= 0."""
    return (1 - t).clamp(min=0)


def cubic(t: Tensor) -> Tensor:
    """PIL's BICUBIC (Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -0.5)."""
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


FILTERS: dict[str, Callable[[Tensor], Tensor]] = {"bilinear": triangle, "bicubic": cubic}


class Resize(nn.Module):
    """Pictures (N, H, W, 3) uint8 to the square (N, 3, S, S) that a model sees of each, whole numbers from 0 to 255.

    As `skindist.data.resizing`: the short side is resized to S, the long one in proportion, and the middle is cut out.
    As in PIL, rows come first, and each of the two steps rounds to whole numbers.
    """

    def __init__(self, size: int, interpolation: str) -> None:
        super().__init__()
        self.size, self.filter = size, FILTERS[interpolation]

    def forward(self, images_NHWC: Tensor) -> Tensor:
        height, width = (torch.full((), images_NHWC.shape[axis], dtype=torch.int64) for axis in (1, 2))
        short = torch.minimum(height, width)
        images_NCHW = images_NHWC.permute(0, 3, 1, 2).float()
        columns = self.weights(torch.arange(images_NHWC.shape[2]), width, short)
        rows = self.weights(torch.arange(images_NHWC.shape[1]), height, short)
        return whole(rows @ whole(images_NCHW @ columns.T))

    def weights(self, pixels_P: Tensor, side: Tensor, short: Tensor) -> Tensor:
        """How much each of the P pixels of a side gives to each pixel of the square, (S, P).

        A distance is a fraction, whose numerator is computed in whole numbers: so it is exact in float32, too.
        """
        resized = self.size * side // short  # as `stored_size`
        spare = resized - self.size
        first = (spare + spare // 2 % 2) // 2  # as `central_square`: half of it, a half rounded to an even number
        wanted_S = first + torch.arange(self.size)
        distance_SP = ((2 * wanted_S[:, None] + 1) * side - (2 * pixels_P + 1) * resized).abs()
        weights_SP = self.filter(distance_SP.float() / (2 * torch.maximum(side, resized)).float())
        return weights_SP / weights_SP.sum(dim=1, keepdim=True)


def whole(values: Tensor) -> Tensor:
    """Rounded to a whole number from 0 to 255, halves up."""
    return (values + 0.5).floor().clamp(0, 255)


class Classifier(nn.Module):
    """Pictures (N, H, W, 3) uint8 to the calibrated probability of malignant, (N,) float32, by a saved model, and
    whether it reaches the threshold, (N,) int64: 1 is malignant.

    Raises:
        UserError: its interpolation is one that no graph has here.
    """

    def __init__(self, model: SavedModel) -> None:
        super().__init__()
        described = model.description
        pixels, frozen = described.preprocessing, described.frozen
        if pixels.interpolation not in FILTERS:
            known = " and ".join(FILTERS)
            raise UserError(
                f"{described.architecture}: its pixels are resized {pixels.interpolation}; export has {known}"
            )
        self.resize = Resize(described.image_size, pixels.interpolation)
        self.module, self.views = model.module, described.views
        mean, std = torch.tensor(pixels.mean), torch.tensor(pixels.std)
        self.register_buffer("scale", (1 / (255 * std))[:, None, None], persistent=False)
        self.register_buffer("shift", (-mean / std)[:, None, None], persistent=False)
        self.calibration, self.bound = frozen.calibration, float(logit(frozen.threshold.value))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits_NK = mean_of_views(self.module, self.resize(images) * self.scale + self.shift, self.views)
        logits_N = (logits_NK[:, 1] - logits_NK[:, 0]) / self.calibration.temperature + self.calibration.bias
        return torch.sigmoid(logits_N), (logits_N >= self.bound).to(torch.int64)  # a runtime may round 1e-9 to 0
