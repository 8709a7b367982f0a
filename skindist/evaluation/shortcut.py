"""The shortcut baseline: how well the labels of a set can be told without looking at the lesions.

A network that may use the file format, the lighting or the frame of a picture will do so ("shortcut learning": Geirhos
et al., Nature Machine Intelligence 2, 2020). Here a plain classifier gets nothing else. What it scores, a network can
score on this set without having learnt anything of lesions, and may lose on the next set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from skindist.data.inspection import FORMATS, Facts
from skindist.data.scan import CLASSES, ImageFile
from skindist.evaluation.intervals import Estimate, estimates
from skindist.evaluation.metrics import METRICS

FOLDS = 5
FEWEST = 10  # groups of a class; with fewer, the answer would be noise


@dataclass(frozen=True)
class Shortcut:
    """What the baseline scores with all traits and, by name, with each family of traits alone."""

    auroc: Estimate
    families: dict[str, float]

    @property
    def verdict(self) -> str:
        """One sentence: the score, whether it is above chance, and where it comes from."""
        score = self.auroc
        said = (
            f"a model that never looks at the lesion scores AUROC {score.value:.2f} "
            f"({score.low:.2f} to {score.high:.2f}) here"
        )
        best = max(self.families, key=lambda name: self.families[name])
        if score.low <= 0.5:
            return f"{said}: not above chance"
        if self.families[best] - 0.5 > (score.value - 0.5) / 2:
            return f"{said}; most of it from {best}"
        return f"{said}; no family of traits alone explains most of it, {best} is the strongest"


def shortcut_baseline(images: Sequence[ImageFile], groups: Sequence[str], seed: int = 0) -> Shortcut | None:
    """Cross-validate a classifier that sees only traits of the file and of the whole picture.

    Images of one group are never trained on and judged in the same fold. Colour is that of the whole picture, so a
    little of the lesion's own colour is in it. The interval takes the images as independent and the models as given:
    of a few hundred images or less it is too narrow.

    Returns:
        None where a class has fewer than FEWEST groups.
    """
    labels = np.array([image.label for image in images], np.int64)
    members = np.array(groups)
    if any(len(set(members[labels == label].tolist())) < FEWEST for label in range(len(CLASSES))):
        return None
    traits = [_traits(image.facts) for image in images]
    families = {name: np.array([trait[name] for trait in traits], np.float64) for name in traits[0]}
    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels, members))
    with threadpool_limits(1):  # models this small are done before many threads have met
        everything = _out_of_fold(np.hstack(list(families.values())), labels, folds, seed)
        alone = {name: _out_of_fold(values, labels, folds, seed) for name, values in families.items()}
    scores = {name: METRICS["auroc"](probabilities, labels) for name, probabilities in alone.items()}
    return Shortcut(estimates(everything, labels, seed)["auroc"], scores)


def _traits(facts: Facts) -> dict[str, list[float]]:
    """What the baseline sees of one image, by family."""
    density = facts.file_size / (facts.width * facts.height)
    return {
        "file": [facts.file_size, density, *(facts.format == name for name in FORMATS)],
        "dimensions": [facts.width, facts.height, facts.width / facts.height],
        "colour": list(facts.colours[:6]),
        "border": list(facts.colours[6:]),
    }


def _out_of_fold(
    traits: NDArray[np.float64],
    labels: NDArray[np.int64],
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    seed: int,
) -> NDArray[np.float64]:
    """Probability of malignant for each image, from a model that did not see its fold."""
    probabilities = np.empty(len(labels))
    for train, test in folds:
        # Small trees, and leaves that 10 images a class can fill. Balanced classes keep a model that has learnt nothing
        # at 0.5 in every fold: the share of malignant images, which differs by fold, would rank the folds.
        model = HistGradientBoostingClassifier(
            max_iter=50,
            max_depth=3,
            min_samples_leaf=5,
            class_weight="balanced",
            early_stopping=False,
            random_state=seed,
        )
        probabilities[test] = model.fit(traits[train], labels[train]).predict_proba(traits[test])[:, 1]
    return probabilities.round(4)  # what differs by rounding errors is a tie
