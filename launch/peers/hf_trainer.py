"""transformers' Trainer; at its best with bf16 and loader workers."""

import tempfile
from typing import Any

import torch
from common import Epochs, adadelta, job, model, training_images, workers
from transformers import Trainer, TrainerCallback, TrainingArguments

asked = job()
images = training_images(asked)
epochs = Epochs(len(images))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = model()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.module(pixel_values)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Clock(TrainerCallback):
    def on_epoch_begin(self, *args: Any, **options: Any) -> None:
        epochs.begin()

    def on_epoch_end(self, *args: Any, **options: Any) -> None:
        epochs.end()


def collate(rows: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    pixels, labels = zip(*rows, strict=True)
    return {"pixel_values": torch.stack(pixels), "labels": torch.tensor(labels)}


module = Model()
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    per_device_train_batch_size=asked.batch,
    num_train_epochs=asked.epochs,
    bf16=asked.best,
    use_cpu=not torch.cuda.is_available(),
    dataloader_num_workers=workers(asked),
    dataloader_persistent_workers=asked.best,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
)
optimizer = adadelta(module)
constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
Trainer(module, arguments, collate, images, callbacks=[Clock()], optimizers=(optimizer, constant)).train()
print(epochs.speed)
