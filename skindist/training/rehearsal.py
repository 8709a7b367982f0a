"""Passes that change nothing, before training begins: to settle DDP's buckets, to find how many images fit, and to
capture the steps of a GPU."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from skindist.config import Config
from skindist.data.loading import equal_parts
from skindist.prediction.memory import advised, black_images, largest_that_fits, try_prediction
from skindist.training.cuda_graph import capture, hindrance
from skindist.training.engine import set_train_mode
from skindist.training.learner import Learner

log = logging.getLogger("skindist")


def warm_up(learner: Learner, image_size: int) -> None:
    """Two forward and backward passes that change no weight, so that DDP settles its gradient buckets.

    DDP lays out its buckets anew after the first pass, and with 3 or more ranks the layout decides in which order a
    gradient is summed: without this, the first step of a resumed run would not repeat the uninterrupted run's bits.
    """
    if learner.accelerator.num_processes == 1:
        return
    for _ in range(2):
        rehearse(learner, 2, image_size)


def rehearse(learner: Learner, count: int, image_size: int) -> None:
    """A forward and a backward pass over `count` black images, which changes neither weights nor statistics."""
    set_train_mode(learner.model, keep_statistics=True)
    try:
        with advised(count):
            images_BCHW, labels_B = learner.to_device(black_images(count, image_size))
            logits_BK = learner.logits_to_learn_from(images_BCHW)
            learner.accelerator.backward(nn.functional.cross_entropy(logits_BK, labels_B))
    finally:
        learner.optimizer.zero_grad(set_to_none=True)


def capture_steps(learner: Learner, config: Config, sizes: Sequence[int]) -> None:
    """Let a GPU replay this process's passes over global batches of these sizes, where that is asked for and can be."""
    accelerator = learner.accelerator
    if not config.train.cuda_graph or accelerator.device.type != "cuda":
        return
    ranks, rank = accelerator.num_processes, accelerator.process_index
    if reason := hindrance(config, max(sizes), ranks):
        log.info(f"--train.cuda_graph is not used: {reason}")
        return
    set_train_mode(learner.model, config.keeps_statistics)
    mine = sorted({equal_parts(size, ranks)[rank] for size in sizes} - {0, 1}, reverse=True)  # those may be refused
    if not mine:
        log.info("--train.cuda_graph is not used: this process has one image at a time")
        return
    batches = [learner.to_device(black_images(count, config.data.image_size))[0] for count in mine]
    learner.graphs = capture(learner.module, batches, learner.pairs)


def find_micro_batch_size(learner: Learner, image_size: int, most: int) -> int:
    """The largest number of images, at most `most`, of which every process can hold a pass in memory.

    Raises:
        TrainingError: on every rank, when not even one image fits.
    """

    def attempt(count: int) -> None:
        with learner.accelerator.no_sync(learner.model), room_for_the_optimizer(learner):
            rehearse(learner, count, image_size)  # one that fails must leave no other waiting

    return largest_that_fits(learner.accelerator, most, attempt)


def find_eval_batch_size(learner: Learner, image_size: int, most: int) -> int:
    """The same for the prediction of so many images, which may be far more than training holds at a time."""

    def attempt(count: int) -> None:
        with room_for_the_optimizer(learner):
            try_prediction(learner, count, image_size)

    return largest_that_fits(learner.accelerator, most, attempt)


@contextmanager
def room_for_the_optimizer(learner: Learner) -> Iterator[None]:
    """Four times the weights are set aside, for the optimizer's moments and what its step needs beside them."""
    aside = [torch.empty_like(weight) for weight in learner.module.parameters() for _ in range(4)]
    yield
    del aside
