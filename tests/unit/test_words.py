"""What a run says on the console: of each epoch, and at its end."""

from pathlib import Path

import pytest

from skindist.evaluation.metrics import HEADLINES
from skindist.report.words import describe_epoch, describe_places, describe_results
from tests.helpers.made_run import invented, made_run


@pytest.mark.parametrize(
    ("is_best", "counts", "end"),
    [
        (True, True, "50.0 images/s (best so far)"),
        (False, True, "50.0 images/s"),
        (False, False, "(does not count yet)"),
    ],
)
def test_an_epoch_says_whether_it_counts(is_best: bool, counts: bool, end: str) -> None:
    said = describe_epoch(3, {metric.name: 0.5 for metric in HEADLINES}, 50.0, is_best, counts)
    assert said.startswith("epoch 3: val ")
    assert said.endswith(end)


def test_the_end_says_which_epochs_could_be_the_best(tmp_path: Path) -> None:
    results = made_run(tmp_path / "run", *invented(100)).results()
    stop = results["early_stopping"]
    late, all_of_them = (
        describe_results({**results, "early_stopping": {**stop, "first_epoch": first}}).splitlines()[0]
        for first in (2, 1)
    )
    assert (
        late == "stopped early after 3 epochs; best val/loss 0.5000 in epoch 2 (epochs before number 2 did not count)"
    )
    assert all_of_them == "stopped early after 3 epochs; best val/loss 0.5000 in epoch 2"


def test_a_page_is_named_only_if_there_is_one(tmp_path: Path) -> None:
    figures, page = tmp_path / "results.json", tmp_path / "report.html"
    assert describe_places(figures, page) == f"all figures: {figures}"
    page.touch()
    assert describe_places(figures, page) == f"all figures: {figures}; what they are worth: {page}"
