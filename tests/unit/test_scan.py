"""Scanning: what counts as data, what is refused with a reason, what is remembered."""

import errno
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from skindist.data import scan
from skindist.data.inspection import UNREAD, Facts, inspect
from skindist.data.scan import scan_folder
from skindist.errors import UserError


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (value, 10, 20)).save(path)
    return path


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """2 benign images (one of them in a folder of its own) and 1 malignant one."""
    picture(tmp_path / "flat/benign/a.png", 1)
    picture(tmp_path / "flat/benign/clinic/b.jpg", 2)
    picture(tmp_path / "flat/malignant/test_9.PNG", 3)
    return tmp_path / "flat"


def test_lists_every_image_with_label_and_hash(flat: Path) -> None:
    images = scan_folder(flat).images
    assert [(image.path, image.label, image.split) for image in images] == [
        ("benign/a.png", 0, ""),
        ("benign/clinic/b.jpg", 0, ""),
        ("malignant/test_9.PNG", 1, ""),
    ]
    assert images[0].sha256 == hashlib.sha256((flat / "benign/a.png").read_bytes()).hexdigest()


def test_content_decides_and_no_file_goes_uncounted(flat: Path) -> None:
    (flat / "metadata.csv").write_text("file_name,label\n")
    (flat / "benign/notes.txt").write_text("hello")
    (flat / "benign/broken.jpg").write_text("hello")
    (flat / "benign/phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    picture(flat / "benign/really_a_jpeg.jpg").rename(flat / "benign/d.heic")
    picture(flat / "malignant/really_a_picture.png").rename(flat / "malignant/c.bak")
    (flat / "benign/.DS_Store").write_bytes(b"x")
    (flat / "malignant/._b.png").write_bytes(b"x")
    (flat / ".cache").mkdir()
    found = scan_folder(flat)
    assert [image.path for image in found.images if image.facts.notes == ("extension",)] == [
        "benign/d.heic", "malignant/c.bak"
    ]  # fmt: skip
    assert (len(found.images), found.bad, found.others) == (
        5,
        [("benign/broken.jpg", "not an image"), ("benign/phone.HEIC", UNREAD)],
        ["benign/notes.txt"],
    )


def test_what_is_empty_or_nowhere_is_an_image_by_its_name_alone(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("notes.txt", "without_suffix", "empty.JPG", "locked.txt"):
        (flat / "benign" / name).touch()
    for name in ("old.csv", "old.png"):
        (flat / "benign" / name).symlink_to(flat / "nowhere")
    original = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.name == "locked.txt":
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    found = scan_folder(flat)
    assert found.others == ["benign/notes.txt", "benign/old.csv", "benign/without_suffix"]
    assert [path for path, _ in found.bad] == ["benign/empty.JPG", "benign/locked.txt", "benign/old.png"]


def test_links_are_followed_once_and_a_dead_one_is_named(flat: Path, tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere/c.png", 4)
    (flat / "malignant/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "elsewhere")
    (flat / "malignant/dead.png").symlink_to(tmp_path / "nowhere.png")
    (flat / "malignant/itself.png").symlink_to(flat / "malignant/itself.png")
    found = scan_folder(flat)
    assert [image.path for image in found.images][2:] == ["malignant/linked/c.png", "malignant/test_9.PNG"]
    assert found.bad == [
        ("malignant/dead.png", "cannot be read (No such file or directory)"),
        ("malignant/itself.png", f"cannot be read ({os.strerror(errno.ELOOP)})"),
    ]


def test_a_class_folder_may_be_a_link(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    for name in ("benign", "malignant"):
        (tmp_path / "linked" / name).symlink_to(flat / name)
    assert [image.path for image in scan_folder(tmp_path / "linked").images] == [
        image.path for image in scan_folder(flat).images
    ]


@pytest.mark.parametrize("name", [".", "benign", "benign/clinic"])
def test_a_folder_that_may_not_be_read_is_refused(flat: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    locked = flat / name

    def but_locked(look: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def looking(folder: Any) -> Any:
            if Path(folder) == locked:
                raise PermissionError(errno.EACCES, "Permission denied", str(folder))
            return look(folder)

        return looking

    for way in ("listdir", "scandir"):
        monkeypatch.setattr(os, way, but_locked(getattr(os, way)))
    with pytest.raises(UserError) as caught:
        scan_folder(flat)
    assert str(caught.value) == f"--data.path {flat}: {locked} cannot be read (Permission denied)"


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_a_split_folder_keeps_its_split(tmp_path: Path, val: str) -> None:
    for split in ("train", val, "test"):
        for name in ("Benign", "malignant"):
            picture(tmp_path / split / name / "x.png")
    found = {(Path(image.path).parts[0], image.split) for image in scan_folder(tmp_path).images}
    assert found == {("train", "train"), (val, "val"), ("test", "test")}


@pytest.fixture
def inspected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    names: list[str] = []
    original = inspect

    def note(path: Path) -> Facts:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(scan, "inspect", note)
    return names


def test_only_new_and_changed_files_are_read_again(
    flat: Path, tmp_path: Path, inspected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "SETTLED", 0)
    cache = str(tmp_path / "cache")
    first = scan_folder(flat, cache)
    assert sorted(inspected) == ["a.png", "b.jpg", "test_9.PNG"]
    inspected.clear()
    assert scan_folder(flat, cache) == first
    assert inspected == []
    picture(flat / "benign/a.png", 9)
    picture(flat / "benign/new.png", 9)
    second = scan_folder(flat, cache)
    assert sorted(inspected) == ["a.png", "new.png"]
    assert second.images[0].sha256 != first.images[0].sha256


def test_a_file_that_has_just_changed_is_not_trusted_the_next_time(
    flat: Path, tmp_path: Path, inspected: list[str]
) -> None:
    """It may change again within the clock's resolution and keep its size."""
    scan_folder(flat, str(tmp_path / "cache"))
    scan_folder(flat, str(tmp_path / "cache"))
    assert sorted(inspected) == ["a.png", "a.png", "b.jpg", "b.jpg", "test_9.PNG", "test_9.PNG"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "0", "1\n{", "1\n[3]", '1\n["benign/a.png", "1 2 3", {"reason": ""}]']
)
def test_a_damaged_memory_is_as_good_as_none(
    flat: Path, tmp_path: Path, inspected: list[str], monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(scan, "SETTLED", 0)
    cache = tmp_path / "cache"
    first = scan_folder(flat, str(cache))
    (memory,) = (cache / "scans").iterdir()
    memory.write_text(content)
    inspected.clear()
    assert scan_folder(flat, str(cache)) == first
    assert len(inspected) == 3


def test_a_cache_that_cannot_be_written_only_costs_time(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert len(scan_folder(flat, str(tmp_path / "file")).images) == 3


@pytest.mark.parametrize(
    ("step", "failure", "reason"),
    [
        ("pathlib.Path.read_bytes", OSError(errno.EIO, "I/O error"), "cannot be read (I/O error)"),
        ("pathlib.Path.read_bytes", MemoryError(), "not enough memory to read it"),
        ("skindist.data.inspection.decode", MemoryError(), "not enough memory to read it"),
    ],
)
def test_a_failure_that_passes_is_not_remembered(
    flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: Exception, reason: str
) -> None:
    monkeypatch.setattr(scan, "SETTLED", 0)

    def fail(*_: object) -> None:
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(step, fail)
        found = scan_folder(flat, str(tmp_path / "cache"))
        assert [why for _, why in found.bad] == [reason] * 3
    found = scan_folder(flat, str(tmp_path / "cache"))
    assert (len(found.images), found.bad) == (3, [])


def spoil_missing(root: Path) -> Path:
    return root / "nowhere"


def spoil_file(root: Path) -> Path:
    return root / "benign/a.png"


def spoil_empty(root: Path) -> Path:
    (root / "empty").mkdir()
    return root / "empty"


def spoil_no_images(root: Path) -> Path:
    for name in ("benign", "malignant"):
        (root / "bare" / name).mkdir(parents=True)
    return root / "bare"


def spoil_one_class(root: Path) -> Path:
    (root / "malignant/test_9.PNG").unlink()
    (root / "malignant").rmdir()
    return root


def spoil_third_class(root: Path) -> Path:
    picture(root / "nevus/a.png")
    return root


def spoil_two_spellings(root: Path) -> Path:
    picture(root / "Benign/a.png")
    return root


def spoil_loose(root: Path) -> Path:
    picture(root / "lost.png")
    return root


def spoil_half_split(root: Path) -> Path:
    picture(root / "train/benign/a.png")
    return root


def spoil_no_test(root: Path) -> Path:
    for split in ("train", "val"):
        picture(root / f"s/{split}/benign/a.png")
        picture(root / f"s/{split}/malignant/a.png")
    return root / "s"


def spoil_two_vals(root: Path) -> Path:
    for split in ("train", "val", "validation", "test"):
        picture(root / f"s/{split}/benign/a.png")
    return root / "s"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, "no such folder"),
        (spoil_file, "is not a folder"),
        (spoil_empty, "but it holds no folder"),
        (spoil_no_images, "no images in its class folders"),
        (spoil_one_class, "it holds benign/"),
        (spoil_third_class, "it holds benign/, malignant/, nevus/"),
        (spoil_two_spellings, "it holds Benign/, benign/, malignant/"),
        (spoil_loose, r"images in .* without a label or a part of the split: 1 \(such as lost.png\)"),
        (spoil_half_split, "split into benign, malignant, train, which is ambiguous"),
        (spoil_no_test, "it has train/, val/ but no test/"),
        (spoil_two_vals, "split into test, train, val, validation, which is ambiguous"),
    ],
)
def test_an_ambiguous_folder_is_refused(flat: Path, spoil: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        scan_folder(spoil(flat))
    assert "--data.path" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("owner/name", "no such folder; a data set on the Hub is unpacked first: skindist unpack owner/name --out DIR"),
        ("deep/set.parquet", "is not a folder; unpack it first: skindist unpack deep/set.parquet --out DIR"),
        ("set.zip", "is not a folder; extract the archive first"),
        ("deep/my set.TAR", "is not a folder; extract the archive first, or a WebDataset: "
         "skindist unpack 'deep/my set.TAR' --out DIR"),
        ("deep/none", "no such folder"),
        ("none", "no such folder"),
    ],
)  # fmt: skip
def test_what_is_no_folder_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, remedy: str
) -> None:
    (tmp_path / "deep").mkdir()
    if "is not" in remedy:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for root in (Path(name), tmp_path / name):
        with pytest.raises(UserError) as caught:
            scan_folder(root)
        assert str(caught.value) == f"--data.path {root}: {remedy}"


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        (("data/a.parquet", "README.md"), "but it holds data/; unpack it first: skindist unpack {} --out DIR"),
        (("0.tar", "1.tar"), "no folder; extract the archive first, or a WebDataset: skindist unpack {} --out DIR"),
        (("benign/a.ZIP", "malignant/a.ZIP"), "no images in its class folders; extract the archive first"),
        (("archive/train/benign/a.png", "archive/test/x"), "but it holds archive/; give --data.path {}/archive"),
        (("Train/benign/a.png",), "or none of them, or one alone: --data.path {}/Train"),
        (("images/a.png", "a.zip"), "--data.metadata FILE.csv --data.label_column COLUMN)"),
        (("be\x1bnign/a.png",), "it holds be\ufffdnign/; or name a table"),
    ],
)
def test_a_folder_that_is_not_as_it_should_be_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], remedy: str
) -> None:
    for name in files:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(remedy.format("set"))):
        scan_folder(Path("set"))


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (("train/x.png", "valid/a/x.png", "testing/x.png"), ["test", "train", "val"]),
        (("train/x.png", "test/x.png", "table.csv"), ["test", "train"]),
        (("part_1/x.png", "part_2/x.png", "x.png"), ["", "", ""]),
        (("images/test/x.png",), [""]),
        (("images/benign/x.png", "images/malignant/x.png"), ["", ""]),
    ],
)
def test_without_class_folders_a_split_is_kept(tmp_path: Path, files: tuple[str, ...], splits: list[str]) -> None:
    for name in files:
        picture(tmp_path / name) if name.endswith("png") else (tmp_path / name).touch()
    assert [image.split for image in scan_folder(tmp_path, any_layout=True).images] == splits


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("train/x.png", "test/x.png", "extra/x.png"), "split into extra, test, train, which is ambiguous; keep"),
        (("train/x.png", "val/x.png", "valid/x.png", "test/x.png"), "split into test, train, val, valid, which is"),
        (("train/x.png", "val/x.png"), "it has train/, val/ but no test/; give train/, val/ and test/, or none"),
        (("train/x.png", "test/x.png", "x.png"), r"without a label or a part of the split: 1 \(such as x.png\)"),
    ],
)
def test_an_unclear_split_is_refused_unless_a_table_tells_it(
    tmp_path: Path, files: tuple[str, ...], message: str
) -> None:
    for name in files:
        picture(tmp_path / name)
    with pytest.raises(UserError, match=message):
        scan_folder(tmp_path, any_layout=True)
    found = scan_folder(tmp_path, any_layout=True, split_by_table=True).images
    assert [image.path for image in found] == sorted(files)
