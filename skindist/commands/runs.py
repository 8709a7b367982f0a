"""Commands on runs: make many and one model of them, check that they resume, show what came of them."""

from collections.abc import Sequence
from pathlib import Path

from skindist.errors import UserError


def folds(
    command: Sequence[str],
    folds: int = 5,
    seeds: int = 1,
    out: Path | None = None,
    at_once: int = 1,
    only: int | None = None,
) -> None:
    """Train on each fold with each seed, and make one ensemble of all: figures that no split and no seed decides.

    Give the flags of a training beside those below: skindist folds --folds 5 --out DIR --data.path lesions. Or give
    your own command after --: skindist folds --folds 5 --out DIR -- accelerate launch --config_file
    accelerate_config.yaml --num_processes 2 launch/train.py --data.path lesions. All images but those of the test part
    are cut into folds. The same command again goes on where it was.

    Args:
        command: Words of the command.
        folds: Folds.
        seeds: Seeds, from 0; each has all folds.
        out: Required: folder of the runs, the ensemble and folds.json.
        at_once: Runs side by side, each with a GPU or its share of the cores.
        only: Number of one run, from 0, to be run alone: seed times folds plus fold. For a job array; the command
            without it then makes the ensemble.
    """
    if out is None:
        raise UserError("--out is missing: give a folder for the runs and the ensemble")
    from skindist.folds import run_folds

    run_folds(command, folds, seeds, out, at_once, only)


def ensemble(runs: Sequence[Path], out: Path | None = None) -> None:
    """Make one model of several runs on the same images: of other seeds, folds or architectures.

    Its probability is the mean of theirs. Its threshold is chosen on validation images, by the runs that did not train
    on them. It is judged on the test images, which must be the same in all runs.

    Args:
        runs: Run folders.
        out: Required: new folder for the model, its figures and its page.
    """
    if out is None:
        raise UserError("--out is missing: give a new folder for the ensemble")
    from skindist.inference.joining import join_runs
    from skindist.report.words import describe_ensemble

    print(f"{describe_ensemble(join_runs(runs, out))}\nmodel: {out}")


def verify_resume(command: Sequence[str], steps: int = 6, kills: int = 2, folder: Path | None = None) -> int:
    """Check that a training command resumes bit for bit: run it, kill it, start it again, compare.

    COMMAND is yours, word for word, with its launcher, all on this machine: skindist verify-resume -- accelerate launch
    --config_file accelerate_config.yaml --num_processes 2 launch/train.py --data.path lesions. It runs for a few steps
    in new run folders, each step saved, W&B off: once killed on the way (SIGKILL to all its processes) and started
    again, and once whole. Exit status: 0 exact, 1 not exact, 2 a mistake.

    Args:
        command: Words of the command.
        steps: Optimizer steps to run; a checkpoint of each is kept until they are compared.
        kills: How often to kill it on the way.
        folder: New folder for both runs and their output; null: a temporary one, removed if all is exact.
    """
    from skindist.verify import verify_resume

    verdict = verify_resume(command, steps, kills, folder)
    print(verdict.message)
    return 0 if verdict.exact else 1


def curves(run: Path) -> None:
    """Draw the curves of a run to RUN/curves.png.

    Args:
        run: Run folder.
    """
    from skindist.report.curves import draw_curves

    print(draw_curves(run))


def report(runs: Sequence[Path], page: Path | None = None, pictures: bool = True) -> None:
    """Write what a run's figures are worth as one HTML page, or put several runs side by side on one.

    Args:
        runs: Run folders.
        page: Where to write it; null: report.html in the run folder, or comparison.html here for several runs.
        pictures: Show pictures of the errors, and name files and folders. Pages without may leave your disk.
    """
    from skindist.report.run_page import write_run_page
    from skindist.report.runs_page import write_runs_page
    from skindist.run.folder import Run

    several = [Run(folder) for folder in runs]
    if len(several) == 1:
        print(write_run_page(several[0], page, pictures))
    else:
        print(write_runs_page(several, page or Path("comparison.html"), pictures))
