"""Draw a run's curves from its metrics.jsonl: `skindist curves RUN` writes RUN/curves.png."""

from pathlib import Path
from typing import Any

from skindist.errors import UserError
from skindist.evaluation.metrics import HEADLINES
from skindist.run.folder import Run


def draw_curves(run: Path) -> Path:
    """Plot the headline metrics over epochs, a panel each; return the path of the PNG.

    The dotted line marks the epoch with the lowest validation loss.

    Raises:
        UserError: the folder holds no metrics.jsonl, or that holds no finished epoch.
    """
    events = Run(run).metrics()
    if not any("val/loss" in event for event in events):
        raise UserError(f"{run}: no epoch is finished yet")

    from matplotlib.figure import Figure

    figure = Figure(figsize=(10 / 3 * len(HEADLINES), 3.2), layout="constrained")
    styles: dict[str, dict[str, Any]] = {
        "train": {"color": "C0", "linewidth": 1},
        "val": {"color": "C1", "marker": "o"},
    }
    for axes, metric in zip(figure.subplots(1, len(HEADLINES)), HEADLINES, strict=True):
        for split, style in styles.items():
            key = f"{split}/{metric.name}"
            points = [(event["epoch"], event[key]) for event in events if event.get(key) is not None]
            axes.plot(*zip(*points, strict=True), label=key, **style)
        best = min((event for event in events if "val/loss" in event), key=lambda event: event["val/loss"])
        axes.axvline(best["epoch"], color="grey", linestyle=":", linewidth=1)
        axes.set(title=metric.title, xlabel="epoch")
        axes.legend(frameon=False)
    figure.savefig(run / "curves.png", dpi=120)
    return run / "curves.png"
