"""From folder to rows: the torture folder, the policies for bad files and leaks, metadata."""

import logging
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skindist.data.demo import draw_lesion
from skindist.data.prepare import Prepared, prepare, prepare_again
from skindist.data.scan import scan_folder
from skindist.data.split import Row
from skindist.data.survey import survey
from skindist.errors import UserError
from skindist.recipe import DataConfig
from tests.helpers import torture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("torture") / "spaces and ünïcode"
    torture.write_torture_folder(root)
    return root


def config(path: Path, **values: object) -> DataConfig:
    options: dict[str, object] = {"max_bad": 0.5, "fractions": (0.6, 0.2, 0.2)} | values
    return DataConfig(path=str(path), **options)  # type: ignore[arg-type]


def grouped(rows: Sequence[Row]) -> set[frozenset[str]]:
    groups = defaultdict(set)
    for row in rows:
        groups[row.group].add(row.path)
    return {frozenset(paths) for paths in groups.values() if len(paths) > 1}


def test_every_file_of_the_torture_folder_is_accounted_for(folder: Path) -> None:
    scan = survey(config(folder)).scan
    assert dict(scan.bad) == torture.BAD
    assert scan.others == torture.OTHERS
    assert {image.path: image.facts.notes for image in scan.images if image.facts.notes} == torture.NOTES
    files = sum(file.is_file() or file.is_symlink() for file in folder.rglob("[!.]*") if not file.is_dir())
    assert len(scan.images) + len(scan.bad) + len(scan.others) == files + 1  # the one behind the link


def test_the_torture_folder_gives_the_expected_rows(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "skindist"):
        prepared = prepare(config(folder), seed=0)
    assert dict(prepared.quarantine) == torture.BAD | torture.CONFLICTING
    labels = [row.label for row in prepared.rows]
    assert (labels.count(0), labels.count(1)) == (torture.BENIGN, torture.MALIGNANT)
    assert grouped(prepared.rows) == torture.GROUPS
    side = {row.group: row.split for row in prepared.rows}
    assert all(side[row.group] == row.split for row in prepared.rows)
    sizes = {row.path: size for row, size in zip(prepared.rows, prepared.sizes, strict=True)}
    assert sizes["benign/turned 7.jpg"] == (240, 240)
    assert "images that cannot be used and are left out: 11; quarantine.csv says why" in caplog.text
    assert "files that are not images: 3 (such as benign/metadata.csv)" in caplog.text
    assert "1 CMYK, 1 EXIF rotation, 1 alpha, 2 extension, 1 palette" in caplog.text
    assert "near-duplicate: benign/02.jpg, malignant/02 with the other label.jpg" in caplog.text


