"""The run folder: where it is, whether it may be continued, who writes it."""

import csv
import dataclasses
import multiprocessing
import os
import secrets
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from skindist.config import Config, changes
from skindist.data.prepare import Prepared, prepare, prepare_again
from skindist.data.split import read_split, write_split
from skindist.errors import UserError
from skindist.files import write_atomic, write_csv
from skindist.run.lock import RunLock


def find_run(config: Config) -> Path:
    """The folder of this run; nothing is written yet.

    Raises:
        UserError: `run.resume` forbids what is there, or the run there has another config.
    """
    launched = launch_time()
    name = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(launched))}-{config.model.name}"
    run = Path(config.run.dir or Path("runs", name).absolute())
    if run.exists() and not run.is_dir():
        raise UserError(f"--run.dir {run}: is not a folder")
    started = (run / "config.yaml").exists()
    if config.run.resume == "must" and not list(run.glob("checkpoints/step-*")):
        raise UserError(f"--run.resume must: no checkpoint in {run}; give the --run.dir of the run to continue")
    if config.run.resume == "never" and started and not _began_since(run, launched):
        raise UserError(f"--run.resume never: {run} already holds a run; give another --run.dir")
    if started and (differences := changes(_saved_config(run), settle(config, run).to_dict())):
        raise UserError(
            f"--run.dir {run} holds a run with another config: {'; '.join(differences)}. "
            "Give the same values to continue it, or another --run.dir to start a new one"
        )
    return run


def launch_time() -> float | None:
    """When a launcher that restarts its workers (torchrun) was started, the same in each attempt; None without one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or multiprocessing.parent_process():
        return None  # the parent is no launcher, or a notebook, which may start one run after the other
    launcher = psutil.Process().parent()
    return launcher.create_time() if launcher else None


def _began_since(run: Path, launched: float | None) -> bool:
    """Whether this launch began the run, in an earlier attempt: config.yaml is written once."""
    return launched is not None and (run / "config.yaml").stat().st_mtime >= launched


def settle(config: Config, run: Path) -> Config:
    """The config with the micro-batch that the run being continued has found, for BatchNorm's sake."""
    if config.train.micro_batch_size != "auto" or not (run / "config.yaml").exists():
        return config
    found = _saved_config(run)["train"]["micro_batch_size"]
    return dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch_size=found))


def _saved_config(run: Path) -> dict[str, Any]:
    saved: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return saved


def prepare_data(config: Config, run: Path) -> Prepared:
    """Scan the images; keep the split of the run being continued, or make a new one. Nothing is written to the run."""
    if not (run / "split.csv").exists():
        return prepare(config.data, config.run.seed)
    prepared = prepare_again(config.data, read_split(run / "split.csv"))
    return dataclasses.replace(prepared, quarantine=read_quarantine(run / "quarantine.csv"))


def read_quarantine(path: Path) -> list[tuple[str, str]]:
    """The images that a run left out when it began, and why."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [(row["path"], row["reason"]) for row in csv.DictReader(file)]


def open_run(run: Path, config: Config, prepared: Prepared, lock: RunLock) -> str:
    """Create or claim the run folder; write config.yaml, split.csv and quarantine.csv once.

    The saved config names no run folder, so `--config RUN/config.yaml` repeats the run in a new one.

    Returns:
        The run's id in W&B, 8 hexadecimal digits: one for all its attempts.

    Raises:
        UserError: another process is writing this run.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--run.dir {run}: cannot be created ({error.strerror})") from None
    lock.take(run / ".lock")
    if not (run / ".id").exists():
        write_atomic(run / ".id", secrets.token_hex(4))
    if not (run / "config.yaml").exists():
        write_csv(run / "quarantine.csv", ("path", "reason"), prepared.quarantine)
        write_split(run / "split.csv", prepared.rows)
        saved = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=None))
        write_atomic(run / "config.yaml", yaml.safe_dump(saved.to_dict(), sort_keys=False))
    return (run / ".id").read_text()
