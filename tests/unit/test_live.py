"""Curves under a notebook's cell: when they are drawn."""

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from skindist.report import live
from tests.helpers.commands import PATIENCE


class Notebook:
    """Takes what is shown, and says when a picture came."""

    def __init__(self) -> None:
        self.pictures: list[bytes] = []
        self.drawn = threading.Semaphore(0)

    def HTML(self, text: str) -> str:
        return text

    def Image(self, content: bytes) -> bytes:
        return content

    def display(self, _: str, display_id: bool) -> Any:
        assert display_id
        return SimpleNamespace(update=self.update)

    def update(self, picture: bytes) -> None:
        self.pictures.append(picture)
        self.drawn.release()


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    found = Notebook()
    monkeypatch.setattr(live, "require", lambda *_: None)
    monkeypatch.setitem(sys.modules, "IPython.display", found)
    return found


def test_the_thread_draws_only_when_the_record_has_grown(
    notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is forked while it draws would inherit matplotlib's lock, taken."""
    looks = threading.Semaphore(0)

    class Counted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            looks.release()
            return super().wait(0.001)

    monkeypatch.setattr(live, "Event", Counted)
    record = tmp_path / "metrics.jsonl"
    record.write_text('{"epoch": 1, "global_step": 1, "train/loss": 0.7}\n')
    with live.live_curves(tmp_path):
        for _ in range(3):
            assert looks.acquire(timeout=PATIENCE)
        assert notebook.pictures == []
        with record.open("a") as file:
            file.write('{"epoch": 2, "global_step": 2, "train/loss": 0.6}\n')
        assert notebook.drawn.acquire(timeout=PATIENCE)


def test_a_run_that_was_over_before_shows_its_curves(notebook: Notebook, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "global_step": 1, "train/loss": 0.7}\n')
    with live.live_curves(tmp_path):
        pass
    (picture,) = notebook.pictures
    assert picture.startswith(b"\x89PNG")


def test_without_a_record_nothing_is_drawn(notebook: Notebook, tmp_path: Path) -> None:
    with live.live_curves(tmp_path):
        pass
    assert notebook.pictures == []
