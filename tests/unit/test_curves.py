"""A run's curves: what is drawn, and what the legend says of it."""

import pytest

from skindist.evaluation.metrics import HEADLINES
from skindist.report.curves import plot_curves

EVENTS = [
    {"epoch": 0.5, "train/loss": 0.7},
    {"epoch": 1.0, "val/loss": 0.6, "val/auroc": 0.7},
    {"epoch": 2.0, "val/loss": 0.5, "val/auroc": 0.8},
]


@pytest.mark.parametrize(
    ("best", "legends"),
    [
        (None, {"loss": ["train/loss", "val/loss"], "auroc": ["val/auroc"], "accuracy": []}),
        (2, {"loss": ["train/loss", "val/loss", "best epoch"], "auroc": ["val/auroc", "best epoch"],
             "accuracy": ["best epoch"]}),
    ],
)  # fmt: skip
def test_the_legend_names_what_is_drawn(best: int | None, legends: dict[str, list[str]]) -> None:
    panels = plot_curves(EVENTS, best).axes
    for axes, metric in zip(panels, HEADLINES, strict=True):
        legend = axes.get_legend()
        said = [text.get_text() for text in legend.get_texts()] if legend else []
        assert said == legends[metric.name]
        assert len(axes.lines) == len(said)


def test_epochs_are_counted_in_whole_numbers() -> None:
    for axes in plot_curves(EVENTS).axes:
        assert [tick for tick in axes.get_xticks() if tick % 1] == []
