"""When memory runs out: what to say, and how many images fit."""

import gc
import logging
import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import shorten

import torch
from torch.utils.data import dataloader

from skindist.data.loading import Batch
from skindist.data.transforms import IDENTITY
from skindist.distributed import host
from skindist.distributed.group import Accelerator
from skindist.errors import OutOfMemory, TrainingError, UserError
from skindist.folding import for_prediction
from skindist.prediction.predictor import Predictor
from skindist.wording import plural

OTHER_WORDS = (
    "out of memory",  # CUDA, HIP and MPS, where torch has no class for it; NCCL's "Cuda failure 'out of memory'"
    "allocate memory",  # "can't" by torch on a CPU, "cannot" by the system
    "hipErrorOutOfMemory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # these three: no room for the library's own workspace
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "Unable to find a valid cuDNN algorithm",  # each one that it tried needed more
    "unable to find an engine to execute this computation",
)
"""What GPU libraries say instead when there is no memory left for them."""
log = logging.getLogger("skindist")


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device, or the machine, refused memory."""
    if isinstance(error, OutOfMemory | torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words.lower() in str(error).lower() for words in OTHER_WORDS)


def is_death_of_a_worker(error: Exception) -> bool:
    """Whether torch says that a loader worker has died, or one of its batches cannot be fetched before torch hears of
    it."""
    if isinstance(error, ConnectionRefusedError | ConnectionResetError | EOFError):
        frames = traceback.walk_tb(error.__traceback__)
        return any(frame.f_globals.get("__name__") == dataloader.__name__ for frame, _ in frames)
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


@contextmanager
def advised(images: int, evaluating: bool = False) -> Iterator[None]:
    """Say what to change if memory runs out with `images` held at a time, or the model has no deterministic kernel.

    Raises:
        OutOfMemory: on the process that it happened to.
        UserError: on every process, as all do the same.
    """
    try:
        yield
    except Exception as error:
        if "not have a deterministic implementation" in str(error):
            what = str(error).split(" does not ")[0]
            raise UserError(
                f"the model needs {what}, which does not repeat its sums on a GPU: use a CPU, or, in training, choose "
                "--train.deterministic false or another --model.name"
            ) from error
        if not is_out_of_memory(error):
            raise
        remedy = (
            "use a device with more memory, or in training a smaller --train.eval_batch_size; the figures stay the same"
            if evaluating
            else "choose a smaller --train.micro_batch_size, or auto to find the largest that fits, in a new "
            "--run.dir; the global batch stays the same"
        )
        raise OutOfMemory(f"out of memory with {plural(images, 'image')} at a time: {remedy}") from error


@contextmanager
def memory_explained() -> Iterator[None]:
    """Say what to do where memory runs out for what no number of images changes, or kills a loader worker, which cannot
    say so itself.

    Raises:
        OutOfMemory: on the process that it happened to.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                "out of memory for the model itself, or in training for its optimizer and the average of its weights: "
                "use a device with more memory, end what else uses it, or in training choose a smaller --model.name"
            ) from error
        if not is_death_of_a_worker(error):
            raise
        forked = multiprocessing.get_start_method() == "fork"
        guard = "" if forked else '; a script that calls fit needs if __name__ == "__main__":, as workers import it'
        raise OutOfMemory(
            "a loader worker was killed: its machine or container has too little memory, or shared memory (docker run "
            f"--shm-size 2g); give more, or in training choose fewer --data.num_workers{guard}"
        ) from error


def largest_that_fits(accelerator: Accelerator, most: int, attempt: Callable[[int], None]) -> int:
    """The largest of `most`, its half, its quarter, ... with which `attempt` fits into the memory of every process.

    Args:
        attempt: is called with a number of images on each process; it must wait for no other process.

    Raises:
        TrainingError: on every process, when not even one image fits on each.
    """
    images, reason = most, ""
    while True:
        try:
            attempt(images)
            fits = 1.0
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits, reason = 0.0, str(error.__cause__ or error)  # not the error: it holds what did not fit
        if not fits:
            gc.collect()  # what failed may hold itself, and with it what filled a GPU
        if accelerator.device.type != "cpu":
            torch.get_device_module(accelerator.device).empty_cache()
        if host.sum_ranks(torch.tensor(fits)) == accelerator.num_processes:
            return images
        if images == 1:
            reason = next(filter(None, host.gather(reason)))
            raise TrainingError(
                "out of memory with one image at a time: use a device with more memory, or train with a smaller "
                f"--data.image_size ({shorten(reason, 300)})"
            )
        images = -(-images // 2)


def images_at_a_time(predictor: Predictor, image_size: int, most: int) -> int:
    """How many images, at most `most`, every process can predict at a time: on a GPU this is tried.

    Raises:
        TrainingError: on every process, when not even one fits on each.
    """
    if predictor.accelerator.device.type == "cpu":
        return most
    found = largest_that_fits(predictor.accelerator, most, lambda count: try_prediction(predictor, count, image_size))
    if found < most and predictor.accelerator.is_main_process:
        log.info(f"memory: {plural(found, 'image')} at a time")
    return found


@torch.inference_mode()
def try_prediction(predictor: Predictor, count: int, image_size: int) -> None:
    """Predict so many black images."""
    predictor.logits(black_images(count, image_size), for_prediction(predictor.judged))


def black_images(count: int, image_size: int) -> Batch:
    """A batch of them, of both classes in turn."""
    images_BCHW = torch.zeros(count, 3, image_size, image_size, dtype=torch.uint8)
    return Batch(torch.arange(count), images_BCHW, torch.arange(count) % 2, IDENTITY.repeat(count, 1, 1))
