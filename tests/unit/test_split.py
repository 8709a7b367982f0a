"""Splitting: shares, seeds, groups, and what is refused."""

import logging
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from skindist.data.scan import ImageFile
from skindist.data.split import Row, describe, make_split, read_split, refuse_changed_images, write_split
from skindist.errors import UserError

SHARES = (0.90, 0.05, 0.05)


def images(benign: int, malignant: int, split: str = "") -> list[ImageFile]:
    return [
        ImageFile(path := f"{split}/{name}/{index:04}.png", label, split, sha256(path.encode()).hexdigest())
        for label, (name, count) in enumerate((("benign", benign), ("malignant", malignant)))
        for index in range(count)
    ]


def counts(rows: list[Row]) -> Counter[tuple[str, int]]:
    return Counter((row.split, row.label) for row in rows)


def test_90_5_5_is_kept_class_by_class() -> None:
    rows = make_split(images(1000, 200), SHARES, seed=0)
    assert counts(rows) == {
        ("train", 0): 900, ("val", 0): 50, ("test", 0): 50, ("train", 1): 180, ("val", 1): 10, ("test", 1): 10
    }  # fmt: skip
    assert [row.path for row in rows] == sorted(row.path for row in rows)


def test_a_seed_decides_and_the_order_of_the_files_does_not() -> None:
    found = images(60, 40)
    first = make_split(found, SHARES, seed=1)
    assert make_split(found[::-1], SHARES, seed=1) == first
    assert make_split(found, SHARES, seed=2) != first


def test_the_smallest_set_gives_each_split_one_of_each_class() -> None:
    rows = make_split(images(3, 3), SHARES, seed=0)
    assert set(counts(rows).values()) == {1}
    assert len(counts(rows)) == 6


def test_too_few_images_in_a_class_are_refused() -> None:
    with pytest.raises(UserError, match="class malignant has 1 different image; each of train, val, test"):
        make_split(images(10, 1), SHARES, seed=0)


def test_copies_stay_together() -> None:
    found = images(30, 30)
    copies = [ImageFile(f"benign/copy{index}.png", 0, "", found[0].sha256) for index in range(5)]
    for seed in range(8):
        rows = make_split(found + copies, (0.6, 0.2, 0.2), seed)
        assert len({row.split for row in rows if row.sha256 == found[0].sha256}) == 1


def test_the_same_bytes_in_both_classes_are_refused() -> None:
    found = images(5, 5)
    found.append(ImageFile("malignant/copy.png", 1, "", found[0].sha256))
    with pytest.raises(UserError, match=r"1 image with the same bytes in both classes .*malignant/copy.png"):
        make_split(found, SHARES, seed=0)


def test_a_given_split_is_kept() -> None:
    found = images(6, 4, "train") + images(2, 1, "val") + images(3, 2, "test")
    rows = make_split(found, SHARES, seed=0)
    assert all(row.path.startswith(row.split) for row in rows)
    assert describe(rows) == (
        "data: 18 images: train 6 benign + 4 malignant, val 2 benign + 1 malignant, test 3 benign + 2 malignant"
    )


def test_a_given_split_without_validation_draws_it_from_train() -> None:
    rows = make_split(images(180, 90, "train") + images(10, 10, "test"), (0.8, 0.1, 0.1), seed=0)
    assert counts(rows) == {
        ("train", 0): 160, ("val", 0): 20, ("test", 0): 10, ("train", 1): 80, ("val", 1): 10, ("test", 1): 10
    }  # fmt: skip


def test_a_given_split_that_lacks_a_class_is_refused() -> None:
    with pytest.raises(UserError, match="no malignant image in test"):
        make_split(images(6, 4, "train") + images(2, 1, "val") + images(3, 0, "test"), SHARES, seed=0)


def test_a_leak_in_a_given_split_is_said(caplog: pytest.LogCaptureFixture) -> None:
    found = images(6, 4, "train") + images(2, 1, "val") + images(3, 2, "test")
    found.append(ImageFile("test/benign/copy.png", 0, "test", found[0].sha256))
    with caplog.at_level(logging.WARNING, "skindist"):
        make_split(found, SHARES, seed=0)
    assert "1 images lie in more than one of train, val and test" in caplog.text


def test_the_file_reads_back(tmp_path: Path) -> None:
    rows = make_split(images(5, 5), SHARES, seed=0)
    rows[0] = Row('odd, "name"\n.png', 0, "train", "g", "h")
    write_split(tmp_path / "split.csv", rows)
    assert read_split(tmp_path / "split.csv") == rows
    assert (tmp_path / "split.csv").read_text().startswith("path,label,split,group,sha256\n")
    assert [path.name for path in tmp_path.iterdir()] == ["split.csv"]


def test_a_changed_or_missing_image_is_refused_on_resume() -> None:
    found = images(5, 5)
    rows = make_split(found, SHARES, seed=0)
    refuse_changed_images(rows, found)
    changed = [ImageFile(found[0].path, 0, "", "other"), *found[2:]]
    with pytest.raises(UserError, match=r"--run.resume: 2 images have changed"):
        refuse_changed_images(rows, changed)
