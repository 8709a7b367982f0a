"""`skindist folds`: a training command for each fold and seed, and one ensemble of all of them.

Each run is a process of its own, with a run folder and a log, in OUT/runs. What is finished is kept: the same command
goes on where it was, and a run that was killed on the way resumes. OUT/ensemble is the model of all runs, and
OUT/folds.json what the cross-validation says.
"""

import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tqdm import tqdm

from skindist.config import changes
from skindist.errors import UserError
from skindist.files import write_json
from skindist.inference.joining import join_runs
from skindist.launcher import side_by_side
from skindist.machine import available_cores, gpus
from skindist.parsing import parse_config
from skindist.programs import last_words, refuse_unknown_program, terminated_as_interrupted
from skindist.report.words import describe_ensemble
from skindist.run.folder import Run
from skindist.run.opening import other_values

RUNS, ENSEMBLE, SUMMARY = "runs", "ensemble", "folds.json"
log = logging.getLogger("skindist")


@dataclass(frozen=True)
class Part:
    """One run of many: a seed and a fold."""

    run: Run
    seed: int
    fold: int

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


def run_folds(
    command: Sequence[str], folds: int, seeds: int, out: Path, at_once: int = 1, only: int | None = None
) -> None:
    """Run `command` for each seed and fold that is not finished, then join all runs.

    Args:
        command: the words of a training command; --data.fold, --data.folds, --run.seed and --run.dir are appended.
        folds: how many; the command's own images are cut into them.
        seeds: how many, from 0.
        out: folder of all of it, new or from before.
        at_once: runs side by side: each has a GPU of its own where there are GPUs, else its share of the cores.
        only: run this one alone, counted from 0, and join nothing: for a job array.

    Raises:
        UserError: an argument is out of range, the command cannot be run or fails, or the runs differ in more than seed
            and fold, from each other or from the command.
    """
    if folds < 2 or seeds < 1 or at_once < 1:
        raise UserError("--folds must be 2 or more, --seeds and --at_once 1 or more")
    if only is not None and not 0 <= only < folds * seeds:
        raise UserError(f"--only {only}: must be from 0 to {folds * seeds - 1} (seed times folds, plus fold)")
    refuse_unknown_program(command)
    place = out.absolute() / RUNS
    parts = [
        Part(Run(place / f"seed-{seed}-fold-{fold}"), seed, fold) for seed in range(seeds) for fold in range(folds)
    ]
    refuse_settings(command, parts, folds, out)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be created ({error.strerror})") from None
    with terminated_as_interrupted():
        run_parts(command, parts if only is None else [parts[only]], folds, at_once)
    if only is None:
        summarise(parts, out)


def refuse_settings(command: Sequence[str], parts: Sequence[Part], folds: int, out: Path) -> None:
    """Raise UserError where the command gives a flag that each run gets of its own. If it is the main job's (nothing is
    known of a user's own script), also where its flags are wrong, or a run that was begun has others."""
    for flag in (word.partition("=")[0] for word in parts[0].flags(folds)):
        if any(word == flag or word.startswith(f"{flag}=") for word in command):
            raise UserError(f"{flag}: each run gets its own; leave it out (--folds, --seeds and --out decide)")
    jobs = [place for place, word in enumerate(command) if word == "train" or Path(word).name == "train.py"]
    if not jobs:
        return
    asked = parse_config([*command[jobs[0] + 1 :], *parts[0].flags(folds)]).with_absolute_paths()
    for part in parts:
        asked = replace(asked, data=replace(asked.data, fold=part.fold), run=replace(asked.run, seed=part.seed))
        differs = other_values(part.run, asked) if part.run.exists else []
        if part.done and part.run.config().evaluation != asked.evaluation:
            differs.append("it was judged with other --evaluation flags")
        if differs:
            name, said = part.run.path.name, "; ".join(differs).replace("data.folds", "--folds")
            raise UserError(f"--out {out}: {name} is another run: {said}. Give the same to go on, or another --out")


