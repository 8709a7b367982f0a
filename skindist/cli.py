"""The two command lines: `launch/train.py` (one run) and `skindist COMMAND` (everything around it). Thin on purpose."""

import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from skindist.config import DataConfig, EvaluationConfig
from skindist.distributed.ending import fail, fail_alone, fail_together
from skindist.errors import Stopped, TrainingError, UserError
from skindist.launcher import this_launch
from skindist.machine import cache_folder
from skindist.parsing import parse_config

SWITCHES = ("--recalibrate", "--stress", "--overwrite", "--public", "--yes")  # flags that need no value


def train(args: Sequence[str] | None = None) -> int:
    """Run `fit` with the config of the command line, on one of the processes that a launcher started.

    Returns:
        The exit status: 0 done, 2 a user's mistake, 130 interrupted, 143 or 138 stopped by SIGTERM or SIGUSR1 with
        its state saved, 1 anything else.
    """
    show_log()

    def run() -> None:
        config = parse_config(args, prog="launch/train.py")
        from skindist.training.trainer import fit  # after parsing: --help must not wait for torch

        fit(config)

    return together(run, "the same command with the same --run.dir goes on from")


def together(job: Callable[[], object], again: str = "") -> int:
    """Do a job that all processes of a launch share; of its errors one process speaks, and every process ends.

    Args:
        again: how a job that was stopped goes on from what it has saved.

    Returns:
        The exit status, as of `train`.
    """
    try:
        job()
    except (UserError, TrainingError) as error:
        return fail_together(str(error), 2 if isinstance(error, UserError) else 1)
    except Stopped as stop:
        return fail_together(f"stopped by {stop.name}; {again} here", stop.status)
    except KeyboardInterrupt:
        return fail(f"interrupted; {again} its last checkpoint" if again else "interrupted", 130)
    except Exception as error:
        return fail_alone(error)
    return 0


def show_log() -> None:
    """Plain lines on stdout, from the main process alone."""
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
    logging.getLogger("skindist").setLevel(logging.INFO if this_launch().rank == 0 else logging.ERROR)


def main(args: Sequence[str] | None = None) -> int:
    """`skindist COMMAND`: each command is a function below, its arguments the command's."""
    commands: dict[str, Callable[..., int | None]] = {
        "audit": audit, "curves": curves, "evaluate": evaluate, "export": export, "push": push, "report": report,
        "demo-data": demo_data, "verify-resume": verify_resume, "clear-cache": clear_cache,
    }  # fmt: skip
    parser = ArgumentParser(prog="skindist", description="What surrounds a run.", exit_on_error=False)
    subcommands = parser.add_subcommands()
    for name, function in commands.items():
        about = str(function.__doc__).split("\n\n    Args:")[0]
        title = about.splitlines()[0]
        usage = f"skindist {name} [OPTIONS] -- COMMAND ..." if function is verify_resume else None
        command = ArgumentParser(description=about, usage=usage, exit_on_error=False)
        if function is report:
            command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="Run folder; several are compared.")
        command.add_function_arguments(function, as_group=False, as_positional=True, skip={"command", "runs"})
        subcommands.add_subcommand(name, command, help=title)
    show_log()
    try:
        words, training = split_command(sys.argv[1:] if args is None else list(args))
        words = with_values(words)
        chosen = parser.parse_args(words)
        options = chosen[chosen.subcommand].as_dict() | ({"command": training} if training else {})
        return commands[chosen.subcommand](**options) or 0
    except (UserError, ArgumentError) as error:
        return fail_together(str(error), 2)
    except KeyboardInterrupt:
        return fail("interrupted", 130)


def with_values(words: list[str]) -> list[str]:
    """`--stress` alone means `--stress=true`; the parser wants a value, and would take the next word for it."""
    following = [*words[1:], ""]
    return [
        f"{word}=true" if word in SWITCHES and after not in ("true", "false") else word
        for word, after in zip(words, following, strict=True)
    ]


def split_command(words: list[str]) -> tuple[list[str], list[str]]:
    """The words for `skindist` itself, and those after `--`, which are a command for `verify-resume` to run.

    Raises:
        UserError: `verify-resume` without a command.
    """
    if words[:1] != ["verify-resume"] or {"-h", "--help"} & set(words[:2]):
        return words, []
    if "--" not in words[:-1]:
        raise UserError("give the training command after --: skindist verify-resume -- accelerate launch ...")
    return words[: words.index("--")], words[words.index("--") + 1 :]


def demo_data(directory: Path, count: int = 800, size: int = 96, seed: int = 0) -> None:
    """Draw a labelled folder of lesion-like pictures, to try the trainer without data.

    Args:
        directory: New or empty folder; gets benign/ and malignant/.
        count: Pictures, half of each class.
        size: Side in pixels.
        seed: Another seed draws other pictures.
    """
    from skindist.data.demo import write_demo_data

    write_demo_data(directory, count, size, seed)
    print(f"{count} pictures in {directory}; to train on them:")
    print(f"  launch/train.py --config launch/demo.yaml --data.path {directory}")


