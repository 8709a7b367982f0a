"""Where a run is, whether it may be continued, what it keeps from before, and its claim by one writer."""

import dataclasses
import os
import secrets
import time
from pathlib import Path

from skindist.config import Config, changes
from skindist.data.prepare import Prepared, prepare, prepare_again
from skindist.data.scan import CLASSES, SPLIT_WORDS
from skindist.errors import UserError
from skindist.files import refuse_within, why_unwritable, write_atomic
from skindist.launcher import this_launch
from skindist.machine import cache_folder
from skindist.run.folder import Run
from skindist.run.lock import RunLock
from skindist.run.owner import read_owner


def choose_folder(config: Config) -> Run:
    """The folder of this run; nothing is written yet.

    Raises:
        UserError: `run.resume` forbids what is there, the run there has another config or has lost its checkpoints,
            the cache lies within the images, or the folder does, cannot be made, or is being written by another
            process.
    """
    launched, starter = this_launch().began, this_launch().launcher_pid or os.getpid()  # the same after a restart
    name = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(launched))}-{starter}-{config.model.name}"
    run = Run(Path(config.run.dir or Path("runs", name).absolute()))
    try:
        begun = run.exists
    except OSError as error:  # a folder on the way may not be read, or has too long a name
        raise UserError(f"--run.dir {run.path}: cannot be read ({error.strerror})") from None
    if run.path.exists() and not run.path.is_dir():
        raise UserError(f"--run.dir {run.path}: is not a folder")
    if not begun:
        refuse_within(run.path, "--run.dir", config.data.path)
        refuse_within(cache_folder(config.data.cache_dir), "--data.cache_dir", config.data.path)
        refuse_foreign(run)
    saved = any(run.checkpoints.glob("step-*"))
    if run.results_file.exists() and not saved:
        raise UserError(
            f"--run.dir {run.path}: the run is finished, and its checkpoints are gone; give a new folder to train anew"
        )
    if config.run.resume == "must" and not saved:
        raise UserError(f"--run.resume must: no checkpoint in {run.path}; give the --run.dir of the run to continue")
    in_this_launch = launched is not None and begun and run.began >= launched
    if config.run.resume == "never" and begun and not in_this_launch:
        raise UserError(f"--run.resume never: {run.path} already holds a run; give another --run.dir")
    if begun:
        refuse_another_config(run, config)
    if why := why_unwritable(run.path):
        raise UserError(f"--run.dir {run.path}: cannot be written ({why})")
    refuse_written(run)
    return run


def refuse_foreign(run: Run) -> None:
    """Raise UserError where the folder is no run, but holds images, or files that a run would write over."""
    if images := [name for name in (*CLASSES, *SPLIT_WORDS) if (run.path / name).is_dir()]:
        raise UserError(f"--run.dir {run.path}: holds images ({', '.join(images)}), and no run; give another folder")
    later = (run.results_file, run.record, run.report, run.model, run.errors)  # none is there before the config is
    if kept := [path.name for path in later if path.exists()]:
        raise UserError(
            f"--run.dir {run.path}: holds no run ({run.config_file.name} is missing), but what a run would write over "
            f"({', '.join(kept)}); give another folder"
        )


def refuse_written(run: Run) -> None:
    """Raise UserError where a process of this machine is seen to write the run. `claim` has the last word: what other
    machines do takes time to see, and an orphan may end by itself until then."""
    owner = read_owner(run.lock)
    if owner and owner.lives_here and not owner.is_orphan:
        with RunLock() as lock:
            lock.take(run.lock)


def refuse_another_config(run: Run, config: Config) -> None:
    """Raise UserError where the run that is there has another config, and name the difference."""
    if differs := other_values(run, config):
        raise UserError(
            f"--run.dir {run.path} holds a run with another config: {'; '.join(differs)}. "
            "Give the same values to continue it, or another --run.dir to start a new one"
        )


def other_values(run: Run, config: Config) -> list[str]:
    """What a run that has begun would have to change to go on with this config."""
    return changes(run.saved_config(), keep_micro_batch_size(config, run).to_dict())


def keep_micro_batch_size(config: Config, run: Run) -> Config:
    """The config with the micro-batch that the run being continued has found, for BatchNorm's sake, and no more images
    in evaluation than it found to fit. A run that was not to find one stays as it is, and refuses this config."""
    if config.train.micro_batch_size != "auto" or not run.exists:
        return config
    found = run.saved_config()["train"]
    if found["micro_batch_size"] is None:
        return config
    fits = min(config.train.eval_batch_size, found["eval_batch_size"])
    train = dataclasses.replace(config.train, micro_batch_size=found["micro_batch_size"], eval_batch_size=fits)
    return dataclasses.replace(config, train=train)


def prepare_data(config: Config, run: Run) -> Prepared:
    """Scan the images; keep the split of the run being continued, or make a new one. Nothing is written to the run."""
    if not run.exists:
        return prepare(config.data, config.run.seed)
    return dataclasses.replace(prepare_again(config.data, run.split()), quarantine=run.quarantine())


def claim(run: Run, config: Config, data: Prepared, lock: RunLock) -> str:
    """Become the run's one writer; a new run gets its folder and its beginning.

    Returns:
        The run's id in W&B, one for all its attempts: an agent's of a sweep, or 8 hexadecimal digits.

    Raises:
        UserError: another process is writing this run, or has begun it with other settings or images.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--run.dir {run.path}: cannot be created ({error.strerror})") from None
    lock.take(run.lock)
    if run.exists:  # maybe since this command looked
        refuse_another_config(run, config)
        if run.split() != data.rows:
            raise UserError(f"--run.dir {run.path}: another command has begun a run there meanwhile; give another")
    if not run.id_file.exists():
        write_atomic(run.id_file, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    if not run.exists:
        run.write_beginning(config, data.rows, data.quarantine)
    return run.id_file.read_text()
