"""What a run said of each image of a split, as its files hold it."""

from collections.abc import Sequence
from dataclasses import dataclass

from skindist.data.scan import CLASSES
from skindist.data.split import LABELS
from skindist.errors import Damaged, UserError
from skindist.evaluation.counts import Labels, Probabilities
from skindist.evaluation.metrics import check
from skindist.run.folder import PREDICTED, Run


@dataclass(frozen=True)
class Scores:
    """Every image once, in the order of the file."""

    paths: Sequence[str]
    labels: Labels
    probabilities: Probabilities
    groups: Sequence[str] | None
    """The group of each image; None where split.csv does not tell."""
    hashes: Sequence[str] | None
    """The SHA-256 of each image's file; None where split.csv does not tell."""
    about: Sequence[dict[str, str]]
    """What the metadata say of each image."""

    @property
    def both_classes(self) -> bool:
        """Whether there is an image of each class."""
        return bool(0 < self.labels.sum() < self.labels.size)

    def of(self, name: str) -> Probabilities:
        """The probabilities of a class."""
        found: Probabilities = self.probabilities[self.labels == CLASSES.index(name)]
        return found


def read_scores(run: Run, split: str) -> Scores:
    """Read predictions-*.csv, and of split.csv what it tells of the same images.

    Raises:
        UserError: the predictions are missing or damaged.
    """
    rows = run.predictions(split)
    try:
        probabilities, labels = check(
            [float(row["probability"]) for row in rows], [LABELS[row["label"]] for row in rows]
        )
        paths = [row["path"] for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{run.path}: predictions of {split} cannot be read ({error})") from None
    about = [{name: value for name, value in row.items() if name not in PREDICTED and value} for row in rows]
    try:
        of_path = {row.path: row for row in run.split()}
        found = [of_path[path] for path in paths]
    except (UserError, KeyError):
        return Scores(paths, labels, probabilities, None, None, about)
    return Scores(paths, labels, probabilities, [r.group for r in found], [r.sha256 for r in found], about)