def audit(directory: Path, metadata: Path | None = None, page: Path = Path("audit.html")) -> None:
    """Say what a folder of images holds before any training: bad files, copies, leaks, shortcuts.

    Args:
        directory: Folder with the class folders, split or not.
        metadata: CSV file with patient_id, lesion_id and more, as for --data.metadata.
        page: Where to write the same with pictures, as one HTML page.
    """
    from skindist.report.audit import audit

    print(audit(DataConfig(path=str(directory), metadata=str(metadata) if metadata else None), page))


def evaluate(
    model: str,
    data: Path,
    out: Path | None = None,
    metadata: Path | None = None,
    recalibrate: bool = False,
    stress: bool = False,
    prevalence: float | None = None,
    max_bad: float = 0.05,
    cache_dir: Path | None = None,
) -> int:
    """Say what a saved model is worth on other images, its threshold and calibration frozen.

    On several processes: accelerate launch --config_file accelerate_config.yaml --num_processes 4 -m skindist evaluate
    MODEL DATA --out DIR

    Args:
        model: Run folder, its model/ folder, or the id of a repository on the Hugging Face Hub.
        data: Folder with the class folders; of a folder split into train/, val/ and test/, test/ alone is used.
        out: New folder for figures, predictions and report.
        metadata: CSV file with patient_id, lesion_id and more, as for --data.metadata.
        recalibrate: Fit threshold and calibration on half of the images, too, and show them on the other half.
        stress: Disturb the images, too (ink, hair, blur, ...), and say what that changes.
        prevalence: Share of malignant images at which PPV, NPV and biopsies are stated; null: that of these images.
        max_bad: Share of images that cannot be used above which nothing is evaluated.
        cache_dir: As for --data.cache_dir.
    """
    if out is None:
        raise UserError("--out is missing: give a new folder for what is found")
    table, cache = (str(path) if path else None for path in (metadata, cache_dir))
    config = DataConfig(path=str(data), metadata=table, max_bad=max_bad, cache_dir=cache)
    from skindist.inference.evaluation import Asked, evaluate_model

    asked = Asked(recalibrate, stress, prevalence)

    def run() -> None:
        try:
            EvaluationConfig(prevalence=prevalence)  # out of range, it is refused now
            evaluate_model(model, config, out, asked)
        except UserError as error:  # it speaks of the flags of a run
            raise UserError(re.sub(r"--data\.path |(?<=--)(data|evaluation)\.", "", str(error))) from None

    return together(run)


def export(model: str, out: Path | None = None, overwrite: bool = False) -> None:
    """Write a saved model as one file that other programs run: pictures in, probabilities and decisions out.

    The file is tried first, and written only if its probabilities are those of the model.

    Args:
        model: Run folder, its model/ folder, or the id of a repository on the Hugging Face Hub.
        out: FILE.onnx, for onnxruntime and others; or FILE.pt2, for torch.export.load.
        overwrite: Replace the file if it exists.
    """
    if out is None:
        raise UserError("--out is missing: give FILE.onnx or FILE.pt2")
    from skindist.inference.export import export_model

    export_model(model, out, overwrite)


def push(model: str, repository: str, public: bool = False, yes: bool = False) -> None:
    """Send a saved model and its card to the Hugging Face Hub; what would be sent is shown first.

    Three files are sent, and nothing else: config.json, model.safetensors and README.md.

    Args:
        model: Run folder, or its model/ folder.
        repository: OWNER/NAME; it is made if there is none.
        public: Let everybody see it; else it is private.
        yes: Do not ask before sending.
    """
    from skindist.inference.push import push_model

    push_model(model, repository, public, yes)


def verify_resume(command: Sequence[str], steps: int = 6, kills: int = 2, folder: Path | None = None) -> int:
    """Check that a training command resumes bit for bit: run it, kill it, start it again, compare.

    COMMAND is yours, word for word, with its launcher, all on this machine: skindist verify-resume -- accelerate launch
    --config_file accelerate_config.yaml --num_processes 2 launch/train.py --data.path lesions. It runs for a few steps
    in new run folders, each step saved, W&B off: once whole, and once killed on the way (SIGKILL to all its processes)
    and started again. Exit status: 0 exact, 1 not exact, 2 a mistake.

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


def clear_cache(cache_dir: Path | None = None) -> None:
    """Remove the prepared pixels, and what is remembered of scanned folders.

    Args:
        cache_dir: As for --data.cache_dir.
    """
    from skindist.data.store import clear_cache

    folder = cache_folder(str(cache_dir) if cache_dir else None)
    print(f"{clear_cache(folder) / 1e9:.2f} GB removed from {folder}")


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
