"""The shortcut baseline: how well the labels of a set can be told without looking at the lesions.

A network that may use the file format, the lighting or the frame of a picture will do so ("shortcut learning": Geirhos
et al., Nature Machine Intelligence 2, 2020). Here a plain classifier gets nothing else. What it scores, a network can
score on this set without having learnt anything of lesions, and may lose on the next set.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from skindist.data.inspection import FORMATS, Facts
from skindist.data.scan import ImageFile
from skindist.evaluation.counts import Labels, Probabilities
from skindist.evaluation.intervals import Estimate, auroc_of
from skindist.evaluation.known import Known
from skindist.evaluation.metrics import METRICS
from skindist.evaluation.resampling import FEWEST, sample_of

Traits = NDArray[np.float64]
FOLDS = 5
MOST_SOURCES = 50  # that are told apart, the most frequent ones of training


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
    little of the lesion's own colour is in it. The interval takes the models as given: of a few hundred images or less
    it is too narrow.

    Returns:
        None where a class has fewer than FEWEST groups.
    """
    labels = np.array([image.label for image in images], np.int64)
    members = np.array(groups)
    if sample_of(labels, members).fewest < FEWEST:
        return None
    families = _families([image.facts for image in images])
    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels, members))

    def out_of_fold(traits: Traits) -> Probabilities:
        probabilities = np.empty(len(labels))
        for train, test in folds:
            probabilities[test] = _trained(traits[train], labels[train], traits[test], seed)
        return probabilities

    with threadpool_limits(1):  # models this small are done before many threads have met
        everything = out_of_fold(np.hstack(list(families.values())))
        alone = {name: out_of_fold(values) for name, values in families.items()}
    scores = {name: METRICS["auroc"](probabilities, labels) for name, probabilities in alone.items()}
    return Shortcut(auroc_of(everything, labels, seed, members), scores)


def shortcut_of_test(train: Known, test: Known, seed: int) -> dict[str, Probabilities] | str:
    """Train the baseline on the training images and apply it to the test images.

    Where the metadata name the sources of the images, it sees these too.

    Returns:
        Probabilities of malignant, (test images,), with each family of traits alone by its name, and with all of them
        as "all"; why there are none where a class has fewer than FEWEST groups in either part.
    """
    fewest = min(sample_of(part.labels, part.groups).fewest for part in (train, test))
    if fewest < FEWEST:
        needed = f"{FEWEST} groups of each class, in training and in test"
        return f"the baseline takes {needed}; the smallest number is {fewest}"
    sources = np.array([*train.values("source"), *test.values("source")])
    families = _families([*train.facts, *test.facts])
    if len(set(sources.tolist())) > 1:
        counted = sorted(Counter(train.values("source")).items(), key=lambda item: (-item[1], item[0]))
        told_apart = np.array([name for name, _ in counted[:MOST_SOURCES]])
        families["source"] = (sources[:, None] == told_apart).astype(np.float64)
    families["all"] = np.hstack(list(families.values()))
    n = len(train.facts)
    with threadpool_limits(1):
        return {name: _trained(traits[:n], train.labels, traits[n:], seed) for name, traits in families.items()}


def _families(facts: Sequence[Facts]) -> dict[str, Traits]:
    """What the baseline sees of the images, by family: (images, traits) each."""
    traits = [_traits(each) for each in facts]
    return {name: np.array([trait[name] for trait in traits], np.float64) for name in traits[0]}


def _traits(facts: Facts) -> dict[str, list[float]]:
    """What the baseline sees of one image, by family."""
    density = facts.file_size / (facts.width * facts.height)
    return {
        "file": [facts.file_size, density, *(facts.format == name for name in FORMATS)],
        "dimensions": [facts.width, facts.height, facts.width / facts.height],
        "colour": list(facts.colours[:6]),
        "border": list(facts.colours[6:]),
    }


def _trained(traits: Traits, labels: Labels, judged: Traits, seed: int) -> Probabilities:
    """Probability of malignant for each judged image, from a model of the others."""
    # Small trees, and leaves that 10 images a class can fill. Balanced classes keep a model that has learnt nothing at
    # 0.5 in every fold: the share of malignant images, which differs by fold, would rank the folds.
    model = HistGradientBoostingClassifier(
        max_iter=50,
        max_depth=3,
        min_samples_leaf=5,
        class_weight="balanced",
        early_stopping=False,
        random_state=seed % 2**32,
    )
    probabilities: Probabilities = model.fit(traits, labels).predict_proba(judged)[:, 1]
    return probabilities.round(4)  # what differs by rounding errors is a tie
