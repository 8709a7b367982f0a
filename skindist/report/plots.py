"""Plots as SVG that lives in a page: matplotlib draws them, the page's style sheet colours them.

Text stays text, so a screen reader and a search find it. Colours are stand-ins that become CSS variables, so a plot
follows the page into dark mode and onto paper. Where the page has to move a mark over a plot, the plot says in
`data-frame` where its axes lie.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from skindist.evaluation.bands import Band
from skindist.evaluation.intervals import wilson

TEXT, GRID, FIRST, SECOND, CARD = (f"#01010{digit}" for digit in range(1, 6))
VARIABLES = {TEXT: "--soft", GRID: "--line", FIRST: "--first", SECOND: "--second", CARD: "--card"}
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "skindist", "font.size": 9, "axes.titlesize": 9, "legend.frameon": False,
    "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": GRID, "xtick.color": TEXT, "ytick.color": TEXT,
    "grid.color": GRID, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "lines.linewidth": 1.6, "legend.fontsize": 8.5,
    "figure.subplot.left": 0.14, "figure.subplot.right": 0.965, "figure.subplot.bottom": 0.15,
    "figure.subplot.top": 0.97, "xtick.major.size": 0, "ytick.major.size": 0, "axes.titlelocation": "left",
}  # fmt: skip
WIDTH, HEIGHT = 4.2, 3.3  # inches of 72 units: a telephone shows it at its natural size
BINS = 40  # of the histogram of probabilities


def roc(name: str, bands: Mapping[str, Band]) -> Markup:
    """Sensitivity against the share of false alarms, with the band of each curve, one for each name."""
    with _axes(name, "ROC curve") as (drawn, axes):
        axes.plot([0, 1], [0, 1], color=TEXT, linewidth=1, linestyle=":", label="chance")
        _draw_bands(axes, bands)
        axes.set(xlabel="1 - specificity (benign called malignant)", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.01))
        axes.legend(loc="lower right")
    return drawn[0]


def precision_recall(name: str, bands: Mapping[str, Band], share: float) -> Markup:
    """PPV against sensitivity; `share` is the malignant one, which chance reaches."""
    with _axes(name, "precision-recall curve") as (drawn, axes):
        axes.axhline(share, color=TEXT, linewidth=1, linestyle=":", label="chance")
        _draw_bands(axes, bands)
        axes.set(xlabel="sensitivity (recall)", ylabel="PPV (precision)", xlim=(0, 1), ylim=(0, 1.01))
        axes.legend(loc="best")
    return drawn[0]


def histogram(name: str, malignant: Sequence[float], benign: Sequence[float]) -> Markup:
    """How the probabilities of each class are spread."""
    with _axes(name, "spread of the probabilities by class") as (drawn, axes):
        edges = np.linspace(0, 1, BINS + 1)
        for values, colour, sign, label in ((malignant, FIRST, 1, "malignant"), (benign, SECOND, -1, "benign")):
            heights = sign * np.histogram(values, edges)[0] / max(1, len(values))
            axes.stairs(heights, edges, fill=True, color=colour, alpha=0.75, label=label)
        axes.axhline(0, color=TEXT, linewidth=0.8)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * abs(value):g}%")
        axes.set(xlabel="probability of malignant", ylabel="share of the class", xlim=(0, 1))
        axes.legend(loc="lower right")
    return drawn[0]


def reliability(name: str, bins: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup:
    """What was said against what was: in each bin of probability, the malignant share with its interval."""
    with _axes(name, "reliability diagram") as (drawn, axes):
        axes.plot([0, 1], [0, 1], color=TEXT, linewidth=1, linestyle=":", label="perfect")
        for (when, rows), colour, marker in zip(bins.items(), (SECOND, FIRST), ("o", "s"), strict=False):
            known = [row for row in rows if row["n"]]
            said, was = ([row[key] for row in known] for key in ("mean_probability", "malignant_share"))
            ends = [wilson(round(row["n"] * row["malignant_share"]), row["n"]) for row in known]
            most = max((row["n"] for row in known), default=1)
            sizes = [12 + 100 * row["n"] / most for row in known]
            axes.vlines(said, *zip(*ends, strict=True), color=colour, linewidth=1, alpha=0.6)
            axes.scatter(said, was, sizes, color=colour, alpha=0.75, marker=marker, linewidths=0, label=when)
        axes.set(xlabel="probability of malignant", ylabel="malignant share", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(loc="upper left")
    return drawn[0]


def curve(name: str, title: str, series: Mapping[str, Sequence[tuple[float, float]]], best: float | None) -> Markup:
    """Values over epochs, a line each; the vertical line marks the best epoch."""
    with _axes(name, f"{title} over the epochs") as (drawn, axes):
        for index, (label, points) in enumerate(series.items()):
            if points:
                style = {"color": (SECOND, FIRST)[index % 2], "marker": ("", "o")[index % 2], "markersize": 4}
                axes.plot(*zip(*points, strict=True), label=label, linewidth=(1.1, 1.6)[index % 2], **style)
        if best is not None:
            axes.axvline(best, color=TEXT, linestyle=":", linewidth=1, label="best epoch")
        axes.set(xlabel="epoch", ylabel=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="best")
    return drawn[0]


def with_mark(plot: Markup, x: float, y: float | None = None) -> Markup:
    """The plot with a circle at a point in the units of its axes; without y, a line through all of it. It is the mark
    that the page's script moves."""
    found = re.search(r'data-frame="([^"]*)"', plot)
    if found is None or not np.isfinite([x, 0 if y is None else y]).all():
        return plot
    left, bottom, right, top, x0, y0, x1, y1 = map(float, found[1].split())
    across = left + (right - left) * (x - x0) / (x1 - x0)
    if y is None:
        mark = f'<rect class="mark" x="{across - 0.75:.6g}" y="{top:.6g}" width="1.5" height="{bottom - top:.6g}"/>'
    else:
        up = bottom + (top - bottom) * (y - y0) / (y1 - y0)
        mark = f'<circle class="mark" cx="{across:.6g}" cy="{up:.6g}" r="4.5"/>'
    return Markup(str(plot).replace("</svg>", f"{mark}</svg>"))


