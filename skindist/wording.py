"""Numbers with their nouns and units, for whatever is said to people; names of files, as they can be shown."""

import re

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # the last: not UTF-8


def plural(count: int, noun: str) -> str:
    """A number with its noun: "1 epoch", "2 processes", "10,000 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def percent(share: float) -> str:
    """A share as it was given: 0.95 is "95%", 0.975 is "97.5%"."""
    return f"{100 * share:.6g}%"


def volume(size: float) -> str:
    """Bytes as people say them: "4.85 kB", "1.50 GB"."""
    unit, power = next((it for it in (("GB", 1e9), ("MB", 1e6)) if size >= it[1]), ("kB", 1e3))
    return f"{size / power:.2f} {unit}"


def printable(name: str) -> str:
    """A name without control characters, changes of writing direction and stand-ins for bytes that are not UTF-8."""
    return UNPRINTABLE.sub("\ufffd", name)
