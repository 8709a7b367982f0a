"""What scans found out about files, one file of lines for each folder of images, in the cache."""

import json
from pathlib import Path
from typing import Any

from skindist.data.inspection import Facts
from skindist.files import write_cache
from skindist.machine import cache_folder

CACHE_FORMAT = 3  # of what is remembered: raise it when `inspect` finds out other things

Stamp = str  # size, modification time and change time of a file, in bytes and nanoseconds


def memory_of(cache_dir: str | None) -> Path:
    """The folder in which what was found out about images is remembered."""
    return cache_folder(cache_dir) / "scans"


def recall(memory: Path) -> dict[str, tuple[Stamp, Facts]]:
    """What an earlier scan wrote; nothing if there was none or its file cannot be read."""
    known = {}
    try:
        with memory.open() as file:
            if json.loads(next(file)) != CACHE_FORMAT:
                return {}
            for line in file:
                path, stamp, facts = json.loads(line)
                known[path] = (stamp, _from_json(facts))
    except (OSError, ValueError, TypeError, KeyError, StopIteration):
        return {}
    return known


def remember(memory: Path, files: dict[str, tuple[Stamp, Facts]]) -> None:
    """Keep what was found out about files for the next scan."""
    lines = [json.dumps([path, stamp, _to_json(facts)]) for path, (stamp, facts) in files.items()]
    write_cache(memory, "\n".join([json.dumps(CACHE_FORMAT), *lines, ""]))


def _to_json(facts: Facts) -> dict[str, Any]:
    return facts._asdict() | {"hashes": facts.hashes.hex(), "layout": facts.layout.hex()}


def _from_json(values: dict[str, Any]) -> Facts:
    for name in ("notes", "colours"):
        values[name] = tuple(values[name])
    for name in ("hashes", "layout"):
        values[name] = bytes.fromhex(values[name])
    return Facts(**values)
