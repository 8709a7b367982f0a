"""Labels and splits from a table: what is taken, what is left out, what is refused, in a folder of any layout."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skindist.cli import main
from skindist.data.labels import plain
from skindist.data.prepare import prepare, prepare_again, prepare_test
from skindist.data.scan import CLASSES
from skindist.data.survey import survey
from skindist.errors import UserError
from skindist.recipe import DataConfig

DX = {"mel": 1, "bcc": 1, "akiec": 1, "nv": 0, "bkl": 0}
LISTS: dict[str, Any] = {"label_column": "dx", "malignant": ("MEL", "bcc", "akiec"), "benign": ("nv", "bkl")}


@pytest.fixture
def flat(demo: Path, tmp_path: Path) -> Path:
    """The demo's images as HAM10000 lies on the disk: two folders, no classes, and a table beside them."""
    folder = tmp_path / "ham"
    lines = ["lesion_id,image_id,dx,part"]
    for number, file in enumerate(sorted(demo.glob("*/*"))):
        place = folder / f"HAM10000_images_part_{1 + number % 2}" / f"ISIC_{number:07}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
        dx = ["nv", "bkl", "nv"][number % 3] if file.parent.name == "benign" else ["mel", "bcc", "akiec"][number % 3]
        lines.append(f"L{number},ISIC_{number:07},{dx},{['Training', 'val', 'TEST'][number % 3]}")
    (folder / "HAM10000_metadata.csv").write_text("\n".join(lines))
    return folder


def config(folder: Path, **values: Any) -> DataConfig:
    given = {"path": str(folder), "metadata": str(folder / "HAM10000_metadata.csv"), "fractions": (0.6, 0.2, 0.2)}
    return DataConfig(**(given | LISTS | values))


def edit(folder: Path, old: str, new: str) -> None:
    table = folder / "HAM10000_metadata.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))