def test_bad_images_are_refused_when_asked_or_too_many(folder: Path) -> None:
    with pytest.raises(UserError, match=r"11 of 56 images cannot be used; repair or remove them:\n  benign/half.jpg"):
        prepare(config(folder, on_bad="error"), seed=0)
    with pytest.raises(UserError, match=r"11 of 56 images cannot be used, more than --data.max_bad 10%;") as caught:
        prepare(config(folder, max_bad=0.1), seed=0)
    assert "... and 6 more (skindist audit lists them)" in str(caught.value)
    with pytest.raises(UserError, match=r"more than --data.max_bad 0.4%;"):
        prepare(config(folder, max_bad=0.004), seed=0)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A given split of 6 / 4 / 4 images of each class, where val 0 is a training image turned and encoded again, and
    test 1 is a copy of a validation image."""
    for split, count in (("train", 6), ("val", 4), ("test", 4)):
        for label, name in enumerate(("benign", "malignant")):
            target = tmp_path / "given" / split / name
            target.mkdir(parents=True)
            for index in range(count):
                seed = [len(split), split == "test", label, index]
                draw_lesion(np.random.default_rng(seed), bool(label), 96).save(target / f"{index}.png")
    root = tmp_path / "given"
    with Image.open(root / "train/benign/3.png") as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(root / "val/benign/0.png", "JPEG")
    shutil.copy(root / "val/malignant/2.png", root / "test/malignant/1.png")
    return root


def splits(prepared: Prepared) -> list[int]:
    return [sum(row.split == split for row in prepared.rows) for split in ("train", "val", "test")]


@pytest.mark.parametrize(
    ("split", "folder"),
    [
        ("", "benign/Malignant"), ("", "malignant/clinic/train"), ("train/", "train/benign/val"),
        ("train/", "test/malignant/deep/Benign"),
    ],
)  # fmt: skip
def test_a_class_or_a_part_of_the_split_in_a_class_folder_is_refused(given: Path, split: str, folder: str) -> None:
    root = given if split else given / "train"
    (root / folder / "deeper").mkdir(parents=True)
    shutil.move(root / split / "benign/0.png", root / folder / "deeper/x.png")
    with pytest.raises(UserError, match=rf": {folder}/ lies in a class folder, where its name says nothing; move its"):
        prepare(config(root), seed=0)
    images = scan_folder(root).images
    rows = [Row(image.path, image.label, "train", image.sha256, image.sha256) for image in images]
    assert prepare_again(config(root), rows).rows == rows, "a run that was begun before goes on"


def test_leaks_of_a_given_split_are_said(given: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepared = prepare(config(given), seed=0)
    assert splits(prepared) == [12, 8, 8]
    assert "2 leaks over the given split: 1 set of copies, 1 pair of near-duplicates" in caplog.text
    assert "same bytes: test/malignant/1.png, val/malignant/2.png" in caplog.text
    assert "near-duplicate: train/benign/3.png, val/benign/0.png" in caplog.text
    assert "test figures will flatter; --data.leaks drop-from-train trains without 1 image" in caplog.text
    (given / "val/benign/0.png").unlink()
    caplog.clear()
    prepare(config(given), seed=0)
    assert "1 leak over the given split: 1 set of copies" in caplog.text
    assert caplog.text.endswith("test figures will flatter\n"), "no training image is part of it"


def test_a_large_link_is_named_by_a_few_of_its_images(given: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = sorted(path.relative_to(given).as_posix() for path in given.rglob("*.png"))
    of_one = [path for path in paths if "benign" in path]
    (given / "m.csv").write_text("\n".join(["path,patient_id", *(f"{path},P" for path in of_one)]))
    prepare(config(given, metadata=str(given / "m.csv")), seed=0)
    named = [f"{part}/benign/0.png" for part in ("test", "train", "val")]
    assert f"  patient: {', '.join(named)}, test/benign/1.png ... and 10 more\n" in caplog.text


def test_names_and_cells_reach_the_console_without_control_characters(
    given: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(given / "val/benign/1.png", given / "test/benign/\x1b[31mred\r.png")
    (given / "train/benign/bad\n.png").touch()
    (given / "train/benign/note\x1b.txt").write_text("hello")
    (given / "m.csv").write_text('path,age\ntrain/benign/0.png,1\n"lonely\x1b[0m.png",2\n')
    with caplog.at_level(logging.INFO, "skindist"):
        prepare(config(given, metadata=str(given / "m.csv")), seed=0)
    with pytest.raises(UserError) as caught:
        prepare(config(given, on_bad="error"), seed=0)
    assert "train/benign/bad\ufffd.png: empty" in str(caught.value)
    for shown in ("\ufffd[31mred\ufffd.png", "note\ufffd.txt", "lonely\ufffd[0m.png"):
        assert shown in caplog.text
    assert not {"\x1b", "\r"} & set(caplog.text + str(caught.value))


def test_files_of_one_isic_id_leak_over_a_given_split(given: Path, caplog: pytest.LogCaptureFixture) -> None:
    (given / "train/benign/0.png").rename(given / "train/benign/ISIC_0000001_crop1.png")
    (given / "test/benign/0.png").rename(given / "test/benign/ISIC_0000001_crop2.png")
    prepare(config(given), seed=0)
    assert "3 leaks over the given split: 1 set of copies, 1 pair of near-duplicates, 1 ISIC id" in caplog.text
    assert "ISIC id: test/benign/ISIC_0000001_crop2.png, train/benign/ISIC_0000001_crop1.png" in caplog.text


def test_leaks_are_refused_when_asked(given: Path) -> None:
    with pytest.raises(UserError, match=r"--data\.leaks error: 2 leaks over the given split"):
        prepare(config(given, leaks="error"), seed=0)


def test_leaks_are_dropped_from_training_when_asked(given: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepared = prepare(config(given, leaks="drop-from-train"), seed=0)
    assert splits(prepared) == [11, 8, 8]
    assert prepared.quarantine == [("train/benign/3.png", "leak: belongs together with an image in val")]
    assert "--data.leaks drop-from-train does not mend groups in both val and test: 1" in caplog.text


def test_patients_and_lesions_stay_on_one_side_and_reach_the_rows(demo: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(demo).as_posix() for path in demo.rglob("*.png"))
    table = tmp_path / "metadata.csv"
    lines = [f"{name},P{index // 4},L{index // 2},{40 + index}" for index, name in enumerate(names)]
    table.write_text("\n".join(["path,patient_id,lesion_id,age", *lines]))
    for seed in range(5):
        prepared = prepare(config(demo, metadata=str(table)), seed)
        patients = [prepared.metadata[row.path]["patient_id"] for row in prepared.rows]
        sides = defaultdict(set)
        for row, patient in zip(prepared.rows, patients, strict=True):
            sides[patient].add(row.split)
        assert len(sides) == 15
        assert all(len(names) == 1 for names in sides.values())
        assert len({row.group for row in prepared.rows}) == 15
    assert prepared.metadata[names[0]]["age"] == "40"


def test_a_lesion_with_both_labels_is_said(demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "m.csv").write_text("path,lesion_id\nbenign/0000.png,L\nmalignant/0000.png,L\n")
    prepare(config(demo, metadata=str(tmp_path / "m.csv")), seed=0)
    assert "lesion: benign/0000.png, malignant/0000.png" in caplog.text


@pytest.mark.parametrize(("one", "said"), [(20, False), (21, True)])
def test_a_patient_with_more_than_a_third_of_the_images_is_named(
    demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, one: int, said: bool
) -> None:
    """Most likely it is a word for unknown."""
    names = sorted(path.relative_to(demo).as_posix() for path in demo.rglob("*.png"))
    lines = [f"{name},{'not told' if index < one else index}" for index, name in enumerate(names)]
    (tmp_path / "m.csv").write_text("\n".join(["path,patient_id", *lines]))
    prepare(config(demo, metadata=str(tmp_path / "m.csv")), seed=0)
    words = (
        "data: the largest group that a split must not part holds 21 of 60 images; 21 are of patient 'not told': if "
        "that means unknown, leave these cells empty"
    )
    assert (words in caplog.messages) == said
    assert ("largest group" in caplog.text) == said
