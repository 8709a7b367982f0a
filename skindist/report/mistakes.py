"""Where a model errs, in pictures: with a heat map where the run has drawn one, else as the image is."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from skindist.data.scan import CLASSES
from skindist.evaluation.mistakes import FALSE_ALARM, MISSED, UNCERTAIN, telling_cases
from skindist.report.html import SIDE, of_images, thumbnail
from skindist.report.scores import Scores
from skindist.run.folder import Run

MOST = 8  # pictures of one kind
CAPTIONS = {
    MISSED: "Malignant, but called benign, the lowest probability first",
    FALSE_ALARM: "Benign, but called malignant, the highest probability first",
    UNCERTAIN: "Least certain: nearest to the threshold",
}


@dataclass(frozen=True)
class Case:
    """One image: what it is, what the model said, what the metadata say, and a small picture as a data URI, maybe with
    its heat map beside it; "" where the file is gone or holds something else by now, or split.csv does not tell."""

    path: str
    label: str
    probability: float
    about: str
    thumbnail: str
    explained: bool


def mistakes(run: Run, scores: Scores, threshold: float, folder: Path | None) -> list[tuple[str, list[Case]]]:
    """A caption and up to MOST cases for each kind, the worst first; a kind without cases is left out.

    Args:
        threshold: from which probability on an image is called malignant.
        folder: what the paths are relative to; None shows no pictures.
    """
    kinds = telling_cases(scores.probabilities, scores.labels, threshold, MOST)
    wanted = [index for members in kinds.values() for index in members]
    cases = of_images(wanted, lambda index: _case(run, scores, index, folder))
    return [(CAPTIONS[kind], [cases[index] for index in members]) for kind, members in kinds.items() if members]


def _case(run: Run, scores: Scores, index: int, folder: Path | None) -> Case:
    about = ", ".join(f"{name} {value}" for name, value in scores.about[index].items())
    drawn = run.error_picture(scores.hashes[index]) if scores.hashes else None
    explained = drawn is not None and drawn.exists()
    picture = thumbnail(drawn, 2 * SIDE) if drawn and explained else _picture(scores, index, folder)
    label, probability = CLASSES[scores.labels[index]], float(scores.probabilities[index])
    return Case(scores.paths[index], label, probability, about, picture, explained)


def _picture(scores: Scores, index: int, folder: Path | None) -> str:
    """The small picture, if the file still has the bytes that were judged."""
    if folder is None or scores.hashes is None:
        return ""
    file = folder / scores.paths[index]
    try:
        if hashlib.sha256(file.read_bytes()).hexdigest() != scores.hashes[index]:
            return ""
    except (OSError, ValueError):  # the last: the locale has no letters for this name
        return ""
    return thumbnail(file)
