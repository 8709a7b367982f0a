"""What a new process takes: the seconds until its first batch, and its memory after an epoch."""

import gc
import logging
import os
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import psutil

from benchmarks.measuring import Figure, training_loader, write_tiles
from benchmarks.steps import learner_in_training, take_steps
from skindist.data.prepare import prepare
from skindist.recipe import DataConfig


def start(data: Path, folder: Path) -> list[Figure]:
    """A new process on a folder of 10,000 images that an earlier one has prepared."""
    many = write_tiles(folder / "10000", 10_000)
    run_probe("first", many)
    seconds = [run_probe("start", many) for _ in range(3)]
    inner, whole = (statistics.median(float(line.split()[part]) for line in seconds) for part in (0, 1))
    return [
        Figure("second start on 10,000 images, to the first batch", f"{inner:.2f} s", "", "after the imports"),
        Figure("the same, from the start of the process", f"{whole:.2f} s", "", f"{whole - inner:.2f} s are imports"),
    ]


def memory(data: Path, folder: Path) -> list[Figure]:
    """Resident memory of a training process after an epoch of the loader over 5,000 and over 50,000 images."""
    few, many = write_tiles(folder / "5000", 5_000), write_tiles(folder / "50000", 50_000)
    used = []
    for tiles in (few, many):
        run_probe("first", tiles)
        used.append(float(run_probe("memory", tiles)))
    small, large = used
    sizes = f"{large:.0f} MiB with 50,000", f"{small:.0f} MiB with 5,000 images"
    return [Figure("resident memory after an epoch", *sizes, f"{large / small:.2f}x")]


def run_probe(name: str, data: Path) -> str:
    """What `probe` prints in a new process."""
    command = [sys.executable, "-m", "benchmarks.processes", name, str(data), str(time.time())]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def probe(name: str, data: str, begun: str) -> None:
    """In a process of its own: open the folder, read one batch (or all), and print seconds or MiB."""
    logging.disable(logging.INFO)
    ready = time.time()
    prepared = prepare(DataConfig(path=data, num_workers=0), seed=0)
    batches = training_loader(Path(data), prepared, workers=0, size=64)
    if name == "memory":
        learner = learner_in_training()
        epoch = iter(batches)
        take_steps(learner, islice(epoch, 3))
        for _ in epoch:
            pass
        gc.collect()
        print(psutil.Process().memory_info().rss / 2**20)
        return
    next(iter(batches))
    print(time.time() - ready, time.time() - float(begun))


if __name__ == "__main__":
    probe(*sys.argv[1:])
