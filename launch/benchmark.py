"""How fast the data path is, beside what users would write instead, and what a checkpoint costs, on this machine:

python launch/benchmark.py [--data FOLDER] [--only loader|training|plain|evaluation|shared|checkpoint|...]
python launch/benchmark.py --peers
python launch/benchmark.py --profile
accelerate launch --config_file accelerate_config.yaml --num_processes 4 launch/benchmark.py --only training

Each ratio is the median of several, of two things measured in turn on the same files. FOLDER is a folder of images with
the class folders (it may be split); without it, pictures are drawn. The results are printed as a Markdown table, with
the hardware and the versions that they hold for. Several processes, as on N GPUs, measure the training alone: all of
them together, each with batches of the same size as one alone.
"""

import argparse
import gc
import logging
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import psutil
import timm
import torch
import torchvision
from beside_peers import beside_peers
from measuring import (
    BATCH,
    SIZE,
    Figure,
    draw_set,
    endless,
    epoch_speed,
    plain_images,
    ratio_figure,
    side_by_side,
    speed,
    write_photographs,
    write_tiles,
)
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from skindist.config import Config
from skindist.data.loading import (
    Batch,
    EvalLoader,
    LesionImages,
    TrainBatches,
    eval_batches,
    loader_workers,
    make_loader,
)
from skindist.data.prepare import Prepared, prepare
from skindist.data.store import PixelStore, Source, ensure_store, store_folder
from skindist.distributed.group import join_group, leave_group
from skindist.early_stopping import EarlyStopping
from skindist.launcher import this_launch
from skindist.machine import available_cores
from skindist.prediction.evaluate import evaluate
from skindist.prediction.memory import black_images
from skindist.recipe import DataConfig, ModelConfig, TrainConfig
from skindist.run.folder import Run
from skindist.run.lock import RunLock
from skindist.training.engine import set_train_mode, train_step
from skindist.training.learner import Learner
from skindist.training.rehearsal import capture_steps
from skindist.training.saving import Saver
from skindist.training.state import TrainState
from skindist.training.trainer import build_learner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of images; without it, pictures are drawn")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="measure this alone; may be repeated")
    parser.add_argument("--peers", action="store_true", help="measure other trainers beside ours instead")
    parser.add_argument("--profile", action="store_true", help="tell what the time of a training step goes to")
    parser.add_argument("--probe", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.profile:
        return print(profile_step())
    if arguments.probe:
        return probe(*arguments.probe)
    processes = this_launch().world_size
    if processes > 1 and (arguments.only or ["training"]) != ["training"]:
        parser.error(f"{processes} processes measure one thing: --only training")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="skindist-benchmark-") as folder:
        os.environ["SKINDIST_CACHE"] = str(Path(folder, "cache"))
        data = arguments.data or draw_set(Path(folder, "drawn"), count=600, size=256)
        if arguments.peers:
            figures = beside_peers(data, Path(folder))
        for name in arguments.only or ([] if arguments.peers else BENCHMARKS if processes == 1 else ["training"]):
            figures += BENCHMARKS[name](data, Path(folder))
    if this_launch().rank > 0:
        return
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
    machine = f"{gpu}{available_cores()} CPU cores ({platform.machine()})"
    print(f"\n{machine}, Python {platform.python_version()}, {versions}\n")
    print("| what | skindist | instead | result |\n| --- | --- | --- | --- |")
    print("\n".join(f"| {' | '.join(figure)} |" for figure in figures))


def loader(data: Path, folder: Path) -> list[Figure]:
    """Augmented training batches out of one loader worker: from the store, and as torchvision's references do."""
    prepared = prepare(DataConfig(path=str(data)), seed=0)
    images = plain_images(data, folder, prepared, "train")
    theirs = DataLoader(images, BATCH, shuffle=True, num_workers=1, persistent_workers=True)
    ours = training_loader(data, prepared, workers=1)
    speeds = side_by_side(lambda: epoch_speed(ours), lambda: epoch_speed(theirs))
    what = f"loader, images/s of one worker ({len(images)} files)"
    return [ratio_figure(what, "ImageFolder + RandomResizedCrop", *speeds)]


def training(data: Path, folder: Path) -> list[Figure]:
    """The engine's steps fed by the loader, and the same steps on one batch that is in memory already."""
    config = Config(model=ModelConfig(pretrained=False))
    learner = learner_in_training(config)
    accelerator = learner.accelerator
    device, processes = accelerator.device, accelerator.num_processes
    workers = loader_workers(config.data, device, this_launch().local_world_size)
    prepared = prepare(DataConfig(path=str(data)), seed=0)
    ours = endless(training_loader(data, prepared, workers, device, rank=accelerator.process_index, ranks=processes))
    held, steps = next(ours), 200 if device.type == "cuda" else 8
    speeds = side_by_side(
        lambda: processes * speed(lambda: take_steps(learner, config, islice(ours, steps))),
        lambda: processes * speed(lambda: take_steps(learner, config, [held] * steps)),
    )
    there = f"{processes} x {device.type}, mixed precision {accelerator.mixed_precision}"
    what = f"training EfficientNet-B0 on {there}, images/s"
    leave_group(accelerator)
    return [ratio_figure(what, "one batch held in memory", *speeds)]


