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

import benchmarks  # isort: skip  # noqa: F401 (before torch)
import argparse
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import PIL
import torch
import torchvision
from benchmarks import data, processes, steps
from benchmarks.beside_peers import beside_peers
from benchmarks.measuring import BATCH, Figure, draw_set

from skindist.data.loading import sample_ids
from skindist.data.prepare import prepare
from skindist.errors import UserError
from skindist.launcher import this_launch
from skindist.machine import available_cores
from skindist.recipe import DataConfig
from skindist.wording import plural

BENCHMARKS: dict[str, Callable[[Path, Path], list[Figure]]] = {
    "loader": data.loader, "training": steps.training, "plain": steps.beside_plain, "evaluation": steps.evaluation,
    "shared": steps.shared, "checkpoint": steps.checkpoint, "preparation": data.preparation, "large": data.large,
    "start": processes.start, "memory": processes.memory,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of images; without it, pictures are drawn")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="measure this alone; may be repeated")
    parser.add_argument("--peers", action="store_true", help="measure other trainers beside ours instead")
    parser.add_argument("--profile", action="store_true", help="tell what the time of a training step goes to")
    arguments = parser.parse_args()
    if arguments.profile:
        return print(steps.profile_step())
    if arguments.peers and torch.backends.mps.is_available():
        parser.error("--peers: not on a Mac's GPU (MPS), which not all trainers would use")
    ranks = this_launch().world_size
    if ranks > 1 and (arguments.only or ["training"]) != ["training"]:
        parser.error(f"{ranks} processes measure one thing: --only training")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="skindist-benchmark-") as folder:
        os.environ["SKINDIST_CACHE"] = str(Path(folder, "cache"))
        images = arguments.data or draw_set(Path(folder, "drawn"), count=600, size=256)
        if arguments.data and (why := why_not(images)):
            parser.error(why)
        if arguments.peers:
            figures = beside_peers(images, Path(folder))
        for name in arguments.only or ([] if arguments.peers else BENCHMARKS if ranks == 1 else ["training"]):
            figures += BENCHMARKS[name](images, Path(folder))
    if this_launch().rank > 0:
        return
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
    machine = f"{gpu}{available_cores()} CPU cores ({platform.machine()})"
    print(f"\n{machine}, Python {platform.python_version()}, {versions}\n")
    print("| what | skindist | instead | result |\n| --- | --- | --- | --- |")
    print("\n".join(f"| {' | '.join(figure)} |" for figure in figures))


def why_not(images: Path) -> str:
    """Why nothing can be measured with a folder of images; "" if something can."""
    try:
        train = sample_ids(prepare(DataConfig(path=str(images)), seed=0).rows, "train")
    except UserError as error:
        return str(error)
    few = f"--data {images}: {plural(len(train), 'image')} to train on, fewer than a batch of {BATCH}; give more"
    return few if len(train) < BATCH else ""


if __name__ == "__main__":
    main()
