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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age\n50\n", "no column is called path; found age"),
        ("", "no column is called path; found nothing"),
        ("a\x1bge\n50\n", "no column is called path; found a\ufffdge"),
        ('path,age\na.jpg,1\n"b.jpg,2\nc.jpg,3\n', "line 4: unexpected end of data; is a quote not closed?"),
        ("path\n\xe4.jpg\n", "is not UTF-8 text; save it as CSV in UTF-8"),
    ],
)
def test_a_malformed_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        list(list_files(str(file)))
    assert str(caught.value) == f"{file}: {message}"
