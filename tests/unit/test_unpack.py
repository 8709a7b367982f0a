"""`skindist unpack`: Parquet and WebDataset files become a folder and a table that the data path reads."""

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from skindist.cli import main
from skindist.data.prepare import prepare
from skindist.data.split import count_rows
from skindist.data.unpack import unpack
from skindist.errors import UserError
from skindist.recipe import DataConfig


@pytest.fixture(scope="module")
def files(demo: Path) -> list[Path]:
    """Six images of each class, the benign ones first."""
    return [file for name in ("benign", "malignant") for file in sorted(demo.glob(f"{name}/*"))[:6]]


def table(out: Path) -> list[dict[str, str]]:
    with (out / "metadata.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def parquet(folder: Path, files: list[Path]) -> Path:
    """As a data set on the Hub: two parts, classes by number, an age, and boxes that no table can hold."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "dx": datasets.ClassLabel(names=["nv", "mel"]),
            "age": datasets.Value("int64"),
            "boxes": datasets.Sequence(datasets.Value("int64")),
        }
    )
    for part, chosen in (("train", files[0:4] + files[6:10]), ("test", files[4:6] + files[10:12])):
        rows = {
            "image": [str(file) for file in chosen],
            "dx": [int(file.parent.name == "malignant") for file in chosen],
            "age": list(range(40, 40 + len(chosen))),
            "boxes": [[1, 2]] * len(chosen),
        }
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{part}.parquet")
    return folder


def web(file: Path, files: list[Path]) -> Path:
    """A WebDataset: of each image a file, and one of JSON beside it."""
    with tarfile.open(file, "w") as archive:
        for image in files:
            for suffix, content in ((".png", image.read_bytes()), (".json", about(image))):
                member = tarfile.TarInfo(f"{image.parent.name}_{image.stem}{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file


def about(image: Path) -> bytes:
    return json.dumps({"dx": image.parent.name, "age": 50, "deep": {"more": 1}}).encode()


def test_parquet_files_become_images_byte_for_byte_and_a_table(
    tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set").mkdir()
    out = tmp_path / "what came out"
    assert main(["unpack", str(parquet(tmp_path / "set", files)), f"--out={out}"]) == 0
    rows = table(out)
    assert list(rows[0]) == ["path", "split", "dx", "age"]
    assert f"--data.path '{out}/images' --data.metadata '{out}/metadata.csv' --data.label" in capsys.readouterr().out
    kept = {(out / "images" / row["path"]).read_bytes(): (row["split"], row["dx"]) for row in rows}
    parts = ["train"] * 4 + ["test"] * 2
    words = {"benign": "nv", "malignant": "mel"}
    expected = zip(files, parts * 2, strict=True)
    assert kept == {file.read_bytes(): (part, words[file.parent.name]) for file, part in expected}
    config = DataConfig(
        path=str(out / "images"), metadata=str(out / "metadata.csv"), label_column="dx", malignant=("mel",),
        benign=("nv",), split_column="split",
    )  # fmt: skip
    counts = count_rows(prepare(config, 0).rows)
    assert counts["test"] == {"benign": 2, "malignant": 2}
    assert {name: counts["train"][name] + counts["val"][name] for name in ("benign", "malignant")} == {
        "benign": 4, "malignant": 4
    }  # fmt: skip


def test_a_webdataset_keeps_its_names_and_what_stands_in_its_json(tmp_path: Path, files: list[Path]) -> None:
    out = tmp_path / "out"
    assert unpack(str(web(tmp_path / "shard.tar", files)), out) == 12
    rows = table(out)
    assert [row["path"] for row in rows[:2]] == [f"000000{n}-benign_{files[n - 1].stem}.png" for n in (1, 2)]
    assert {(row["dx"], row["age"], row["split"]) for row in rows} == {
        ("benign", "50", "train"), ("malignant", "50", "train")
    }  # fmt: skip
    assert (out / "images" / rows[0]["path"]).read_bytes() == files[0].read_bytes()


def test_columns_called_path_and_split_are_kept_under_other_names(
    tmp_path: Path, files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    parts = datasets.ClassLabel(names=["fold a", "fold b"])
    features = datasets.Features({"image": datasets.Image(), "path": datasets.Value("string"), "split": parts})
    rows = {"image": [str(file) for file in files[:2]], "path": ["c:/1", "c:/2"], "split": [1, 0]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "test.parquet")
    with caplog.at_level("INFO", "skindist"):
        unpack(str(tmp_path / "test.parquet"), tmp_path / "out")
    assert [(row["split"], row["table_path"], row["table_split"]) for row in table(tmp_path / "out")] == [
        ("train", "c:/1", "fold b"), ("train", "c:/2", "fold a")
    ]  # fmt: skip
    assert "called otherwise in the table: path is table_path, split is table_split" in caplog.text


def test_bytes_without_a_name_get_the_suffix_of_what_they_are(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "WEBP")
    rows: list[dict[str, Any]] = [{"picture": {"bytes": content.getvalue(), "path": None}, "dx": "nv"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "one.parquet")
    assert unpack(str(tmp_path / "one.parquet"), tmp_path / "out") == 1
    assert [file.name for file in (tmp_path / "out/images").iterdir()] == ["0000001.webp"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("name", ["set [v1].PARQUET", "set [v1]/test.parquet", "capitals/test.PARQUET"])
def test_plain_bytes_and_odd_names_are_read(tmp_path: Path, files: list[Path], name: str, kind: pa.DataType) -> None:
    source = tmp_path / name
    source.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"picture": pa.array([files[0].read_bytes()], kind), "dx": ["nv"]}), source)
    assert unpack(str(source if source.parent == tmp_path else source.parent), tmp_path / "out") == 1
    assert (tmp_path / "out/images/0000001.png").read_bytes() == files[0].read_bytes()
    assert [row["split"] for row in table(tmp_path / "out")] == ["train" if source.parent == tmp_path else "test"]


def two_columns(folder: Path) -> Path:
    content = {"bytes": b"", "path": None}
    pq.write_table(pa.Table.from_pylist([{"a": content, "b": content}]), folder / "two.parquet")
    return folder / "two.parquet"


def no_images(folder: Path) -> Path:
    pq.write_table(pa.table({"dx": ["nv"]}), folder / "none.parquet")
    return folder / "none.parquet"


def damaged(folder: Path) -> Path:
    (folder / "cut.parquet").write_bytes(b"PAR1 and no more")
    return folder / "cut.parquet"


def other_kind(folder: Path) -> Path:
    (folder / "set.zip").touch()
    return folder / "set.zip"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (two_columns, r"two.parquet: several columns hold images \(a, b\): choose with --image_column"),
        (no_images, "none.parquet: no column holds images; it has dx"),
        (damaged, "cut.parquet: cannot be read as a data set"),
        (other_kind, "set.zip: must be a .parquet or .tar file, .*; extract the archive first$"),
        (lambda folder: folder / "nothing", "nothing: no such file or folder"),
    ],
)
def test_what_is_no_set_of_images_is_one_line(tmp_path: Path, source: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        unpack(str(source(tmp_path)), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="is not empty; give a new folder"):
        unpack(str(no_images(tmp_path)), tmp_path)


def test_a_row_without_an_image_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    there = {"bytes": content.getvalue(), "path": "a.png"}
    pq.write_table(pa.Table.from_pylist([{"picture": there}, {"picture": None}]), tmp_path / "two.parquet")
    assert unpack(str(tmp_path / "two.parquet"), tmp_path / "out") == 1
    assert "two.parquet: 1 row without an image, left out" in caplog.text
