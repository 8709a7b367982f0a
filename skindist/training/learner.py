"""What the loop works on: a model that learns, with its optimizer and averaged weights."""

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from skindist.cpu_kernels import FasterOnCPU
from skindist.folding import Pairs, folded
from skindist.prediction.predictor import Predictor
from skindist.training.cuda_graph import Graphs, forward_through


class RunningAverage(ModelEmaV3):
    """The average of a module's weights so far, in which step t has a decay of t / (t + 3): it spans the last third of
    the steps, however many there are (a power function of time; Karras et al., "Analyzing and improving the training
    dynamics of diffusion models", CVPR 2024).

    timm looks for all tensors at each step, while a GPU waits. Here they are looked for once.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__(module, decay=decay, use_warmup=True, warmup_gamma=3.0, warmup_power=1.0)
        (self.averages, self.counts), (self.latest, self.latest_counts) = map(by_kind, (self.module, module))

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """One step: the average of weights and statistics comes nearer to them. BatchNorm's counts are copied."""
        torch._foreach_lerp_(self.averages, self.latest, weight=1 - decay)
        if self.counts:
            torch._foreach_copy_(self.counts, self.latest_counts)


def by_kind(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of a module's state: those of real numbers, and the others."""
    tensors = module.state_dict().values()
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]


@dataclass(kw_only=True)
class Learner(Predictor):
    """What is trained and with what: the prepared (wrapped) model beside its bare module, the prepared optimizer, and
    the running average of the weights and the captured steps, if there are any, and what BatchNorm can be folded into;
    then what it has done in this process.

    `pending` holds the loss and accuracy of steps, still on the device; `unaveraged` each rank's BatchNorm statistics
    from the end of an epoch to the next step, (ranks, values); `steps` counts those that this process has taken.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: RunningAverage | None = None
    graphs: Graphs = field(default_factory=dict)
    pairs: Pairs = ()
    pending: list[Tensor] = field(default_factory=list)
    unaveraged: Tensor | None = None
    steps: int = 0

    @property
    def judged(self) -> nn.Module:
        """The average of the weights where there is one."""
        return self.module if self.average is None else self.average.module

    def logits_to_learn_from(self, images_BCHW: Tensor) -> Tensor:
        """What the prepared model gives in the precision of training, (B, 2)."""
        faster = FasterOnCPU() if self.accelerator.device.type == "cpu" else nullcontext()
        replay = self.graphs.get(images_BCHW.shape)
        with faster, forward_through(self.module, replay) if replay else folded(self.pairs):
            logits_BK: Tensor = self.model(images_BCHW)
        return logits_BK

    @property
    def models(self) -> nn.ModuleList:
        """All that has BatchNorm statistics of its own."""
        return nn.ModuleList(dict.fromkeys([self.module, self.judged]))
