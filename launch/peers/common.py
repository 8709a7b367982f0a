"""What the loops in this folder share. Each is started with FOLDER SIZE BATCH EPOCHS defaults|best, in an environment
that has nothing of skindist, and prints the images a second of its last epoch of training."""

import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision import transforms


class Job(NamedTuple):
    """What to train on: FOLDER/train has a folder for each class."""

    folder: Path
    size: int
    batch: int
    epochs: int
    best: bool


def job() -> Job:
    """What the command line says."""
    folder, size, batch, epochs, variant = sys.argv[1:]
    return Job(Path(folder), int(size), int(batch), int(epochs), variant == "best")


def training_images(job: Job) -> torchvision.datasets.ImageFolder:
    """Files, decoded and augmented as torchvision's references do."""
    steps = [
        transforms.RandomResizedCrop(job.size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    return torchvision.datasets.ImageFolder(str(job.folder / "train"), transforms.Compose(steps))


def batches(job: Job, images: torchvision.datasets.ImageFolder) -> DataLoader[Any]:
    """A new order in each epoch."""
    return DataLoader(images, job.batch, shuffle=True, num_workers=workers(job), persistent_workers=job.best)


def workers(job: Job) -> int:
    """Loader workers: at its best, as many as there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if job.best else 0


def model() -> torch.nn.Module:
    """EfficientNet-B0 with two classes."""
    module: torch.nn.Module = timm.create_model("efficientnet_b0", num_classes=2)
    return module


def adadelta(module: torch.nn.Module) -> torch.optim.Optimizer:
    """The reference optimizer."""
    return torch.optim.Adadelta(module.parameters(), lr=0.1, rho=0.9, eps=1e-6)


class Epochs:
    """The speed of the last epoch: call `begin` and `end` around the training of each."""

    def __init__(self, images: int) -> None:
        self.images, self.began, self.speed = images, 0.0, 0.0

    def begin(self, *_: object) -> None:
        self.began = time.perf_counter()

    def end(self, *_: object) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.speed = self.images / (time.perf_counter() - self.began)
