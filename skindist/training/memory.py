"""When memory runs out: what to say, and how many images fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from skindist.distributed import host
from skindist.errors import OutOfMemory, TrainingError
from skindist.wording import plural


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device, or the machine, refused memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@contextmanager
def advised(images: int) -> Iterator[None]:
    """Say what to lower if memory runs out with `images` held at a time.

    Raises:
        OutOfMemory: on the process that it happened to.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory with {plural(images, 'image')} at a time: choose a smaller --train.micro_batch_size, "
            "or auto to find the largest that fits; the global batch stays the same"
        ) from error


def largest_that_fits(accelerator: Accelerator, most: int, attempt: Callable[[int], None]) -> int:
    """The largest of `most`, its half, its quarter, ... with which `attempt` fits into the memory of every process.

    Args:
        attempt: is called with a number of images on each process; it must wait for no other process.

    Raises:
        TrainingError: on every process, when not even one image fits on each.
    """
    images = most
    while True:
        try:
            attempt(images)
            fits = 1.0
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits = 0.0
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        if host.sum_ranks(torch.tensor(fits)) == accelerator.num_processes:
            return images
        if images == 1:
            raise TrainingError("out of memory with one image at a time: lower --data.image_size")
        images = -(-images // 2)
