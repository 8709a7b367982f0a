"""Splitting: shares, seeds, groups, and what is refused."""

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skindist.data.inspection import Facts
from skindist.data.scan import ImageFile
from skindist.data.split import (
    Row,
    describe,
    fingerprint,
    leaked,
    make_split,
    read_split,
    refuse_changed_images,
    write_split,
)
from skindist.errors import UserError

SHARES = (0.90, 0.05, 0.05)


def image(path: str, label: int, split: str = "", content: str = "") -> ImageFile:
    return ImageFile(path, label, split, Facts("", sha256=sha256((content or path).encode()).hexdigest()))


def images(benign: int, malignant: int, split: str = "") -> list[ImageFile]:
    return [
        image(f"{split}/{name}/{index:04}.png", label, split)
        for label, (name, count) in enumerate((("benign", benign), ("malignant", malignant)))
        for index in range(count)
    ]


def alone(found: Sequence[ImageFile]) -> list[str]:
    """Each image in a group of its own."""
    return [each.sha256[:16] for each in found]


def split_alone(found: Sequence[ImageFile], seed: int = 0, shares: tuple[float, float, float] = SHARES) -> list[Row]:
    return make_split(found, alone(found), shares, seed)


def counts(rows: Sequence[Row]) -> Counter[tuple[str, int]]:
    return Counter((row.split, row.label) for row in rows)


def test_90_5_5_is_kept_class_by_class() -> None:
    rows = split_alone(images(1000, 200))
    assert counts(rows) == {
        ("train", 0): 900, ("val", 0): 50, ("test", 0): 50, ("train", 1): 180, ("val", 1): 10, ("test", 1): 10
    }  # fmt: skip
    assert [row.path for row in rows] == sorted(row.path for row in rows)


def test_a_seed_decides_and_the_order_of_the_files_does_not() -> None:
    found = images(60, 40)
    first = split_alone(found, seed=1)
    assert split_alone(found[::-1], seed=1) == first
    assert split_alone(found, seed=2) != first


def test_the_smallest_set_gives_each_split_one_of_each_class() -> None:
    rows = split_alone(images(3, 3))
    assert set(counts(rows).values()) == {1}
    assert len(counts(rows)) == 6


def test_too_few_groups_of_a_class_are_refused_with_the_numbers() -> None:
    found = images(10, 7)
    groups = alone(found)[:10] + ["one patient"] * 5 + ["another"] * 2
    with pytest.raises(UserError, match=r"class malignant has 7 images in 2 groups .*; each of train, val, test needs"):
        make_split(found, groups, SHARES, seed=0)


def test_a_given_split_is_kept() -> None:
    found = images(6, 4, "train") + images(2, 1, "val") + images(3, 2, "test")
    rows = split_alone(found)
    assert all(row.path.startswith(row.split) for row in rows)
    assert describe(rows) == (
        "data: 18 images: train 6 benign + 4 malignant, val 2 benign + 1 malignant, test 3 benign + 2 malignant"
    )


def test_a_given_split_without_validation_draws_it_from_train() -> None:
    rows = split_alone(images(180, 90, "train") + images(10, 10, "test"), shares=(0.8, 0.1, 0.1))
    assert counts(rows) == {
        ("train", 0): 160, ("val", 0): 20, ("test", 0): 10, ("train", 1): 80, ("val", 1): 10, ("test", 1): 10
    }  # fmt: skip


def test_a_given_split_that_lacks_a_class_is_refused() -> None:
    with pytest.raises(UserError, match="no malignant image in test"):
        split_alone(images(6, 4, "train") + images(2, 1, "val") + images(3, 0, "test"))


def test_a_class_without_an_image_is_asked_for_by_its_name() -> None:
    """A table may tell the labels: there need not be a folder of this name."""
    said = r"class malignant has 0 images in 0 groups .* needs at least one group: add malignant images$"
    with pytest.raises(UserError, match=said):
        split_alone(images(6, 0))


GROUP = st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(any)  # benign and malignant images of a patient


