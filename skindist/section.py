"""What a field of the config says of itself, beside its type, default and help: all of it where the field stands."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from skindist.errors import UserError

T = TypeVar("T")
LARGEST = 1e30  # of any number: float32 holds little more, and JSON and YAML hold no infinity
Test = Callable[[Any], bool]
PLAIN = {
    str: "text (str)",
    int: "a whole number (int)",
    float: "a number (float)",
    bool: "true or false (bool)",
    type(None): "null",
}


def setting(
    default: T,
    holds: Test | None = None,
    wanted: str = "",
    *,
    path: bool = False,
    free: bool = False,
) -> T:
    """A field of a section with more to say than its default.

    Args:
        holds: whether a value of the field's type is in range; null always is, where the type has it.
        wanted: the same in words, after "must be".
        path: whether it is a local path: never empty, made absolute, and never sent away.
        free: whether it cannot change the result, so that a run may go on with another value.
    """
    known = {"holds": holds, "wanted": wanted, "path": path, "free": free}
    return field(default=default, metadata=known)


@dataclass(frozen=True)
class Section:
    """A part of the config. It cannot be built with a value of another type, or out of range. A Path becomes text."""

    def __post_init__(self) -> None:
        for key in fields(self):
            value, holds = getattr(self, key.name), key.metadata.get("holds")
            if key.metadata.get("path") and isinstance(value, Path):
                value = str(value)
                object.__setattr__(self, key.name, value)
            if not fits(value, key.type):  # a file may say null, whatever the type; Python may say anything
                *most, last = allowed(key.type)
                wanted = f"{', '.join(most)} or {last}" if most else last
                raise UserError(f"{self.flag(key.name)} {shortened(repr(self.to_dict()[key.name]))}: must be {wanted}")
            if value == "" and key.metadata.get("path"):
                raise UserError(f"{self.flag(key.name)} is empty: give a path, or leave it out; is a variable unset?")
            if value is not None and holds and not holds(value):
                raise self.out_of_range(key.name)
            if isinstance(value, int | float) and value > LARGEST:
                raise UserError(f"{self.flag(key.name)} {shortened(value)}: must be at most {LARGEST:g}")

    def out_of_range(self, key: str) -> UserError:
        """What to say of a value that the field does not take."""
        wanted = self.__dataclass_fields__[key].metadata["wanted"]
        return UserError(f"{self.flag(key)} {shortened(self.to_dict()[key])}: must be {wanted}")

    def flag(self, key: str) -> str:
        """The field on the command line; EarlyStoppingConfig is `early_stopping`."""
        section = re.sub(r"\B([A-Z])", r"_\1", type(self).__name__.removesuffix("Config")).lower()
        return f"--{section}.{key}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML knows them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}


def shortened(value: Any) -> str:
    """A value as text; of a very long one, its beginning."""
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type: a whole number is a number, too, and a list does for a tuple. A number of
    NumPy's is none: YAML could not save it."""
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return value in parts
    if get_origin(hint) is tuple:  # how many there must be is for `holds` to say
        return isinstance(value, tuple | list) and all(fits(entry, parts[0]) for entry in value)
    if parts:
        return any(fits(value, part) for part in parts)
    return type(value) in ((int, float) if hint is float else (hint,))


def allowed(hint: Any) -> list[str]:
    """In words, each of the things that a field's type takes."""
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return [str(word) for word in parts]
    if get_origin(hint) is tuple:
        return [f"a list, each entry {' or '.join(allowed(parts[0]))}"]
    return [words for part in parts for words in allowed(part)] if parts else [PLAIN[hint]]
