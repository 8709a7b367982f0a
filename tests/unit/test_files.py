"""Files and folders are whole or absent, also where the disk is full."""

import csv
from pathlib import Path

import pytest

from skindist.errors import UserError
from skindist.files import UNFINISHED, refuse_occupied, whole_folder, write_atomic, write_csv
from skindist.inference.table import GrowingTable
from tests.helpers.disks import room_for


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    write_atomic(file, "old")
    with room_for(1000), pytest.raises(OSError, match=r"too large: '.*page\.html'"):
        write_atomic(file, "new" * 1000)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_does_not_fit_leaves_nothing_and_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(UserError, match=r"out: File too large; .*out is not written$"):  # noqa: SIM117
        with room_for(1000), whole_folder(folder) as inside:
            (inside / "small").write_text("it fits")
            (inside / "large").write_bytes(bytes(2000))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_stays_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a mount, or the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / UNFINISHED).mkdir()
    (tmp_path / UNFINISHED / "rest").write_text("of a process that was killed")
    before = tmp_path.stat().st_ino
    refuse_occupied(Path())
    with whole_folder(Path()) as inside:
        (inside / "deep").mkdir()
        (inside / "deep/file").write_text("written")
    assert tmp_path.stat().st_ino == before
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["deep", "deep/file"]
    with pytest.raises(UserError, match="is not empty; give a new folder"):
        refuse_occupied(Path())


def test_a_folder_in_a_place_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"Not a directory; .*file/out is not written$"),
        whole_folder(tmp_path / "file/out"),
    ):
        pass


def test_an_error_in_the_work_leaves_nothing_and_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out") as inside:
        (inside / "small").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--out /proc/new/deep: cannot be made \(.*: /proc\); give another folder$"):
        refuse_occupied(Path("/proc/new/deep"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"/file/out/deep: \S+/file is a file; give another folder$"):
        refuse_occupied(tmp_path / "file/out/deep")
    (tmp_path / "file").unlink()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="is a link to nothing; give a new folder"):
        refuse_occupied(tmp_path / "link")
    (tmp_path / "link").unlink()
    refuse_occupied(tmp_path / "new" / "deep")
    assert not list(tmp_path.iterdir()), "trying leaves nothing"


ODD_ROWS = [["benign/car\rret.jpg", "0.5"], ["a\nb.jpg", "1"], ['c, "d".jpg', ""], ["plain.jpg", "0.25"]]


def test_odd_names_come_back_and_ordinary_rows_are_plain(tmp_path: Path) -> None:
    file = tmp_path / "split.csv"
    write_csv(file, ["path", "value"], ODD_ROWS)
    with file.open(newline="") as lines:
        assert list(csv.reader(lines)) == [["path", "value"], *ODD_ROWS]
    write_csv(file, ["path", "value"], [["plain.jpg", 0.25], ["other.jpg", None]])
    assert file.read_bytes() == b"path,value\nplain.jpg,0.25\nother.jpg,\n"


def test_odd_names_come_back_from_a_growing_table(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    with GrowingTable(file, {}, 8) as table:
        table.append(ODD_ROWS)
        table.finish(["path", "value"])
    with file.open(newline="") as lines:
        assert list(csv.reader(lines)) == [["path", "value"], *ODD_ROWS]
