"""In a notebook: a run's curves while it trains, and its page."""

import html
import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from skindist.errors import UserError
from skindist.extras import require
from skindist.report.curves import plot_curves
from skindist.run.folder import Run

SECONDS = 2.0  # between two looks at the record
BASE = '<base href="about:srcdoc">'


@contextmanager
def live_curves(run: Path) -> Iterator[None]:
    """Show the curves of a run under the cell, and draw them anew whenever its record has grown.

    Until the record grows, the thread that draws does nothing: so processes may be forked meanwhile. In the end the
    curves are drawn in any case, those of a run that was over before, too.

    Raises:
        UserError: IPython is not installed.
    """
    require("notebook", "IPython")
    notebook = importlib.import_module("IPython.display")  # its functions have no types
    record, over = Run(run).record, Event()
    shown = notebook.display(notebook.HTML("The curves come with the first steps."), display_id=True)

    def size() -> int:
        return record.stat().st_size if record.exists() else 0

    def draw() -> None:
        picture = io.BytesIO()
        with suppress(UserError):  # no record, or half a line, which will be whole next time
            plot_curves(Run(run).metrics()).savefig(picture, dpi=80)
            shown.update(notebook.Image(picture.getvalue()))

    def watch(seen: int) -> None:
        while not over.wait(SECONDS):
            if (now := size()) != seen:
                seen = now
                draw()

    thread = Thread(target=watch, args=[size()], daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        draw()


@dataclass(frozen=True)
class Page:
    """What a notebook shows as a whole page, `height` pixels high."""

    content: str = field(repr=False)
    height: int

    def _repr_html_(self) -> str:
        """Called by the notebook."""
        # Without a base of its own, a link to a part of the page would load the notebook into the frame.
        content = self.content.replace("<head>", f"<head>\n{BASE}", 1)
        return f'<iframe srcdoc="{html.escape(content)}" width="100%" height="{self.height}"></iframe>'


def show_report(run: Path, height: int = 800) -> Page:
    """The page of a finished run, for the last line of a cell.

    Raises:
        UserError: there is no page.
    """
    page = Run(run).report
    if not page.is_file():
        raise UserError(f"{page}: there is none yet: let the run go on to its end")
    return Page(page.read_text("utf-8"), height)
