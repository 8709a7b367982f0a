"""What a word, or a row of a table, means."""

from pathlib import Path

import pytest

from skindist.data.listing import Item, list_files
from skindist.errors import UserError


def test_a_name_that_begins_as_a_home_does_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no user called "a.jpg", and no home of his."""
    (tmp_path / "~a.jpg").touch()
    (tmp_path / "list.csv").write_text("path\n~a.jpg\n~/b.jpg\n")
    monkeypatch.setenv("HOME", "/home/me")
    assert list(list_files(str(tmp_path / "list.csv"))) == [
        Item("~a.jpg", str(tmp_path / "~a.jpg")), Item("~/b.jpg", "/home/me/b.jpg"),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"~a\.jpg: no such file or folder"):
        list(list_files("~a.jpg"))


def test_a_row_of_zero_bytes_is_a_row(tmp_path: Path) -> None:
    """As a crash leaves at the end of a table; whoever opens it says that it is no picture."""
    (tmp_path / "list.csv").write_text("path\na.jpg\n\0\0\n")
    names = [item.name for item in list_files(str(tmp_path / "list.csv"), left_out=[tmp_path / "out.csv"])]
    assert names == ["a.jpg", "\0\0"]


def test_the_line_that_tells_excel_the_delimiter_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("sep=;\npath;age\na.jpg;50\n")
    assert list(list_files(str(tmp_path / "list.csv"))) == [("a.jpg", str(tmp_path / "a.jpg"))]