def _draw_bands(axes: Any, bands: Mapping[str, Band]) -> None:
    dense, wide = (0, (5, 1, 1, 1, 1, 1)), (0, (9, 3))  # dots alone are the line of chance
    styles: list[tuple[str, Any]] = [(FIRST, "-"), (SECOND, "--"), (TEXT, "-."), (FIRST, dense), (SECOND, wide)]
    for index, (label, band) in enumerate(bands.items()):
        colour, line = styles[index % len(styles)]
        axes.fill_between(band.grid, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(band.x, band.y, color=colour, linestyle=line, label=label)


@contextmanager
def _axes(name: str, label: str) -> Iterator[tuple[list[Markup], Any]]:
    """Axes to draw on; when the block ends, the list holds the SVG. `name` makes its ids unlike those of others."""
    import matplotlib
    from matplotlib.figure import Figure

    drawn: list[Markup] = []
    with matplotlib.rc_context(matplotlib.rcParamsDefault), matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.subplots()
        yield drawn, axes
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
        (left, bottom), (right, top) = axes.get_window_extent().get_points() * 72 / figure.dpi
        limits = (axes.get_xlim()[0], axes.get_ylim()[0], axes.get_xlim()[1], axes.get_ylim()[1])
    frame = (left, 72 * HEIGHT - bottom, right, 72 * HEIGHT - top, *limits)
    drawn.append(_for_the_page(content.getvalue(), name, label, frame))


def _for_the_page(svg: str, name: str, label: str, frame: Sequence[float]) -> Markup:
    """The bare element: colours that the page knows, ids of its own, and a name for screen readers."""
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|font-family: [^;]*; ",
        "",
        svg[svg.index("<svg") :],
        flags=re.DOTALL,
    )
    svg = re.sub(r"\n\s*", "\n", svg)
    svg = re.sub(r'\bid="|url\(#|href="#', lambda match: f"{match[0]}{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r' (?:width|height)="[\d.]+pt"| version="[\d.]+"', "", svg, count=3)
    where = " ".join(f"{number:.4g}" for number in frame)
    opening = f'<svg class="plot" id="{escape(name)}" role="img" aria-label="{escape(label)}" data-frame="{where}"'
    return Markup(svg.replace("<svg", opening, 1))