def plain(data: Path, folder: Path) -> list[Figure]:
    """The engine's steps with all defaults, and those of the loop that most users write: files, float32, no more."""
    config, prepared = Config(model=ModelConfig(pretrained=False)), prepare(DataConfig(path=str(data)), seed=0)
    learner = learner_in_training(config)
    accelerator = learner.accelerator
    device, workers = accelerator.device, loader_workers(config.data, accelerator.device, 1)
    steps = 200 if device.type == "cuda" else 8
    ours = endless(training_loader(data, prepared, workers, device))
    images = plain_images(data, folder, prepared, "train")
    theirs = endless(DataLoader(images, BATCH, shuffle=True, drop_last=True, num_workers=workers))
    model = timm.create_model(config.model.name, num_classes=2).to(device).train()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=0.1, rho=0.9, eps=1e-6)

    def plain_steps() -> int:
        for images_BCHW, labels_B in islice(theirs, steps):
            optimizer.zero_grad()
            loss: Tensor = torch.nn.functional.cross_entropy(model(images_BCHW.to(device)), labels_B.to(device))
            torch.autograd.backward(loss)
            optimizer.step()
        return steps * BATCH

    speeds = side_by_side(
        lambda: speed(lambda: take_steps(learner, config, islice(ours, steps))), lambda: speed(plain_steps)
    )
    what = f"training with the defaults on {device.type}, mixed precision {accelerator.mixed_precision}, images/s"
    return [ratio_figure(what, "a plain loop: ImageFolder, float32", *speeds)]


def evaluation(data: Path, folder: Path) -> list[Figure]:
    """The prediction of an epoch's validation, and that of the loop that most users write."""
    config, prepared = Config(model=ModelConfig(pretrained=False)), prepare(DataConfig(path=str(data)), seed=0)
    learner = build_learner(join_group(), config)
    device, store = learner.accelerator.device, open_store(data, prepared)
    workers = loader_workers(config.data, device, 1)
    plain_pixels = LesionImages(store, prepared.rows, SIZE, seed=0, augmented=False)
    ids = list(range(256))
    batches = make_loader(plain_pixels, eval_batches(ids, config.train.eval_batch_size, 0, 1), device, workers)
    split = EvalLoader("val", ids, batches)
    images = Subset(plain_images(data, folder, prepared, "train", augmented=False), ids)
    theirs = DataLoader(images, config.train.eval_batch_size, num_workers=workers)
    model = timm.create_model(config.model.name, num_classes=2).to(device).eval()

    def plain_evaluation() -> int:
        with torch.no_grad():
            return sum(len(model(images_BCHW.to(device)).cpu()) for images_BCHW, _ in theirs)

    speeds = side_by_side(lambda: speed(lambda: len(evaluate(learner, split).ids)), lambda: speed(plain_evaluation))
    return [ratio_figure(f"evaluation on {device.type}, float32, images/s", "a plain loop", *speeds)]


def shared(data: Path, folder: Path) -> list[Figure]:
    """Training on a CPU while another program uses one core, and with one thread less while none does."""
    config, cores = Config(model=ModelConfig(pretrained=False)), available_cores()
    learner = learner_in_training(config)
    if learner.accelerator.device.type != "cpu" or cores == 1:
        return [
            Figure("training while another program uses a core", "", "", "for two or more CPU cores, without a GPU")
        ]
    batch = black_images(BATCH, 64)  # small ones: threads wait for each other often

    def steps(threads: int, busy: bool) -> float:
        torch.set_num_threads(threads)
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        try:
            return speed(lambda: take_steps(learner, config, [batch] * 20))
        finally:
            if other:
                other.kill()
                other.wait()

    speeds = side_by_side(lambda: steps(cores, True), lambda: steps(cores - 1, False))
    what = f"training at 64 px with {cores} threads while another program uses one of {cores} cores, images/s"
    return [ratio_figure(what, f"alone with {cores - 1}", *speeds)]


def profile_step() -> str:
    """What the time of three training steps on one batch goes to: the operations that take most, in a table."""
    config = Config(model=ModelConfig(pretrained=False))
    learner, batch = learner_in_training(config), black_images(BATCH, SIZE)
    take_steps(learner, config, [batch] * 3)
    with torch.profiler.profile() as profiler:
        take_steps(learner, config, [batch] * 3)
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=50))


def learner_in_training(config: Config) -> Learner:
    """What a run trains, when its steps begin."""
    learner = build_learner(join_group(), config)
    capture_steps(learner, config, [BATCH * learner.accelerator.num_processes])
    set_train_mode(learner.model, False)
    return learner


def take_steps(learner: Learner, config: Config, batches: Iterable[Batch]) -> int:
    """An optimizer step of the engine on each batch; returns how many images that were."""
    images = 0
    for batch in batches:
        train_step(learner, [batch], len(batch.ids_B) * learner.accelerator.num_processes, 0, config)
        images += len(batch.ids_B)
    return images


