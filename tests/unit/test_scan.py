"""Scanning: what counts as data, and what is refused with a reason."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skindist.data.scan import ImageFile, scan_folder
from skindist.errors import UserError


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 10, 20)).save(path)
    return path


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """2 benign images (one of them in a folder of its own) and 1 malignant one."""
    picture(tmp_path / "benign/a.png", 1)
    picture(tmp_path / "benign/clinic/b.jpg", 2)
    picture(tmp_path / "malignant/test_9.PNG", 3)
    return tmp_path


def test_lists_every_image_with_label_and_hash(flat: Path) -> None:
    images = scan_folder(flat)
    assert [(image.path, image.label, image.split) for image in images] == [
        ("benign/a.png", 0, ""),
        ("benign/clinic/b.jpg", 0, ""),
        ("malignant/test_9.PNG", 1, ""),
    ]
    assert images[0].sha256 == hashlib.sha256((flat / "benign/a.png").read_bytes()).hexdigest()


def test_names_decide_nothing_and_other_files_do_not_matter(flat: Path) -> None:
    (flat / "metadata.csv").write_text("file_name,label\n")
    (flat / "benign/notes.txt").write_text("hello")
    (flat / "benign/.DS_Store").write_bytes(b"x")
    picture(flat / "malignant/._b.png")
    (flat / ".cache").mkdir()
    assert len(scan_folder(flat)) == 3


def test_links_are_followed_once(flat: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    picture(elsewhere / "c.png", 4)
    (flat / "malignant/linked").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(elsewhere)
    assert [image.path for image in scan_folder(flat)][2:] == ["malignant/linked/c.png", "malignant/test_9.PNG"]


@pytest.mark.parametrize("val", ["val", "validation", "Val"])
def test_a_split_folder_keeps_its_split(tmp_path: Path, val: str) -> None:
    for split in ("train", val, "test"):
        for name in ("Benign", "malignant"):
            picture(tmp_path / split / name / "x.png")
    found = {(Path(image.path).parts[0], image.split) for image in scan_folder(tmp_path)}
    assert found == {("train", "train"), (val, "val"), ("test", "test")}


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


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, "no such folder"),
        (spoil_file, "is not a folder"),
        (spoil_empty, "but it holds no folder"),
        (spoil_no_images, "no images in its class folders"),
        (spoil_one_class, "it holds benign/"),
        (spoil_third_class, "it holds benign/, malignant/, nevus/"),
        (spoil_loose, r"1 images lie in .* \(such as lost.png\)"),
        (spoil_half_split, "split into benign, malignant, train, which is ambiguous"),
        (spoil_no_test, "it has train/, val/ but no test/"),
    ],
)
def test_an_ambiguous_folder_is_refused(flat: Path, spoil: object, message: str) -> None:
    root = spoil(flat)  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as caught:
        scan_folder(root)
    assert "--data.path" in str(caught.value)
    assert "\n" not in str(caught.value)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "text":
        path.write_text("not an image")
    elif how == "eps":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    elif how == "16-bit":
        Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(path, format="PNG")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("empty", "is empty"),
        ("truncated", "cannot be decoded"),
        ("text", "is not a JPEG"),
        ("eps", "is not a JPEG"),
        ("16-bit", "8 bits"),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_damaged_image_is_named(tmp_path: Path, how: str, reason: str, name: str) -> None:
    rng = np.random.default_rng(0)
    for folder in ("benign", "malignant"):
        (tmp_path / folder).mkdir()
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / folder / name)
    damage(tmp_path / "benign" / name, how)
    with pytest.raises(UserError, match="1 of 2 images") as caught:
        scan_folder(tmp_path)
    assert f"benign/{name}: {'' if reason.startswith(('is', 'cannot')) else 'has mode'}" in str(caught.value)
    assert reason in str(caught.value)


def test_many_damaged_images_are_counted_and_five_listed(tmp_path: Path) -> None:
    for index in range(7):
        picture(tmp_path / f"benign/{index}.png").write_bytes(b"")
    picture(tmp_path / "malignant/a.png")
    with pytest.raises(UserError, match="7 of 8 images") as caught:
        scan_folder(tmp_path)
    assert str(caught.value).count("is empty") == 5
    assert "and 2 more" in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1"])
def test_unusual_8_bit_modes_are_fine(tmp_path: Path, mode: str) -> None:
    picture(tmp_path / "benign/a.png")
    (tmp_path / "malignant").mkdir()
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (8, 8), "red").convert(mode).save(tmp_path / f"malignant/b.{suffix}")
    assert [type(image) for image in scan_folder(tmp_path)] == [ImageFile, ImageFile]
