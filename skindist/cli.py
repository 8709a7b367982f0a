"""The command lines: `skindist train`, which is `launch/train.py`, and the commands around a run. Thin on purpose."""

import gc
import io
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from inspect import signature
from itertools import islice
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from skindist.commands import data, models, runs
from skindist.config import Config
from skindist.cpu_threads import bind_threads
from skindist.distributed.ending import fail, fail_together, together
from skindist.errors import UserError, remedy_of_locale
from skindist.launcher import this_launch
from skindist.parsing import Command, in_one_line, parse_config, with_nearest

ABOUT = "Train a model, and what surrounds that."
SWITCHES = ("--recalibrate", "--stress", "--overwrite", "--public", "--yes")  # flags that need no value
FLAGS_OF_FOLDS = {f"--{name}" for name in signature(runs.folds).parameters if name != "command"}


def train(args: Sequence[str] | None = None, prog: str = "launch/train.py") -> int:
    """Run `fit` with the config of the command line, on one of the processes that a launcher started.

    Args:
        prog: what the command is called in its help.

    Returns:
        The exit status: 0 done, 2 a user's mistake, 130 interrupted, 143 or 138 stopped by SIGTERM or SIGUSR1 with
        its state saved, 1 anything else.
    """
    begin()

    def run() -> None:
        config = parse_config(args, prog)
        if not config.data.num_workers:  # which would need all cores, too
            bind_threads(this_launch())
        from skindist.training.trainer import fit  # after parsing: --help must not wait for torch

        fit(config)

    return together(run, "the same command with the same --run.dir goes on")


def begin() -> None:
    """Show the log, and look for garbage less often: a start makes a million objects that stay, and looking through
    them at Python's own pace takes a seventh of its time."""
    gc.set_threshold(10_000)
    show_log()


def show_log() -> None:
    """Plain lines on stdout, from the main process alone."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
    logging.getLogger("skindist").setLevel(logging.INFO if this_launch().rank == 0 else logging.ERROR)


def fit_aloud(config: Config) -> None:
    """`fit`, with its log: what each process of a notebook runs. It is imported from here, as a fresh process cannot
    import from a notebook."""
    show_log()
    from skindist.training.trainer import fit

    fit(config)


def main(args: Sequence[str] | None = None) -> int:
    """`skindist COMMAND`: the arguments of `train` are a run's config, those of the others their function's."""
    words = (sys.argv[1:] if args is None else list(args)) or ["--help"]
    if words[:1] == ["train"]:
        return train(words[1:], prog="skindist train")
    named: dict[str, Callable[..., int | None]] = {
        "unpack": data.unpack, "audit": data.audit, "folds": runs.folds, "ensemble": runs.ensemble,
        "evaluate": models.evaluate_elsewhere, "predict": models.predict, "report": runs.report,
        "curves": runs.curves, "export": models.export, "push": models.push, "demo-data": data.demo_data,
        "verify-resume": runs.verify_resume, "clear-cache": data.clear_cache,
    }  # fmt: skip
    parser = ArgumentParser(
        prog="skindist", description=ABOUT, exit_on_error=False, allow_abbrev=False, version=version("skindist")
    )
    subcommands = parser.add_subcommands()
    subcommands.add_subcommand("train", ArgumentParser(), help="Fine-tune a model on a folder of images.")
    for name, function in named.items():
        about = str(function.__doc__).split("\n\n    Args:")[0]
        title = about.splitlines()[0]
        takes_command = function in (runs.verify_resume, runs.folds)
        usage = f"skindist {name} [OPTIONS] -- COMMAND ..." if takes_command else None
        command = Command(description=about, usage=usage, exit_on_error=False, allow_abbrev=False)
        if function in (runs.report, runs.ensemble):
            command.add_argument(
                "runs", nargs="+", type=Path, metavar="RUN", help="Run folder; several are put together."
            )
        command.add_function_arguments(function, as_group=False, as_positional=True, skip={"command", "runs"})
        subcommands.add_subcommand(name, command, help=title)
    begin()
    try:
        words, training = split_command(words)
        words = with_values(words)
        if any(not word or (word.startswith("--") and word.endswith("=")) for word in words):  # a path "" would be "."
            raise UserError("an argument is empty; is a variable unset?")
        chosen = parser.parse_args(words)
        options = chosen[chosen.subcommand].as_dict() | ({"command": training} if training else {})
        return named[chosen.subcommand](**options) or 0
    except UserError as error:
        return fail_together(str(error), 2)
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except UnicodeError as error:
        if not (remedy := remedy_of_locale()):
            raise
        return fail(f"{error}{remedy}", 1)
    except ArgumentError as error:
        known = list(signature(named[words[0]]).parameters) if words[0] in named else []
        return fail_together(with_nearest(in_one_line(str(error)), known), 2)
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
    """The words for `skindist` itself, and those of the training command that `verify-resume` and `folds` run: what is
    after `--`, or `skindist train`. Flags before it that are not those of `folds` go to the training.

    Raises:
        UserError: `verify-resume` without a command; a flag that neither `folds` nor a training has.
    """
    if words[:1] not in (["verify-resume"], ["folds"]) or {"-h", "--help"} & set(words[:2]):
        return words, []
    command = [sys.executable, "-m", "skindist", "train"]
    if "--" in words[:-1]:
        words, command = words[: words.index("--")], words[words.index("--") + 1 :]
    elif words[0] == "verify-resume":
        raise UserError("give the training command after --: skindist verify-resume -- accelerate launch ...")
    if words[0] == "verify-resume":
        return words, command
    own: list[str] = []
    others: list[str] = []
    rest = iter(words[1:])
    for word in rest:
        flag = word.partition("=")[0]
        if flag.startswith("--") and "." not in flag and flag not in FLAGS_OF_FOLDS | {"--config"}:
            raise UserError(with_nearest(f"unrecognized arguments: {flag}", [name[2:] for name in FLAGS_OF_FOLDS]))
        mine = own if flag in FLAGS_OF_FOLDS else others
        mine.append(word)
        if mine is own and "=" not in word:
            own += islice(rest, 1)
    return ["folds", *own], [*command, *others]


if __name__ == "__main__":  # accelerate launch ... -m skindist.cli, and -m skindist
    sys.exit(main())
