"""The two command lines: `launch/train.py` (one run) and `skindist COMMAND` (everything around it). Thin on purpose."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from skindist.config import DataConfig, parse_config
from skindist.ending import fail, fail_alone, fail_together, is_main_process
from skindist.errors import Stopped, TrainingError, UserError
from skindist.machine import cache_folder


def train(args: Sequence[str] | None = None) -> int:
    """Run `fit` with the config of the command line, on one of the processes that a launcher started.

    Returns:
        The exit status: 0 done, 2 a user's mistake, 130 interrupted, 143 or 138 stopped by SIGTERM or SIGUSR1 with
        its state saved, 1 anything else.
    """
    show_log()
    try:
        config = parse_config(args, prog="launch/train.py")
        from skindist.training.trainer import fit  # after parsing: --help must not wait for torch

        fit(config)
    except (UserError, TrainingError) as error:
        return fail_together(str(error), 2 if isinstance(error, UserError) else 1)
    except Stopped as stop:
        again = "the same command with the same --run.dir goes on from here"
        return fail_together(f"stopped by {stop.name}; {again}", stop.status)
    except KeyboardInterrupt:
        return fail("interrupted; the same command with the same --run.dir goes on from its last checkpoint", 130)
    except Exception as error:
        return fail_alone(error)
    return 0


def show_log() -> None:
    """Plain lines on stdout, from the main process alone."""
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
    logging.getLogger("skindist").setLevel(logging.INFO if is_main_process() else logging.ERROR)


def main(args: Sequence[str] | None = None) -> int:
    """`skindist COMMAND`: each command is a function below, its arguments the command's."""
    commands: dict[str, Callable[..., None]] = {
        "audit": audit, "curves": curves, "demo-data": demo_data, "clear-cache": clear_cache
    }  # fmt: skip
    parser = ArgumentParser(prog="skindist", description="What surrounds a run.", exit_on_error=False)
    subcommands = parser.add_subcommands()
    for name, function in commands.items():
        title = str(function.__doc__).splitlines()[0]
        command = ArgumentParser(description=title, exit_on_error=False)
        command.add_function_arguments(function, as_group=False, as_positional=True)
        subcommands.add_subcommand(name, command, help=title)
    show_log()
    try:
        chosen = parser.parse_args(args)
        commands[chosen.subcommand](**chosen[chosen.subcommand].as_dict())
    except (UserError, ArgumentError) as error:
        return fail(str(error), 2)
    return 0


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