def checkpoint(data: Path, folder: Path) -> list[Figure]:
    """How long training waits for a checkpoint of EfficientNet-B0 and Adadelta, and what it costs beside the steps."""
    config = Config(model=ModelConfig(pretrained=False))
    learner = learner_in_training(config)
    device, steps = learner.accelerator.device, 200 if torch.cuda.is_available() else 10
    batch = black_images(BATCH, SIZE)
    state, stopping, waits = TrainState(), EarlyStopping(2, 0.001, "min"), []

    def steps_and_save(saver: Saver | None) -> int:
        images = take_steps(learner, config, [batch] * steps)
        if saver:
            state.global_step += 1
            begun = time.perf_counter()
            saver.save(state, stopping)
            waits.append(time.perf_counter() - begun)
        return images

    with Saver(Run(folder / "run"), learner, config, [], RunLock()) as saver:
        speeds = side_by_side(lambda: speed(lambda: steps_and_save(saver)), lambda: speed(lambda: steps_and_save(None)))
        state.global_step += 1
        begun = time.perf_counter()
        saver.save(state, stopping)
        saver.load(state.global_step)
    at_once, wait = time.perf_counter() - begun, statistics.median(waits[1:])
    share = wait / (60 * (config.checkpoint.every_minutes or math.inf))
    return [
        Figure(
            "wait of training for a checkpoint",
            f"{wait:.3f} s",
            f"{at_once:.2f} s (written and read at once)",
            f"{share:.3%} at the default interval",
        ),
        ratio_figure(
            f"training on {device.type} with a checkpoint after every {steps} steps, images/s", "without", *speeds
        ),
    ]


def preparation(data: Path, folder: Path) -> list[Figure]:
    """From files never seen to pixels: inspection, duplicates and store, and plain decoding and resizing alone."""
    large = folder / "large"
    count = write_photographs(large, 96)
    threads = available_cores()

    def plain() -> int:
        def decode(file: Path) -> np.ndarray[Any, Any]:
            with Image.open(file) as image:
                return np.asarray(image.convert("RGB").resize((336, SIZE), Image.Resampling.BICUBIC))

        with ThreadPoolExecutor(threads) as pool:
            return len(list(pool.map(decode, sorted(large.glob("*/*.jpg")))))

    def whole() -> int:
        shutil.rmtree(os.environ["SKINDIST_CACHE"], ignore_errors=True)
        open_store(large, prepare(DataConfig(path=str(large)), seed=0))
        return count

    speeds = side_by_side(lambda: speed(whole), lambda: speed(plain), rounds=3)
    what = f"first preparation of 3000 x 2000 JPEGs, images/s, {threads} threads"
    return [ratio_figure(what, "PIL decode + resize alone", *speeds)]


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


BENCHMARKS: dict[str, Callable[[Path, Path], list[Figure]]] = {
    "loader": loader, "training": training, "plain": plain, "evaluation": evaluation, "shared": shared,
    "checkpoint": checkpoint, "preparation": preparation, "start": start, "memory": memory,
}  # fmt: skip


def run_probe(name: str, data: Path) -> str:
    """What `probe` prints in a new process."""
    command = [sys.executable, __file__, "--probe", name, str(data), str(time.time())]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def probe(name: str, data: str, begun: str) -> None:
    """In a process of its own: open the folder, read one batch (or all), and print seconds or MiB."""
    logging.disable(logging.INFO)
    ready = time.time()
    prepared = prepare(DataConfig(path=data, num_workers=0), seed=0)
    batches = training_loader(Path(data), prepared, workers=0, size=64)
    if name == "memory":
        config = Config(model=ModelConfig(pretrained=False))
        learner = learner_in_training(config)
        epoch = iter(batches)
        take_steps(learner, config, islice(epoch, 3))
        for _ in epoch:
            pass
        gc.collect()
        print(psutil.Process().memory_info().rss / 2**20)
        return
    next(iter(batches))
    print(time.time() - ready, time.time() - float(begun))


def training_loader(
    data: Path,
    prepared: Prepared,
    workers: int,
    device: torch.device | None = None,
    size: int = SIZE,
    rank: int = 0,
    ranks: int = 1,
) -> DataLoader[Batch]:
    """skindist's own loader of the training images, in batches of `BATCH` on each process."""
    store = open_store(data, prepared, size)
    images = LesionImages(store, prepared.rows, size, seed=0, augmented=True)
    ids = [index for index, row in enumerate(prepared.rows) if row.split == "train"]
    batches = TrainBatches(ids, TrainConfig(batch_size=BATCH * ranks), seed=0, rank=rank, world_size=ranks)
    return make_loader(images, batches, device or torch.device("cpu"), workers)


def open_store(data: Path, prepared: Prepared, size: int = SIZE) -> PixelStore:
    """The pixels of all images, prepared if need be."""
    rows = zip(prepared.rows, prepared.sizes, strict=True)
    sources = [Source(data / row.path, row.sha256, *shape) for row, shape in rows]
    cache = Path(os.environ["SKINDIST_CACHE"])
    ensure_store(cache, sources, size, "bicubic")
    return PixelStore(store_folder(cache, sources, size, "bicubic"))


if __name__ == "__main__":
    main()
