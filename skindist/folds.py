"""`skindist folds`: a training command for each fold and seed, and one ensemble of all of them.

Each run is a process of its own, with a run folder and a log, in OUT/runs. What is finished is kept: the same command
goes on where it was, and a run that was killed on the way resumes. OUT/ensemble is the model of all runs, and
OUT/folds.json what the cross-validation says.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from skindist.config import changes
from skindist.errors import UserError
from skindist.files import write_json
from skindist.fold_runs import Part, run_parts
from skindist.parsing import parse_config
from skindist.programs import refuse_unknown_program, terminated_as_interrupted
from skindist.report.run_page import draw_run_page
from skindist.report.words import describe_ensemble, describe_places
from skindist.run.folder import Run
from skindist.run.opening import other_values

RUNS, ENSEMBLE, SUMMARY = "runs", "ensemble", "folds.json"
log = logging.getLogger("skindist")


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
    asked = parts if only is None else [parts[only]]
    with terminated_as_interrupted():
        run_parts(command, asked, folds, at_once)
    for part in asked:
        draw_missing_page(part.run)
    if only is None:
        summarise(parts, out)


def refuse_settings(command: Sequence[str], parts: Sequence[Part], folds: int, out: Path) -> None:
    """Raise UserError where the command gives a flag that each run gets of its own. If it is the main job's (nothing is
    known of a user's own script), also where its flags are wrong, or a run that was begun has others."""
    for flag in (word.partition("=")[0] for word in parts[0].flags(folds)):
        if any(word == flag or word.startswith(f"{flag}=") for word in command):
            raise UserError(f"{flag}: each run gets its own; leave it out (--folds, --seeds and --out decide)")
    given = flags_of_main_job(command)
    if given is None:
        return
    asked = parse_config([*given, *parts[0].flags(folds)]).with_absolute_paths()
    for part in parts:
        asked = replace(asked, data=replace(asked.data, fold=part.fold), run=replace(asked.run, seed=part.seed))
        differs = other_values(part.run, asked) if part.run.exists else []
        if part.done and part.run.config().evaluation != asked.evaluation:
            differs.append("it was judged with other --evaluation flags")
        if differs:
            name, said = part.run.path.name, "; ".join(differs).replace("data.folds", "--folds")
            raise UserError(f"--out {out}: {name} is another run: {said}. Give the same to go on, or another --out")


def flags_of_main_job(command: Sequence[str]) -> Sequence[str] | None:
    """What follows `skindist train`, `-m skindist train` or this project's launch/train.py; None: it is neither."""
    for place, (before, word) in enumerate(pairwise(["", *command])):
        file = Path(word).resolve()
        is_ours = file.parts[-2:] == ("launch", "train.py") and (file.parents[1] / "skindist").is_dir()
        if is_ours or (word == "train" and Path(before).stem == "skindist"):
            return command[place + 1 :]
    return None


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
        from skindist.inference.joining import join_runs  # with torch and timm, which nothing before it needs

        try:
            join_runs([part.run.path for part in parts], ensemble.path)
        except BaseException:
            if older.exists() and not ensemble.path.exists():
                older.rename(ensemble.path)
            raise
    shutil.rmtree(older, ignore_errors=True)
    draw_missing_page(ensemble)
    results = ensemble.results()
    write_json(out / SUMMARY, summary(results))
    places = describe_places(ensemble.results_file, ensemble.report)
    log.info(f"{describe_ensemble(results)}\nmodel: {ensemble.path}; {places}")


def draw_missing_page(run: Run) -> None:
    """Draw the page of a finished run that was killed between its results and its page."""
    if not run.report.exists():
        draw_run_page(run)


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
