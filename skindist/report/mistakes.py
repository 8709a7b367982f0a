"""Where a model errs, in pictures: the mistakes it was surest of, and the images nearest to its threshold."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skindist.data.scan import CLASSES
from skindist.machine import available_cores
from skindist.report.html import thumbnail
from skindist.report.scores import Scores

MOST = 8  # pictures of one kind


@dataclass(frozen=True)
class Case:
    """One image: what it is, what the model said, what the metadata say, and a small picture as a data URI; "" where
    the file is gone or holds something else by now."""

    path: str
    label: str
    probability: float
    about: str
    thumbnail: str


def mistakes(scores: Scores, threshold: float, folder: Path | None) -> list[tuple[str, list[Case]]]:
    """A caption and up to MOST cases for each kind, the worst first; a kind without cases is left out.

    Args:
        threshold: from which probability on an image is called malignant.
        folder: what the paths are relative to; None shows no pictures.
    """
    p, y = scores.probabilities, scores.labels
    called, order = p >= threshold, np.argsort(p, kind="stable")
    near = np.argsort(np.abs(p - threshold), kind="stable")
    kinds = {
        "Malignant, but called benign, the lowest probability first": _first(order, (y == 1) & ~called),
        "Benign, but called malignant, the highest probability first": _first(order[::-1], (y == 0) & called),
        "Least certain: nearest to the threshold": _first(near, np.ones(y.size, bool)),
    }
    wanted = sorted({index for members in kinds.values() for index in members})
    with ThreadPoolExecutor(available_cores()) as pool:
        small = dict(zip(wanted, pool.map(lambda index: _picture(scores, index, folder), wanted), strict=True))
    return [
        (
            caption,
            [
                Case(
                    scores.paths[i],
                    CLASSES[y[i]],
                    float(p[i]),
                    ", ".join(f"{name} {value}" for name, value in scores.about[i].items()),
                    small[i],
                )
                for i in members
            ],
        )
        for caption, members in kinds.items()
        if members
    ]


def _first(order: NDArray[np.int64], which: NDArray[np.bool_]) -> list[int]:
    return [int(index) for index in order if which[index]][:MOST]


def _picture(scores: Scores, index: int, folder: Path | None) -> str:
    """The small picture, if the file still has the bytes that were judged."""
    if folder is None:
        return ""
    file = folder / scores.paths[index]
    try:
        if scores.hashes and hashlib.sha256(file.read_bytes()).hexdigest() != scores.hashes[index]:
            return ""
    except OSError:
        return ""
    return thumbnail(file)