def refusal(settings: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        prepare(settings, seed=0)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_each_image_has_the_label_of_its_row(flat: Path) -> None:
    prepared = prepare(config(flat), seed=0)
    assert len(prepared.rows) == 60
    for row in prepared.rows:
        assert DX[prepared.metadata[row.path]["dx"]] == row.label == int(int(row.path[-11:-4]) >= 30)
    assert prepare_again(config(flat), prepared.rows).rows == prepared.rows
    assert prepared.quarantine == []


@pytest.mark.parametrize(
    ("words", "lists"),
    [
        (("0", "1"), {}),
        (("0.0", "1.0"), {}),
        (("False", "True"), {}),
        (("Benign", "malignant"), {}),
        (("no", "yes"), {"malignant": (True,), "benign": (False,)}),
        (("2", "7"), {"malignant": (7,), "benign": (2.0,)}),
    ],
)
def test_numbers_and_truth_values_are_labels_too(flat: Path, words: tuple[str, str], lists: dict[str, Any]) -> None:
    for dx, label in DX.items():
        edit(flat, f",{dx},", f",{words[label]},")
    usual = DataConfig()
    settings = config(flat, **({"malignant": usual.malignant, "benign": usual.benign} | lists))
    assert sum(row.label for row in prepare(settings, seed=0).rows) == 30


def test_another_value_is_refused_or_left_out_by_name_and_number(flat: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(flat, ",bkl,", ",vasc,")
    edit(flat, "ISIC_0000000,nv", "ISIC_0000000,")
    said = refusal(config(flat))
    assert said.startswith(
        "--data.label_column dx: in neither --data.malignant nor --data.benign: vasc (10), (nothing)"
    )
    assert said.endswith("leave these images out with --data.other drop")
    prepared = prepare(config(flat, other="drop", max_bad=0.0), seed=0)
    assert len(prepared.rows) == 49
    assert "left out, with labels of neither class: 11 images: vasc (10), (nothing) (1)" in caplog.text
    assert len(prepared.quarantine) == 11
    assert prepared.quarantine[1][1] == "dx is 'vasc', which is in neither list"


def test_files_without_a_row_and_rows_without_a_file_are_counted(flat: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(flat, ",ISIC_0000003,", ",ISIC_0000099,")
    (flat / "HAM10000_images_part_1/ISIC_0000004.png").write_text("bad, but it has a row")
    with caplog.at_level(logging.INFO, "skindist"):
        prepared = prepare(config(flat), seed=0)
    assert len(prepared.rows) == 58
    assert [reason for _, reason in prepared.quarantine] == ["not an image", "has no row in the table, so no label"]
    for line in (
        "metadata: 58 of 59 images have a row in HAM10000_metadata.csv (lesion_id)",
        "metadata: 1 image without a row, such as HAM10000_images_part_2/ISIC_0000003.png",
        "metadata: 1 row without an image among these, such as ISIC_0000099",
        "data: left out, as the table has no row with their label: 1 image",
    ):
        assert line in caplog.messages


@pytest.mark.parametrize("split", [False, True])
def test_a_table_that_contradicts_class_folders_is_refused(demo: Path, tmp_path: Path, split: bool) -> None:
    parts = [tmp_path / "images" / part for part in (("train", "val", "test") if split else ("",))]
    for part in parts:
        shutil.copytree(demo, part)
    names = sorted(path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*.png"))
    table = tmp_path / "table.csv"
    rows = [f"{name},{Path(name).parent.name}" for name in names]
    settings = DataConfig(path=str(tmp_path / "images"), metadata=str(table), label_column="label")
    table.write_text("\n".join(["path,label", *rows[1:]]))
    assert len(prepare(settings, seed=0).rows) == len(names), "an image without a row has its folder's label"
    table.write_text("\n".join(["path,label", *rows[1:]]).replace(f"{names[2]},benign", f"{names[2]},malignant"))
    said = refusal(settings)
    assert f"1 image in a class folder of which the table says otherwise, such as {names[2]}: malignant;" in said


def test_the_split_of_the_table_is_kept(flat: Path) -> None:
    prepared = prepare(config(flat, split_column="part"), seed=0)
    expected = {number: ["train", "val", "test"][number % 3] for number in range(60)}
    assert {int(row.path[-11:-4]): row.split for row in prepared.rows} == expected
    edit(flat, ",val", ",training")
    again = prepare(config(flat, split_column="part"), seed=0)
    assert {row.split for row in again.rows} == {"train", "val", "test"}, "validation is drawn from train"
    edit(flat, ",TEST", ",third fold")
    said = refusal(config(flat, split_column="part"))
    assert said.startswith("--data.split_column part: must be train, val or test, and is third fold (20);")


def test_folders_may_say_the_split_alone(flat: Path) -> None:
    for number in (1, 2):
        (flat / f"HAM10000_images_part_{number}").rename(flat / ("train", "test")[number - 1])
    prepared = prepare(config(flat), seed=0)
    assert all(row.path.startswith("test/") == (row.split == "test") for row in prepared.rows)
    said = refusal(config(flat, split_column="part"))
    assert "correct the table or the folder" in said
    (flat / "test").rename(flat / "valid")
    assert "it has train/, valid/ but no test/" in refusal(config(flat))
    assert {row.split for row in prepare(config(flat, split_column="part"), seed=0).rows} == {"train", "val", "test"}


def test_of_a_split_folder_without_classes_the_test_part_is_evaluated(flat: Path) -> None:
    for number, part in ((1, "train"), (2, "testing")):
        (flat / f"HAM10000_images_part_{number}").rename(flat / part)
    (flat / "valid").mkdir()
    assert {row.path.partition("/")[0] for row in prepare_test(config(flat)).rows} == {"testing"}


def test_of_a_split_table_the_test_part_is_evaluated(flat: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (3, 5):
        (flat / f"HAM10000_images_part_2/ISIC_{number:07}.png").write_text("bad")
    with caplog.at_level(logging.INFO, "skindist"):
        prepared = prepare_test(config(flat, split_column="part", max_bad=0.1))
    assert {int(row.path[-11:-4]) % 3 for row in prepared.rows} == {2}
    assert [path[-11:-4] for path, _ in prepared.quarantine] == ["0000005"]
    assert "data: the table is split: its test/ alone is used" in caplog.messages


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"label_column": "diagnosis"},
            "--data.label_column diagnosis: the table has no such column; it has dx, lesion",
        ),
        (
            {"label_column": "image_id"},
            "--data.label_column image_id: the table has no such column beside the one that names the images; it has",
        ),
        ({"split_column": "fold"}, "--data.split_column fold: the table has no such column"),
        ({"metadata": None}, "--data.label_column dx: give the table that has it, with --data.metadata FILE.csv"),
        ({"label_column": None}, "--data.malignant: means nothing without --data.label_column"),
        ({"benign": ("nv", "Mel")}, "--data.malignant and --data.benign: mel is in both"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flat: Path, values: dict[str, Any], message: str) -> None:
    assert refusal(config(flat, **values)).startswith(message)


def test_names_and_cells_are_told_without_control_characters(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "set")
    name = sorted((demo / "benign").iterdir())[0].name
    (tmp_path / "set/benign" / name).rename(tmp_path / "set/benign/\x1b[1m.png")
    table = tmp_path / "table.csv"
    settings = DataConfig(path=str(tmp_path / "set"), metadata=str(table))
    for cell, flag, message in (
        ("malignant", "label_column", "benign/\ufffd[1m.png: malignant; correct one"),
        ('"\x1b[1m\nb"', "label_column", "nor --data.benign: \ufffd[1m\ufffdb (1); add"),
        ("\x1b", "split_column", "must be train, val or test, and is \ufffd (1); correct"),
    ):
        table.write_text(f"path,said\nbenign/\x1b[1m.png,{cell}\n")
        named: dict[str, Any] = {flag: "said"}
        assert message in refusal(replace(settings, **named))
    table.write_text("path,d\x1bx\nbenign/\x1b[1m.png,0\n")
    assert refusal(replace(settings, label_column="dx")).endswith("the table has no such column; it has d\ufffdx")
    table.write_text("path\nbenign/\x1b[1m.png\n")
    assert refusal(replace(settings, label_column="dx")).endswith("the table has no such column; it has no other")


def test_without_a_column_a_flat_folder_is_refused_with_the_way_out(flat: Path) -> None:
    said = refusal(DataConfig(path=str(flat)))
    assert "must hold exactly the class folders" in said
    assert "--data.metadata FILE.csv --data.label_column COLUMN" in said


def test_two_rows_of_one_image_must_agree_on_the_label(flat: Path) -> None:
    edit(flat, "L1,ISIC_0000001,bkl", "L1,ISIC_0000001,bkl,val\nL1,ISIC_0000001,mel")
    assert "differ in the dx of HAM10000_images_part_2/ISIC_0000001.png; keep the right one" in refusal(config(flat))


def test_the_audit_takes_the_same_flags(flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(flat, ",bkl,", ",vasc,")
    words = ["audit", str(flat), f"--metadata={flat}/HAM10000_metadata.csv", f"--page={tmp_path / 'page.html'}"]
    words += ["--label_column=dx", "--malignant=[mel,bcc,akiec]", "--benign=[nv]", "--split_column=part"]
    assert main(words) == 2
    assert "vasc (10)" in capsys.readouterr().err
    assert main([*words, "--other=drop"]) == 0
    text = capsys.readouterr().out
    assert "20 benign + 30 malignant" in text
    assert "! without a label    10" in text
    assert len(survey(config(flat, other="drop", benign=("nv",))).images) == 50
    assert CLASSES == ("benign", "malignant")


def test_one_word_where_a_list_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    for words, flag in (
        (["train", "--data.malignant=mel"], "--data.malignant"),
        (["audit", "x", "--benign=nv"], "--benign"),
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith(f"error: {flag}: expected a list, such as '[a, b]'. Got value: ")


def test_codes_of_many_digits_are_told_apart() -> None:
    """SNOMED has up to 18; a float holds 15."""
    codes = ["372244006", "372244007", "372244006000000001", "372244006000000002", "0.1234567", "0.1234568"]
    assert [plain(code) for code in codes] == codes
    assert [plain(value) for value in ("7.0", 7, 7.0, " 07 ")] == ["7"] * 4
