"""Draw a run's curves from its metrics.jsonl: `skindist curves RUN` writes RUN/curves.png."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from skindist.errors import UserError
from skindist.evaluation.metrics import HEADLINES
from skindist.report.history import points
from skindist.report.html import attempt, write_page
from skindist.run.folder import Run

STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": "C0", "linewidth": 1},
    "val": {"color": "C1", "marker": "o"},
}


def draw_curves(run: Path) -> Path:
    """Plot the headline metrics over epochs, a panel each; return the path of the PNG.

    Raises:
        UserError: the folder holds no metrics.jsonl, that holds no finished epoch, or the picture cannot be written.
    """
    events, results = Run(run).metrics(), attempt(Run(run).results) or {}
    if not any("val/loss" in event for event in events):
        raise UserError(f"{run}: no epoch is finished yet")
    picture = BytesIO()
    plot_curves(events, (results.get("early_stopping") or {}).get("best_epoch")).savefig(picture, dpi=120)
    return write_page(run / "curves.png", picture.getvalue())


def plot_curves(events: Sequence[Mapping[str, Any]], best_epoch: int | None = None) -> Figure:
    """The headline metrics over epochs, as far as they are known, and a dotted line at the best epoch."""
    figure = Figure(figsize=(10 / 3 * len(HEADLINES), 3.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(HEADLINES)), HEADLINES, strict=True):
        for split, style in STYLES.items():
            if known := points(events, key := f"{split}/{metric.name}"):
                axes.plot(*zip(*known, strict=True), label=key, **style)
        if best_epoch:
            axes.axvline(best_epoch, color="grey", linestyle=":", linewidth=1, label="best epoch")
        axes.set(title=metric.title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    return figure
