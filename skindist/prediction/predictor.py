"""What predicts, trained here or not: a model on all processes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skindist.data.loading import Batch
from skindist.data.transforms import mean_of_views, normalizer
from skindist.distributed.group import Accelerator
from skindist.model import Preprocessing


@dataclass
class Predictor:
    """What predicts: the bare module, the function from uint8 to normalised images, the order in memory of what the
    module gets, and in how many positions each image is seen."""

    accelerator: Accelerator
    module: nn.Module
    normalize: Callable[[Tensor, Tensor], Tensor]
    memory_format: torch.memory_format = torch.channels_last
    views: int = 1

    @property
    def judged(self) -> nn.Module:
        """The model whose predictions count."""
        return self.module

    def logits(self, batch: Batch, module: nn.Module) -> Tensor:
        """The mean of the logits of all views, (B, 2), by a copy that `for_prediction` made of the judged model."""
        return mean_of_views(module, self.to_device(batch)[0], self.views, self.memory_format)

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) as uint8 to the device, coloured and normalised there; labels (B,)."""
        device = self.accelerator.device
        aside = device.type == "cuda" and batch.images_BCHW.is_pinned()  # MPS would copy what is not there any more
        images_BCHW = batch.images_BCHW.to(device, non_blocking=aside).contiguous(memory_format=self.memory_format)
        colours_B2C = batch.colours_B2C.to(device, non_blocking=aside)
        return self.normalize(images_BCHW, colours_B2C), batch.labels_B.to(device, non_blocking=aside)


def build_predictor(accelerator: Accelerator, module: nn.Module, pixels: Preprocessing, views: int) -> Predictor:
    """The model on this process's device."""
    module.to(memory_format=torch.channels_last)
    module.to(accelerator.device)
    return Predictor(accelerator, module, normalizer(pixels.mean, pixels.std, accelerator.device), views=views)