@given(
    sizes=st.integers(3, 80).flatmap(lambda count: st.lists(GROUP, min_size=count, max_size=count)),
    val=st.sampled_from((0.05, 0.1, 0.2)),
    test=st.sampled_from((0.05, 0.1, 0.2)),
    seed=st.integers(0, 5),
)
@settings(derandomize=True, deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_no_group_is_on_two_sides_and_shares_are_met_within_one(
    sizes: list[tuple[int, int]], val: float, test: float, seed: int
) -> None:
    members = [(group, label) for group, size in enumerate(sizes) for label in (0, 1) for _ in range(size[label])]
    found = [image(f"{index:04}.png", label) for index, (_, label) in enumerate(members)]
    groups = [f"patient {group}" for group, _ in members]
    total = [sum(size[label] for size in sizes) for label in (0, 1)]
    with_class = [sum(size[label] > 0 for size in sizes) for label in (0, 1)]
    if min(with_class) < 3:
        with pytest.raises(UserError, match="needs at least one"):
            make_split(found, groups, (1 - val - test, val, test), seed)
        return
    rows = make_split(found, groups, (1 - val - test, val, test), seed)
    assert len(rows) == len(found)
    side = {row.group: row.split for row in rows}
    assert all(side[row.group] == row.split for row in rows)
    count = counts(rows)
    assert all(count[split, label] > 0 for split in ("train", "val", "test") for label in (0, 1))
    largest = max(map(sum, sizes))
    roomy = min(with_class) >= 20 and min(val, test) * min(total) >= 1  # else one of each class is more than the share
    for split, share in (("val", val), ("test", test), ("train", 1 - val - test)):
        for label in (0, 1):
            if roomy:
                assert abs(count[split, label] - share * total[label]) <= largest + 1  # 1: shares are rounded


def test_a_patient_with_half_of_the_images_is_trained_on() -> None:
    found = images(60, 30)
    groups = ["one patient" if index % 2 else group for index, group in enumerate(alone(found))]
    rows = make_split(found, groups, SHARES, seed=0)
    assert {row.split for row in rows if row.group == "one patient"} == {"train"}
    assert counts(rows)["test", 0] == 3


def test_the_file_reads_back(tmp_path: Path) -> None:
    rows = split_alone(images(5, 5))
    rows[0] = Row('odd, "name"\n\udcff.png', 0, "train", "g", "h")  # a name that is not UTF-8
    write_split(tmp_path / "split.csv", rows)
    assert read_split(tmp_path / "split.csv") == rows
    assert (tmp_path / "split.csv").read_bytes().startswith(b"path,label,split,group,sha256\n")
    assert [path.name for path in tmp_path.iterdir()] == ["split.csv"]


def test_labels_are_words(tmp_path: Path) -> None:
    rows = [Row("a.png", 0, "train", "g", "h1"), Row("b.png", 1, "val", "g", "h2")]
    file = tmp_path / "split.csv"
    write_split(file, rows)
    assert file.read_text() == "path,label,split,group,sha256\na.png,benign,train,g,h1\nb.png,malignant,val,g,h2\n"
    assert read_split(file) == rows
    assert fingerprint(rows) == sha256(b"h1 0 train\nh2 1 val\n").hexdigest()


def test_a_changed_or_missing_image_is_refused_on_resume() -> None:
    found = images(5, 5)
    rows = split_alone(found)
    refuse_changed_images(rows, found)
    changed = [image(found[0].path, 0, content="other"), *found[2:]]
    with pytest.raises(UserError, match=r"--run.resume: images changed or gone since the run began: 2 "):
        refuse_changed_images(rows, changed)
    with pytest.raises(UserError, match=r"1 \(such as a\ufffd\.png\)"):
        refuse_changed_images([Row("a\x1b.png", 0, "train", "g", "h")], found)


def test_leaks_are_counted_once() -> None:
    groups = {"train": "aab", "val": "bcc", "test": "abccd"}
    rows = [Row(f"{split}{at}", 0, split, group, "") for split in groups for at, group in enumerate(groups[split])]
    assert leaked(rows) == {"train": 2, "val": 2}