def run_parts(command: Sequence[str], parts: Sequence[Part], folds: int, at_once: int) -> None:
    """Run those that are not finished, some side by side; the first that fails ends the others, which save."""
    places: SimpleQueue[int] = SimpleQueue()
    for number in range(at_once):
        places.put(number)
    running: set[subprocess.Popen[bytes]] = set()
    failed = threading.Event()
    shared = gpus() if at_once > 1 else 0

    def run(part: Part) -> Part:
        place = places.get()
        if failed.is_set():
            places.put(place)
            raise CancelledError
        words = [*command, *part.flags(folds)]
        with part.log.open("ab") as output:
            begun = output.tell()
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=side_by_side(os.environ, place, at_once, available_cores(), shared),
            )
        running.add(process)
        status = process.wait()
        running.discard(process)
        if has_failed := status != 0 or not part.done:
            failed.set()
        places.put(place)
        if has_failed:
            raise UserError(why_failed(part, status, begun))
        return part

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
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise


def why_failed(part: Part, status: int, begun: int) -> str:
    """What to tell the user of a run that has ended without its results, whose words begin there in its log."""
    ended = f"seed {part.seed}, fold {part.fold}: ended with status {status}:"
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
        f"seed {part.seed}, fold {part.fold}: validation AUROC {figure}, best epoch {stop['best_epoch']} of "
        f"{stop['epochs']}, {minutes:.1f} minutes"
    )


def summarise(parts: Sequence[Part], out: Path) -> None:
    """Join all runs, unless that is done, and write folds.json.

    Raises:
        UserError: the runs differ in more than seed and fold.
    """
    refuse_other_configs(parts)
    ensemble = Run(out / ENSEMBLE)
    older = out / f".{ENSEMBLE}.old"  # kept until there is another one
    if ensemble.results_file.exists() and not is_current(ensemble, parts):
        shutil.rmtree(older, ignore_errors=True)
        ensemble.path.rename(older)
    if not ensemble.results_file.exists():
        try:
            join_runs([part.run.path for part in parts], ensemble.path)
        except BaseException:
            if older.exists() and not ensemble.path.exists():
                older.rename(ensemble.path)
            raise
    shutil.rmtree(older, ignore_errors=True)
    results = ensemble.results()
    write_json(out / SUMMARY, summary(results))
    log.info(f"{describe_ensemble(results)}\nmodel: {ensemble.path}; what it is worth: {ensemble.report}")


def is_current(ensemble: Run, parts: Sequence[Part]) -> bool:
    """Whether an ensemble was made of these runs, and after each of them."""
    names, when = [part.run.path.name for part in parts], ensemble.results_file.stat().st_mtime_ns
    made_of = [member["run"] for member in ensemble.results()["members"]]
    return made_of == names and all(part.run.results_file.stat().st_mtime_ns <= when for part in parts)


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """What folds.json holds: figures of each run, out-of-fold figures of each seed and of all, and the ensemble's."""
    return {
        "folds": len({member["fold"] for member in results["members"]}),
        "seeds": [seed["seed"] for seed in results["by_seed"]],
        "runs": results["members"],
        "by_seed": results["by_seed"],
        "out_of_fold": results["val"],
        "operating_point": results["operating_point"],
        "ensemble": {"test": results["test"], "verdict": results["verdict"]},
    }


def refuse_other_configs(parts: Sequence[Part]) -> None:
    """Raise UserError unless all runs have one config, but for seed and fold."""
    first, *others = [part.run.saved_config() for part in parts]
    for part, config in zip(parts[1:], others, strict=True):
        own = {"data": {"fold": first["data"]["fold"]}, "run": {"seed": first["run"]["seed"]}}
        same = {section: values | own.get(section, {}) for section, values in config.items()}
        if differs := changes(first, same):
            raise UserError(
                f"{part.run.path}: was run with other settings ({'; '.join(differs)}) than {parts[0].run.path}; "
                "give another --out, or remove the runs that you do not want"
            )
