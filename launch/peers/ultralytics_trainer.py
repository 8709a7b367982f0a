"""Ultralytics' classification trainer with torchvision's EfficientNet-B0; at its best with its cache in memory."""

import tempfile

from common import Epochs, job, training_images
from ultralytics.models.yolo.classify import ClassificationTrainer

asked = job()
epochs = Epochs(len(training_images(asked)))
trainer = ClassificationTrainer(
    overrides={
        "model": "efficientnet_b0",
        "pretrained": False,
        "data": str(asked.folder),
        "imgsz": asked.size,
        "batch": asked.batch,
        "epochs": asked.epochs,
        "workers": 2 if asked.best else 0,
        "cache": "ram" if asked.best else False,
        "optimizer": "SGD",  # it has no Adadelta
        "val": False,
        "plots": False,
        "project": tempfile.mkdtemp(),
    }
)
trainer.add_callback("on_train_epoch_start", epochs.begin)
trainer.add_callback("on_train_epoch_end", epochs.end)
trainer.train()
print(epochs.speed)
