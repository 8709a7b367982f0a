"""Lightning's Trainer; at its best with bf16-mixed, channels-last and loader workers."""

from typing import Any

import lightning
import torch
from common import Epochs, adadelta, batches, job, model, training_images
from torch import Tensor

asked = job()
images = training_images(asked)
epochs = Epochs(len(images))
layout = torch.channels_last if asked.best else torch.contiguous_format


class Model(lightning.LightningModule):  # type: ignore[misc, unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        self.module = model().to(memory_format=layout)

    def training_step(self, batch: Any, index: int) -> Tensor:
        images_BCHW, labels_B = batch
        logits_BK = self.module(images_BCHW.contiguous(memory_format=layout))
        return torch.nn.functional.cross_entropy(logits_BK, labels_B)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adadelta(self)

    def on_train_epoch_start(self) -> None:
        epochs.begin()

    def on_train_epoch_end(self) -> None:
        epochs.end()


loader = batches(asked, images)
lightning.Trainer(
    max_epochs=asked.epochs,
    precision="bf16-mixed" if asked.best else "32-true",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
).fit(Model(), loader)
print(epochs.speed)
