"""What a field of the config says of itself, beside its type, default and help: all of it where the field stands."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_args

from skindist.errors import UserError

T = TypeVar("T")
Test = Callable[[Any], bool]


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
        holds: whether a value other than null is in range; null is in range if the field's type has it.
        wanted: the same in words, after "must be".
        path: whether it is a local path: made absolute, and never sent away.
        free: whether it cannot change the result, so that a run may go on with another value.
    """
    known = {"holds": holds, "wanted": wanted, "path": path, "free": free}
    return field(default=default, metadata=known)


@dataclass(frozen=True)
class Section:
    """A part of the config. It cannot be built with a value out of range."""

    def __post_init__(self) -> None:
        for key in fields(self):
            value, holds = getattr(self, key.name), key.metadata.get("holds")
            takes_null = type(None) in get_args(key.type)  # jsonargparse lets a file say null, whatever the type
            if not (takes_null if value is None else holds is None or holds(value)):
                raise self.out_of_range(key.name)

    def out_of_range(self, key: str) -> UserError:
        """What to say of a value that the field does not take; EarlyStoppingConfig is `early_stopping`."""
        section = re.sub(r"\B([A-Z])", r"_\1", type(self).__name__.removesuffix("Config")).lower()
        wanted = self.__dataclass_fields__[key].metadata.get("wanted") or "other than null"
        return UserError(f"--{section}.{key} {self.to_dict()[key]}: must be {wanted}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML knows them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
