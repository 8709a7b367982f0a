"""The command line, read into a Config. No framework is imported, so that `--help` answers at once."""

import argparse
import difflib
import functools
import re
from collections.abc import Sequence
from typing import Any

import jsonargparse

from skindist.config import Config
from skindist.errors import UserError, remedy_of_locale
from skindist.section import shortened

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse_config(args: Sequence[str] | None = None, prog: str | None = None) -> Config:
    """Read the command line (`sys.argv` when `args` is None) into a Config.

    Raises:
        UserError: unknown flag or key, a value of the wrong type or out of range.
        SystemExit: status 0 after `--help` and `--print_config`.
    """
    parser = build_parser(prog)
    try:
        values = parser.instantiate(parser.parse_args(args))
    except jsonargparse.ArgumentError as error:
        known = [f"{section}.{key}" for section, values in Config().to_dict().items() for key in values]
        raise UserError(with_nearest(in_one_line(str(error)), known)) from None
    except UnicodeDecodeError:
        remedy = remedy_of_locale()
        why = f"cannot be read{remedy}" if remedy else "is not UTF-8 text; save it as such"
        raise UserError(f"--config: {why}") from None
    except (OverflowError, ValueError) as error:  # of a number of hundreds of digits; the parser does not say which
        raise UserError(f"a value of the config cannot be read ({error})") from None
    return Config(**{section: values[section] for section in Config.__dataclass_fields__})


@functools.cache
def build_parser(prog: str | None) -> jsonargparse.ArgumentParser:
    """A flag for each key of each section, with its docstring as help; for any number of command lines."""
    launched = "%(prog)s" if prog and prog.endswith(".py") else "-m skindist train"
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [--config FILE.yaml] [--section.key VALUE ...]",
        description="Fine-tune an ImageNet-pretrained model on a folder of benign and malignant skin lesions.",
        epilog="Processes, devices and precision belong to the launcher: accelerate launch --config_file "
        f"accelerate_config.yaml [--num_processes N] [--mixed_precision no|bf16|fp16] {launched} ...",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", metavar="FILE.yaml", help="File with the same sections and keys.")
    parser.add_class_arguments(Config)
    for action in parser._actions:
        if action.dest in Config.__dataclass_fields__:
            action.help = argparse.SUPPRESS  # `--data FILE`, a config file for one section, is one way too many
    return parser


class Command(jsonargparse.ArgumentParser):
    """The parser of a command, whose help names a type as people do."""

    def format_help(self, *formatter: Any, **options: Any) -> str:
        """Called for `--help`, with arguments that differ from version to version."""
        return re.sub(r"<class\s+'(\w+)'>", r"\1", super().format_help(*formatter, **options))


def in_one_line(message: str) -> str:
    """What the parser says, in one line that begins with the flag that is wrong."""
    message = re.sub(r'^Parser key "([\w.]+)": Expected a', r"--\1: expected", " ".join(message.split()))
    message = re.sub(r"<class '(\w+)'>|typing\.", r"\1", message)
    message = re.sub(r"expected float\. Got value: (-?(nan|inf))$", r"must be a finite number. Got value: \1", message)
    message = re.sub(r'^Parser key "config"', "--config", message)
    surplus = re.match(r"unrecognized arguments: ([^-]\S*)((?: \S+)*)$", message)
    if surplus and (surplus[2] or "." in surplus[1]):  # a lone word without a dot is no file of a pattern
        more = f" and {len(others):,} more" if (others := surplus[2].split()) else ""
        message = f"unrecognized arguments: {surplus[1]}{more}; is a pattern not in quotes?"
    message = re.sub("^Problems parsing config", "--config: is no YAML", message)
    message = re.sub("^Unexpected config.*", "--config: must hold sections, such as data, each with keys", message)
    message = re.sub(
        r'^Parser key "([\w.]+)": Does not validate .*? Subtypes: \[(.*?)(?:, NoneType)?\] Errors: .* Given value: '
        r"(.*)$",
        lambda found: f"--{found[1]}: expected {found[2].replace(', ', ' or ')}. Got value: {found[3]}",
        message,
    )
    message = re.sub(r"expected (a )?tuple\.", "expected a list, such as '[a, b]'.", message)
    message = re.sub(r"\S+", lambda word: shortened(word[0]), message)
    return f"{message}{remedy_of_locale()}" if "codec can't" in message else message


def with_nearest(message: str, known: Sequence[str]) -> str:
    """Name the flag that is wrong, and the valid one that an unknown one resembles most."""
    message = re.sub(r"^Group '(\w+)' does not accept option '(\w+)'", r"Option '\1.\2' is not accepted", message)
    if unknown := re.search(r"(?:unrecognized arguments: --|Option ')([\w.]+)", message):
        nearest = difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.3)
        message += f"; nearest: --{nearest[0]}" if nearest else "; --help lists them all"
    return message
