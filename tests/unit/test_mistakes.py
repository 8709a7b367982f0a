"""Which errors are shown, against hand-computed expectations."""

from itertools import chain
from pathlib import Path

import numpy as np

from skindist.evaluation.mistakes import telling_cases
from skindist.report.mistakes import mistakes
from skindist.report.scores import Scores
from skindist.run.folder import Run

P = np.array([0.9, 0.1, 0.45, 0.6, 0.2, 0.05, 0.4, 0.8])
Y = np.array([1, 1, 1, 0, 0, 0, 0, 0])


def test_the_most_telling_come_first() -> None:
    assert telling_cases(P, Y, 0.5, 2) == {"missed": [1, 2], "false alarm": [7, 3], "least certain": [6, 4]}


def test_no_image_is_of_two_kinds_and_none_of_another() -> None:
    found = telling_cases(P, Y, 0.5, 1)
    assert found == {"missed": [1], "false alarm": [7], "least certain": [2]}
    everything = telling_cases(P, Y, 0.5, 100)
    assert sorted(chain(*everything.values())) == list(range(8))


def test_a_probability_at_the_threshold_is_called_malignant() -> None:
    assert telling_cases(np.array([0.5, 0.5]), np.array([0, 1]), 0.5, 3) == {
        "missed": [],
        "false alarm": [0],
        "least certain": [1],
    }


def test_none_are_wanted() -> None:
    assert not any(telling_cases(P, Y, 0.5, 0).values())


def test_a_name_that_the_locale_cannot_write_has_no_picture(tmp_path: Path) -> None:
    """No locale has a letter for half of a surrogate pair."""
    scores = Scores(["\ud800.jpg"], np.array([1]), np.array([0.1]), None, ["0" * 64], [{}])
    ((_, (case,)),) = mistakes(Run(tmp_path), scores, 0.5, tmp_path)
    assert (case.label, case.thumbnail) == ("malignant", "")
