"""What is expected of a run under each fault, and the table of these that the suite writes from what it has measured:

pytest -m "slow or not slow" --fault-table skindist/training/README.md
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

Measured = float | str


class Seen(NamedTuple):
    """What one test saw under a fault: words with a {name} for each figure that it measured, and the figures."""

    words: str
    figures: Mapping[str, Measured]


SAME = "resumed, it ends with the same bytes"
EXPECTED = {
    "kill -9 of all ranks at a random call": SAME,
    "kill -9 at every point inside a save": f"the old or the new checkpoint is whole; {SAME}",
    "all ranks die twice in one epoch, then at its end": SAME,
    "kill -9 at the last batch of an epoch": SAME,
    "kill -9 of one rank": f"all ranks end, one line names the rank; {SAME}",
    "kill -9 of the launcher": f"the orphans save and end; {SAME}",
    "kill -9 of one rank, --max_restarts 1": "the launcher restarts all, and the run ends with the same bytes",
    "one rank raises": f"all ranks end, one line names cause and rank; {SAME}",
    "one rank exits with 0": f"all ranks end, one line names the rank; {SAME}",
    "one rank hangs": f"all ranks end after --run.timeout_minutes, one line names the rank; {SAME}",
    "one rank is out of memory": f"all ranks end, one line says what to lower; {SAME}",
    "SIGTERM to all": f"saved at a step that all agree on, then the end; {SAME}",
    "SIGTERM during an evaluation": f"saved between two batches, then exit 143; {SAME}",
    "a file of the newest checkpoint is damaged": f"it is named, the one before is used; {SAME}",
    "a malicious pickle beside the checkpoint": f"never opened; {SAME}",
    "the disk is full in a save": f"all ranks end with one line, older checkpoints stay whole; {SAME}",
    "NaN, --train.non_finite error": f"all ranks end with one line that names the step; {SAME}",
    "NaN, --train.non_finite skip": "the step is left out on all ranks and recorded",
    "an image is removed during training": "the run goes on with its pixels, to the same bytes",
    "an image was removed before resuming": "refused with its name, nothing changed",
    "3, then 2, then 1 processes": "every image once an epoch, in the same batches",
    "W&B: no key": "recorded offline",
    "W&B: dead at the start": "recorded offline, said in one line",
    "W&B: dies during the run": "the run goes on, the command that uploads its record is printed",
    "W&B: answers 500 or 403": "the run goes on, the command that uploads its record is printed",
    "W&B: hangs at the finish": "the run ends in bounded time, the command that uploads its record is printed",
}
BEGIN, END = "<!-- faults -->\n", "<!-- /faults -->"
HEADER = "| fault | expected | observed |\n| --- | --- | --- |\n"


def summary(observations: Sequence[Seen]) -> str:
    """What several tests saw; those that say it in the same words share a sentence, which joins their figures."""
    alike: dict[str, list[Mapping[str, Measured]]] = defaultdict(list)
    for seen in observations:
        alike[seen.words].append(seen.figures)
    return "; ".join(
        words.format(**{name: joined([figures[name] for figures in tests]) for name in tests[0]})
        for words, tests in alike.items()
    )


def joined(values: Sequence[Measured]) -> str:
    """Numbers by the smallest and the largest, words one by one."""
    numbers = [value for value in values if not isinstance(value, str)]
    if numbers:
        ends = (min(numbers), max(numbers))
        return " to ".join(dict.fromkeys(f"{end:.1f}" if isinstance(end, float) else str(end) for end in ends))
    *first, last = dict.fromkeys(map(str, values))
    return f"{', '.join(first)} and {last}" if first else last


def render(observed: dict[str, list[Seen]]) -> str:
    """The table in Markdown."""
    lines = [f"| {fault} | {expected} | {summary(observed[fault])} |\n" for fault, expected in EXPECTED.items()]
    return HEADER + "".join(lines)


def write_table(page: Path, observed: dict[str, list[Seen]]) -> None:
    """Replace the table in a page.

    Raises:
        ValueError: a fault of the table was not tried.
    """
    if missing := EXPECTED.keys() - observed.keys():
        raise ValueError(f"not tried: {', '.join(sorted(missing))}; run the slow tests, too")
    text = page.read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    page.write_text(text[:begin] + render(observed) + text[end:])


def read_table(page: Path) -> list[tuple[str, str, str]]:
    """Fault, expected and observed of each row in a page."""
    text = page.read_text()
    table = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].removeprefix(HEADER)
    rows = [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in table.splitlines()]
    return [(fault, expected, observed) for fault, expected, observed in rows]
