"""Draw a run's curves from its metrics.jsonl: `skindist curves RUN` writes RUN/curves.png."""

from pathlib import Path

from skindist.errors import UserError
from skindist.run.folder import Run


def draw_curves(run: Path) -> Path:
    """Plot loss, accuracy and AUROC over epochs; return the path of the PNG.

    The dotted line marks the epoch with the lowest validation loss.

    Raises:
        UserError: the folder holds no metrics.jsonl, or that holds no finished epoch.
    """
    events = Run(run).metrics()
    if not any("val/loss" in event for event in events):
        raise UserError(f"{run}: no epoch is finished yet")

    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = {
        "loss": ("train/loss", "val/loss"),
        "accuracy": ("train/accuracy", "val/accuracy"),
        "AUROC": ("val/auroc",),
    }
    for axes, (title, keys) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for key in keys:
            points = [(event["epoch"], event[key]) for event in events if event.get(key) is not None]
            style = {"color": "C1", "marker": "o"} if key.startswith("val/") else {"color": "C0", "linewidth": 1}
            axes.plot(*zip(*points, strict=True), label=key, **style)
        best = min((event for event in events if "val/loss" in event), key=lambda event: event["val/loss"])
        axes.axvline(best["epoch"], color="grey", linestyle=":", linewidth=1)
        axes.set(title=title, xlabel="epoch")
        axes.legend(frameon=False)
    figure.savefig(run / "curves.png", dpi=120)
    return run / "curves.png"
