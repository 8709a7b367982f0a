"""Shared by all tests: small drawn data, a config that trains in seconds, and no way out to the network."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from skindist.data.demo import write_demo_data

TINY = [
    "--model.name=test_resnet",
    "--model.pretrained=false",
    "--data.image_size=32",
    "--data.fractions=[0.6,0.2,0.2]",
    "--train.batch_size=12",
    "--train.epochs=2",
    "--train.log_every=2",
]
"""Flags of a run that takes a second of training."""


def pytest_configure() -> None:
    """Whatever the shell says, tests are offline, start as one process and keep out of the user's cache."""
    os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true")
    os.environ["SKINDIST_CACHE"] = tempfile.mkdtemp(prefix="skindist-tests-")
    for variable in ("WANDB_API_KEY", "RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        os.environ.pop(variable, None)


def pytest_unconfigure() -> None:
    """Remove the pixels that the tests prepared."""
    shutil.rmtree(os.environ.pop("SKINDIST_CACHE"), ignore_errors=True)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 drawn lesions, 30 of each class, 32 pixels wide."""
    folder = tmp_path_factory.mktemp("data") / "demo"
    write_demo_data(folder, count=60, size=32)
    return folder
