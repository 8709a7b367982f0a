"""The loops that most users write, in a process of their own: it is not told how to keep memory, as skindist's is. How
threads wait is the same in both."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice

import timm
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measuring import BATCH, endless, speed

Images = Dataset[tuple[Tensor, int]]
_work: Callable[[], int]


@contextmanager
def in_a_new_process(loop: Callable[..., Callable[[], int]], *args: object) -> Iterator[Callable[[], float]]:
    """What measures a loop's images a second, again and again, in a process that has made it of `args`."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=_make, initargs=(loop, args)) as process:
        yield lambda: process.submit(_measure).result()


def _make(loop: Callable[..., Callable[[], int]], args: tuple[object, ...]) -> None:
    global _work
    _work = loop(*args)


def _measure() -> float:
    return speed(_work)


def training(name: str, device: torch.device, images: Images, workers: int, steps: int) -> Callable[[], int]:
    """Adadelta's steps in float32."""
    batches = endless(DataLoader(images, BATCH, shuffle=True, drop_last=True, num_workers=workers))
    model = timm.create_model(name, num_classes=2).to(device).train()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=0.1, rho=0.9, eps=1e-6)

    def train() -> int:
        for images_BCHW, labels_B in islice(batches, steps):
            optimizer.zero_grad()
            loss: Tensor = torch.nn.functional.cross_entropy(model(images_BCHW.to(device)), labels_B.to(device))
            torch.autograd.backward(loss)
            optimizer.step()
        return steps * BATCH

    return train


def evaluation(name: str, device: torch.device, images: Images, workers: int, batch: int) -> Callable[[], int]:
    """Predictions in float32."""
    batches = DataLoader(images, batch, num_workers=workers)
    model = timm.create_model(name, num_classes=2).to(device).eval()

    def evaluate() -> int:
        with torch.no_grad():
            return sum(len(model(images_BCHW.to(device)).cpu()) for images_BCHW, _ in batches)

    return evaluate
