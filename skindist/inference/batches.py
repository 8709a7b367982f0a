"""Files in batches, which the threads of all processes work on, and their rows in the order of the files."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice, zip_longest

import torch

from skindist.data.inspection import reading_images
from skindist.data.listing import Item
from skindist.distributed import group, host
from skindist.distributed.group import Accelerator, decide
from skindist.inference.table import Row
from skindist.machine import available_cores

AHEAD = 4  # batches of each thread from one saving to the next
READERS = 8  # threads at most that read files for one GPU


def readers(accelerator: Accelerator) -> int:
    """Threads that read files for this process's GPU; call it on every process."""
    return min(READERS, max(1, available_cores() // group.processes_on_my_cores(accelerator)))


def in_order(
    accelerator: Accelerator,
    reader: Callable[[int, Sequence[Item]], list[Row]],
    files: Iterator[Item],
    first: int,
    batch: int,
    threads: int,
) -> Generator[list[Row], None, None]:
    """The rows of all files in their order, many at a time, on every process. The main process alone looks at `files`.

    While some are handed over, the next ones are being computed already.
    """
    rank, world_size = accelerator.process_index, accelerator.num_processes
    many = world_size * threads * AHEAD * batch
    before: list[Future[list[Row]]] | None = None
    with reading_images():
        pool = ThreadPoolExecutor(threads, initializer=settle, initargs=(accelerator.device,))
        used = torch.get_num_threads()
        try:
            while items := decide(accelerator, lambda: list(islice(files, many)), may_take_hours=True):
                starts = range(0, len(items), batch)[rank::world_size]
                jobs = [pool.submit(reader, first + start, items[start : start + batch]) for start in starts]
                first += len(items)
                if before is not None:
                    yield hand_over(before)
                before = jobs
            if before is not None:
                yield hand_over(before)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(used)


def settle(device: torch.device) -> None:
    """In a thread that predicts: a batch is its work alone, so that no sum depends on how many threads there are."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    elif device.type == "cuda" and device.index is not None:  # a lone process's has none: threads begin with GPU 0
        torch.cuda.set_device(device)


def hand_over(jobs: Sequence[Future[list[Row]]]) -> list[Row]:
    """The rows of all processes' batches, of which each has every n-th."""
    turns = zip_longest(*host.gather([job.result() for job in jobs], may_take_hours=True), fillvalue=[])
    return list(chain.from_iterable(chain.from_iterable(turns)))
