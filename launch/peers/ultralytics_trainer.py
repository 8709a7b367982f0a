"""Ultralytics' classification trainer with torchvision's EfficientNet-B0; at its best with its cache in memory."""

import tempfile
from pathlib import Path

from common import Epochs, job, training_images, workers
from ultralytics.models.yolo.classify import ClassificationTrainer

MODEL = """
nc: 2
backbone:
  - [-1, 1, TorchVision, [1280, efficientnet_b0, null, True, 2]]
head:
  - [-1, 1, Classify, [nc]]
"""
asked = job()
folder = Path(tempfile.mkdtemp())
(folder / "efficientnet-cls.yaml").write_text(MODEL)
epochs = Epochs(len(training_images(asked)))
trainer = ClassificationTrainer(
    overrides={
        "model": str(folder / "efficientnet-cls.yaml"),
        "pretrained": False,
        "data": str(asked.folder),
        "imgsz": asked.size,
        "batch": asked.batch,
        "epochs": asked.epochs,
        "workers": workers(asked),
        "cache": "ram" if asked.best else False,
        "optimizer": "SGD",  # it has no Adadelta
        "val": False,
        "plots": False,
        "project": str(folder),
    }
)
trainer.add_callback("on_train_epoch_start", epochs.begin)
trainer.add_callback("on_train_epoch_end", epochs.end)
trainer.train()
print(epochs.speed)
