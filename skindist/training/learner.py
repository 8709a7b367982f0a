"""What the loop works on: a model that predicts, or one that learns, with its optimizer and averaged weights."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from skindist.data.loading import Batch
from skindist.data.transforms import mean_of_views
from skindist.precision import DepthwiseInFloat32
from skindist.training.cuda_graph import CudaGraph


@dataclass
class Predictor:
    """What predicts: the bare module, the function from uint8 to normalised images, and in how many positions each
    image is seen."""

    accelerator: Accelerator
    module: nn.Module
    normalize: Callable[[Tensor, Tensor], Tensor]
    channels_last: bool = True
    views: int = 1

    @property
    def judged(self) -> nn.Module:
        """The model whose predictions count."""
        return self.module

    def logits(self, batch: Batch, module: nn.Module) -> Tensor:
        """The mean of the logits of all views, (B, 2), by a copy that `for_prediction` made of the judged model."""
        return mean_of_views(module, self.to_device(batch)[0], self.views, self.memory_format)

    @property
    def memory_format(self) -> torch.memory_format:
        """The order in memory of what the model gets."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) as uint8 to the device, coloured and normalised there; labels (B,)."""
        device = self.accelerator.device
        aside = device.type == "cuda" and batch.images_BCHW.is_pinned()  # MPS would copy what is not there any more
        images_BCHW = batch.images_BCHW.to(device, non_blocking=aside).contiguous(memory_format=self.memory_format)
        colours_B2C = batch.colours_B2C.to(device, non_blocking=aside)
        return self.normalize(images_BCHW, colours_B2C), batch.labels_B.to(device, non_blocking=aside)


@dataclass(kw_only=True)
class Learner(Predictor):
    """What is trained and with what: the prepared (wrapped) model beside its bare module, the prepared optimizer, and
    the running average of the weights and the captured step, if there are any; then what it has done in this process.

    `pending` holds the loss and accuracy of steps, still on the device; `unaveraged` each rank's BatchNorm statistics
    from the end of an epoch to the next step, (ranks, values); `steps` counts those that this process has taken.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: ModelEmaV3 | None = None
    graph: CudaGraph | None = None
    pending: list[Tensor] = field(default_factory=list)
    unaveraged: Tensor | None = None
    steps: int = 0

    @property
    def judged(self) -> nn.Module:
        """The average of the weights where there is one."""
        return self.module if self.average is None else self.average.module

    def logits_to_learn_from(self, images_BCHW: Tensor) -> Tensor:
        """What the prepared model gives in the precision of training, (B, 2)."""
        accelerator = self.accelerator
        on_cpu = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
        graph = self.graph if self.graph and self.graph.shape == images_BCHW.shape else None
        forward = graph.forward if graph else self.model
        with DepthwiseInFloat32() if on_cpu else nullcontext():
            logits_BK: Tensor = forward(images_BCHW)
        return logits_BK

    @property
    def models(self) -> nn.ModuleList:
        """All that has BatchNorm statistics of its own."""
        return nn.ModuleList(dict.fromkeys([self.module, self.judged]))
