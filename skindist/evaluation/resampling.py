"""The bootstrap's resamples of images, or of the groups of images that belong to one lesion or one patient.

Every resample is drawn within each class: groups among those that hold a malignant image, and among the others. How
many units each class has is drawn too, as it varies from set to set, and the class counts for so many. What is the same
for any share of malignant images, as the AUROC is, does not change with that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skindist.evaluation.counts import Counts, Labels, Probabilities, Values

Groups = Sequence[Any] | NDArray[Any]
RESAMPLES = 2000
FEWEST = 10  # of a class, images or groups: with fewer, what is said of it would say more of chance
_EXACT = 1024  # weights are multiples of its reciprocal: sums of them have no rounding errors
_CELLS = 200_000  # images times resamples in one chunk: arrays of 1.6 MB, which stay in the cache of a core


@dataclass(frozen=True)
class Sample:
    """Labels (N,) of images, and which unit each belongs to, (N,): an image, or a group that is drawn as a whole."""

    labels: Labels
    units: NDArray[np.int64]

    @property
    def grouped(self) -> bool:
        """Whether a unit holds several images."""
        return len(set(self.units.tolist())) < self.units.size

    @property
    def kind(self) -> str:
        """What its intervals are called."""
        return "group bootstrap" if self.grouped else "bootstrap"

    def units_of(self, label: int) -> int:
        """How many units hold an image of a class."""
        return len(set(self.units[self.labels == label].tolist()))

    @property
    def fewest(self) -> int:
        """How many units hold an image of the rarer class."""
        return min(self.units_of(0), self.units_of(1))

    def weights(self, seed: int, resamples: int = RESAMPLES) -> Iterator[Values]:
        """How much each image counts in each resample, (resamples, N), in chunks."""
        rng, shares = np.random.default_rng(seed), np.random.default_rng([seed, 1])
        units = int(self.units.max(initial=-1)) + 1
        malignant = np.unique(self.units[self.labels == 1])
        strata = [malignant, np.setdiff1d(self.units, malignant)]
        rows = max(1, _CELLS // max(1, self.units.size))
        for start in range(0, resamples, rows):
            drawn = np.zeros((min(rows, resamples - start), units))
            held = shares.binomial(units, malignant.size / max(1, units), (len(drawn), 1))
            for members, count in zip(strata, (held, units - held), strict=True):
                weight = np.rint(_EXACT * count / max(1, members.size)) / _EXACT
                drawn[:, members] = weight * _occurrences(len(drawn), members.size, rng)
            yield drawn[:, self.units]


def sample_of(labels: Labels, groups: Groups | None = None) -> Sample:
    """The sample whose units are the groups, or the images where none is known."""
    units = np.arange(labels.size)
    if groups is not None:
        _, first, inverse = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
        units = first.argsort().argsort()[inverse]  # numbered by where they first occur, whatever they are called
    return Sample(labels, units)


class Ranking:
    """Images sorted by probability: turns weights of images into the counts that a metric takes."""

    def __init__(self, probabilities: Probabilities, labels: Labels) -> None:
        self.order = np.argsort(probabilities, kind="stable")
        self.scores, self.starts = np.unique(probabilities[self.order], return_index=True)
        self.of_class = [labels[self.order] == label for label in (0, 1)]

    def counts(self, weights: Values) -> tuple[Probabilities, Counts, Counts]:
        """Scores (S,), and the benign and malignant images with each, (resamples, S), of weights (resamples, N)."""
        ordered = weights[:, self.order]
        benign, malignant = (ordered * members for members in self.of_class)
        if 0 < self.scores.size < self.order.size:
            benign, malignant = (np.add.reduceat(each, self.starts, axis=1) for each in (benign, malignant))
        return self.scores, benign, malignant


def _occurrences(rows: int, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw n of n, with replacement, in each row: how often each is drawn, (rows, n)."""
    if n == 0:
        return np.zeros((rows, 0), np.int64)
    drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
