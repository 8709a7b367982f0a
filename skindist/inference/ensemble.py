"""Several models as one module, so that all that takes a model takes an ensemble: prediction, heat maps, export."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from skindist.data.transforms import mean_of_views
from skindist.evaluation.calibration import Calibration


class Ensemble(nn.Module):
    """The mean of the members' calibrated probabilities.

    It takes images (B, 3, S, S), normalised as each member wants them, and gives log-probabilities (B, 2) float32: the
    softmax of its outputs is the mean probability, and their difference its log-odds.

    Args:
        members: timm models that give logits (B, 2).
        calibrations: of each member.
        views: positions in which each member sees an image.
    """

    def __init__(self, members: Sequence[nn.Module], calibrations: Sequence[Calibration], views: Sequence[int]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.calibrations, self.views = tuple(calibrations), tuple(views)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        found = []
        for member, calibration, views in zip(self.members, self.calibrations, self.views, strict=True):
            benign_B, malignant_B = mean_of_views(member, images_BCHW, views).unbind(dim=1)
            logits_B = (malignant_B - benign_B) / calibration.temperature + calibration.bias
            found.append(torch.stack([logsigmoid(-logits_B), logsigmoid(logits_B)], dim=1))
        return torch.logsumexp(torch.stack(found), dim=0) - math.log(len(found))
