"""Train the same images with skindist and with other trainers, each in a virtual environment of its own, in turn:

python launch/benchmark.py --peers [--data FOLDER]

The loops that drive the others are in `launch/peers/`. A trainer that cannot be installed, or that fails, is a row that
says so.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from benchmarks.measuring import BATCH, SIZE, Figure, plain_images, ratio_of
from skindist.data.prepare import prepare
from skindist.recipe import DataConfig

LAUNCH = Path(__file__).parents[1]
IMAGES = 2048 if torch.cuda.is_available() else 256
EPOCHS, ROUNDS = 2, 3


class Peer(NamedTuple):
    """Another trainer, and the packages that it needs beside torch, torchvision and timm."""

    name: str
    script: str
    packages: tuple[str, ...] = ()


PEERS = (
    Peer("a plain loop", "plain.py"),
    Peer("timm train.py", "timm_script.py"),
    Peer("transformers Trainer", "hf_trainer.py", ("transformers[torch]",)),
    Peer("Lightning", "lightning_trainer.py", ("lightning",)),
    Peer("Ultralytics", "ultralytics_trainer.py", ("ultralytics",)),
)


def beside_peers(data: Path, folder: Path, peers: tuple[Peer, ...] = PEERS) -> list[Figure]:
    """A line for each other trainer with its defaults, and with its best flags."""
    images = class_folders(data, folder)
    places = tqdm(peers, "installing", disable=None)
    pythons = {peer.name: environment(peer, folder / "environments") for peer in places}
    ours: list[float] = []
    theirs: dict[tuple[str, str], list[float]] = {}
    failed: dict[tuple[str, str], str] = {}
    asked = list(itertools.product((peer.name for peer in peers), ("defaults", "best flags")))
    for turn in tqdm(range(ROUNDS), "measuring", disable=None):
        ours.append(our_speed(images / "train", folder / f"run{turn}"))
        for peer, which in zip((peer for peer in peers for _ in range(2)), asked, strict=True):
            try:
                speed = peers_speed(pythons[peer.name], peer, images, which[1].split()[0])
                theirs.setdefault(which, []).append(speed)
            except RuntimeError as error:
                failed[which] = str(error)
    return [figure(", ".join(which), ours, theirs.get(which, []), failed.get(which)) for which in asked]


def figure(what: str, ours: list[float], theirs: list[float], failed: str | None) -> Figure:
    """One line of the table: medians, and the ratio of each round."""
    mine = f"{statistics.median(ours):.1f}"
    if failed:
        return Figure(f"training, images/s: {what}", mine, "", f"not measured: {failed}")
    return Figure(f"training, images/s: {what}", mine, f"{statistics.median(theirs):.1f}", ratio_of(ours, theirs))


def class_folders(data: Path, folder: Path) -> Path:
    """A few images as each of them takes them: train and val, each with a folder for each class."""
    prepared = prepare(DataConfig(path=str(data)), seed=0)
    files = [Path(name) for name, _ in plain_images(data, folder, prepared, "train").samples]  # benign ones first
    for split, count in (("train", IMAGES), ("val", 16)):
        chosen = files[:: max(1, len(files) // count)][:count]
        for file in chosen:
            link = folder / "same images" / split / ("benign", "malignant")[int(file.parent.name)] / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(file.resolve())
    return folder / "same images"


def environment(peer: Peer, folder: Path) -> Path | str:
    """The Python of a new virtual environment with what the trainer needs; else why there is none."""
    place = folder / peer.script.removesuffix(".py")
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    here = [f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "torchvision", "timm")]
    done = subprocess.run([python, "-m", "pip", "install", "-q", *here, *peer.packages], capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    asked = [str(python), "-c", "import torch; print(torch.cuda.is_available())"]
    theirs = subprocess.run(asked, env=on_one_gpu(), capture_output=True, text=True).stdout.strip() or "an error"
    if theirs != (ours := str(torch.cuda.is_available())):
        return f"whether torch finds a GPU: {ours} here, {theirs} in its environment"
    return python


def on_one_gpu() -> dict[str, str] | None:
    """The environment of each trainer: some would take all GPUs of the machine. None: that of this process."""
    if not torch.cuda.is_available():
        return None
    return os.environ | {"CUDA_VISIBLE_DEVICES": (os.environ.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0]}


def peers_speed(python: Path | str, peer: Peer, images: Path, variant: str) -> float:
    """Images a second of the last epoch.

    Raises:
        RuntimeError: it is not installed, or it failed.
    """
    if isinstance(python, str):
        raise RuntimeError(python)
    script = LAUNCH / "peers" / peer.script
    command = [str(python), str(script), str(images), str(SIZE), str(BATCH), str(EPOCHS), variant]
    done = subprocess.run(command, env=on_one_gpu(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout.split()[-1])


def our_speed(images: Path, run: Path) -> float:
    """Images a second of the last epoch of the main job with its defaults."""
    given = {
        "data.path": images, "run.dir": run, "model.pretrained": "false", "train.epochs": EPOCHS,
        "train.freeze_batchnorm": "true",  # the default on pretrained weights, which need not be fetched for this
        "train.batch_size": BATCH, "data.image_size": SIZE, "tracking.wandb": "disabled",
    }  # fmt: skip
    command = [sys.executable, str(LAUNCH / "train.py"), *(f"--{flag}={value}" for flag, value in given.items())]
    subprocess.run(command, env=on_one_gpu(), check=True, capture_output=True, text=True)
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float([event["train/images_per_second"] for event in events if "train/images_per_second" in event][-1])
