"""The runs of `skindist folds`: which of them are finished; those that are left, some side by side."""

import logging
import os
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tqdm import tqdm

from skindist.errors import UserError
from skindist.launcher import side_by_side, this_launch
from skindist.machine import available_cores, gpus
from skindist.programs import NO_TRAINING, last_words
from skindist.run.folder import Run
from skindist.run.lock import try_flock
from skindist.run.owner import read_owner

log = logging.getLogger("skindist")


@dataclass(frozen=True)
class Part:
    """One run of many: a seed and a fold."""

    run: Run
    seed: int
    fold: int

    def __str__(self) -> str:
        return f"seed {self.seed}, fold {self.fold}"

    @property
    def log(self) -> Path:
        """The file of what it prints."""
        return self.run.path.with_suffix(".log")

    def flags(self, folds: int) -> list[str]:
        """What makes a training command this run."""
        own = {"data.folds": folds, "data.fold": self.fold, "run.seed": self.seed, "run.dir": self.run.path}
        return [f"--{flag}={value}" for flag, value in own.items()]

    @property
    def done(self) -> bool:
        """Whether it is finished."""
        return self.run.results_file.exists()


def run_parts(command: Sequence[str], parts: Sequence[Part], folds: int, at_once: int) -> None:
    """Run those that are not finished, some side by side; the first that fails ends the others, which save."""
    places: SimpleQueue[int] = SimpleQueue()
    for number in range(at_once):
        places.put(number)
    running: set[subprocess.Popen[bytes]] = set()
    failed = threading.Event()
    shared = gpus() if at_once > 1 and not this_launch().on_cpu else 0

    def run(part: Part) -> Part:
        place = places.get()
        try:
            if failed.is_set():
                raise CancelledError
            run_one(part, place)
            return part
        except BaseException:
            failed.set()
            raise
        finally:
            places.put(place)  # whoever waits for it sees whether this one has failed

    def run_one(part: Part, place: int) -> None:
        try:
            refuse_running(part)
            with part.log.open("ab") as output:
                begun = output.tell()
                process = subprocess.Popen(
                    [*command, *part.flags(folds)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=side_by_side(os.environ, place, at_once, available_cores(), shared),
                )
        except OSError as error:
            raise UserError(f"cannot run {part}: {error.filename}: {error.strerror}") from None
        running.add(process)
        if failed.is_set():  # it began while those that run were being ended
            process.terminate()
        status = process.wait()
        running.discard(process)
        if status != 0 or not part.done:
            raise UserError(why_failed(part, status, begun))

    left = [part for part in parts if not part.done]
    if not left and len(parts) == 1:
        say_done(parts[0])
    with (
        ThreadPoolExecutor(at_once) as pool,
        tqdm(total=len(parts), initial=len(parts) - len(left), unit="run", disable=None) as bar,
    ):
        jobs = [pool.submit(run, part) for part in left]
        try:
            for job in as_completed(jobs):
                with suppress(CancelledError):  # it was to begin after another one had failed
                    say_done(job.result())
                    bar.update()
        except BaseException:
            failed.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise


def refuse_running(part: Part) -> None:
    """Raise UserError where a process of this machine writes the run already, as after SIGKILL to `skindist folds`."""
    owner = read_owner(part.run.lock)
    if owner is None or not owner.lives_here:
        return
    with part.run.lock.open("r+b") as file:  # which a process of the same number need not hold
        held = try_flock(file.fileno()) is False
    if held:
        raise UserError(
            f"{part}: process {owner.pid} trains it already, for another command. Wait for its end, or end it "
            f"(kill {owner.pid}: it saves); then the same command goes on"
        )


def why_failed(part: Part, status: int, begun: int) -> str:
    """What to tell the user of a run that has ended without its results, whose words begin there in its log."""
    if status == 0:
        return f"{part}: the command ended without results: {NO_TRAINING}\nits output is in {part.log}"
    ended = f"{part}: ended with status {status}:"
    mistaken = status == 2  # of the user, which the same command would make again
    where = f"its output is in {part.log}{'' if mistaken else '; the same command goes on'}"
    return "\n".join([ended, *last_words(part.log, begun), where])


def say_done(part: Part) -> None:
    """One line of a finished run."""
    results = part.run.results()
    auroc, stop = results["val"]["auroc"]["value"], results["early_stopping"]
    figure = "unknown" if auroc is None else f"{auroc:.3f}"
    minutes = results["train_seconds"] / 60
    log.info(
        f"{part}: validation AUROC {figure}, best epoch {stop['best_epoch']} of {stop['epochs']}, {minutes:.1f} minutes"
    )
