"""The record of a run's curves: one JSON object a logged event, appended and flushed at once."""

import json
from pathlib import Path
from typing import Any

from skindist.files import finite, write_atomic

Event = dict[str, Any]


def append(file: Path, event: Event) -> None:
    """Append one event; it is on its way to disk when this returns."""
    with file.open("a") as record:
        record.write(json.dumps(finite(event)) + "\n")


def read(file: Path, damaged_too: bool = False) -> list[Event]:
    """All events, in order; half a line at the end, of a run that was killed, is left out.

    Args:
        damaged_too: whether a damaged line is left out as well.

    Raises:
        ValueError: a line is damaged.
    """
    *lines, _ = file.read_text(errors="replace").split("\n")
    events: list[Event] = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict):
            events.append(event)
        elif not damaged_too:
            raise ValueError(f"line {number} is damaged")
    return events


def rewind(file: Path, global_step: int, epoch: int) -> None:
    """Drop the events after a checkpoint's step, and evaluations after its epoch: the resumed run logs them again."""
    if file.exists():
        kept = [
            event
            for event in read(file, damaged_too=True)
            if event["global_step"] <= global_step and ("val/loss" not in event or event["epoch"] <= epoch)
        ]
        write_atomic(file, "".join(json.dumps(event) + "\n" for event in kept))
