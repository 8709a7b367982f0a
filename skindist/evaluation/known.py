"""What is known of images besides their pixels: labels, groups, what their files told, and what a table says."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skindist.data.inspection import Facts
from skindist.data.metadata import NO_ID

AGES = (30, 45, 60, 75)  # where the age bands begin, after the first
COLUMNS = ("age", "sex", "site", "skin_tone", "source")  # of the metadata that make subgroups; ids never do
IMAGE_SIZE = "image size"
RARE = 5  # images; a value with fewer is pooled into "other": alone, it might point to a person
MOST = 12  # values of a column that are told apart
UNKNOWN, OTHER = "unknown", "other"


@dataclass(frozen=True)
class Known:
    """Of each image of a split, in the order of its predictions: label, group, what the file told, and metadata."""

    labels: NDArray[np.int64]
    groups: NDArray[np.str_]
    facts: Sequence[Facts]
    metadata: Sequence[Mapping[str, str]]

    def values(self, column: str) -> list[str]:
        """What the metadata say of each image in a column, in plain form; "" where they do not know."""
        found = [known.get(column, "").strip() for known in self.metadata]
        return ["" if value.lower() in NO_ID else value for value in found]

    def columns(self) -> dict[str, NDArray[np.str_]]:
        """The columns that tell images apart, by name: one value for each image, few in all. Age comes in bands; what
        is rare is "other"; what nobody knows is "unknown"."""
        found = {name: self.values(name) for name in COLUMNS}
        found["age"] = [age_band(value) for value in found["age"]]
        found[IMAGE_SIZE] = [f"{facts.width} x {facts.height}" for facts in self.facts]
        pooled = {name: pool(values) for name, values in found.items()}
        return {name: values for name, values in pooled.items() if len(set(values.tolist())) > 1}

    def sources(self) -> NDArray[np.str_] | None:
        """Where each image comes from: the metadata's source, else the size of the picture; None where all are
        alike."""
        columns = self.columns()
        return columns["source"] if "source" in columns else columns.get(IMAGE_SIZE)


def age_band(age: str) -> str:
    """The band of an age in years, such as "45 to 59" for "50"; what is no number as it is, as a table may have bands
    of its own; "" for what is no age."""
    try:
        years = float(age.rstrip("+ "))  # the oldest are "90+" in tables that protect them
    except ValueError:
        return age
    if not 0 <= years <= 120:
        return ""
    ends = (0, *AGES)
    band = sum(years >= start for start in AGES)
    return f"{ends[band]} or more" if band == len(AGES) else f"{ends[band]} to {AGES[band] - 1}"


def pool(values: Sequence[str]) -> NDArray[np.str_]:
    """The frequent values as they are; all others as "other", if these are not rare themselves, and "" as "unknown".
    Upper and lower case are one value, written as most often."""
    written = sorted(Counter(values).items(), key=lambda item: (item[1], item[0]))
    usual = {value.casefold(): value for value, _ in written}  # the last one stays
    named = [usual[value.casefold()] or UNKNOWN for value in values]
    counted = Counter(value for value in named if value.casefold() != OTHER)
    frequent = {value for value, count in counted.most_common(MOST) if count >= RARE} | {UNKNOWN}
    rest = OTHER if sum(value not in frequent for value in named) >= RARE else UNKNOWN
    return np.array([value if value in frequent else rest for value in named], np.str_)
