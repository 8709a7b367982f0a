"""`skindist predict`: one row a file, whatever the file; the same bytes on any number of processes, killed or not."""

import csv
import errno
import json
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import ExifTags, Image

from skindist.cli import main
from skindist.data.inspection import inspect, reading_images
from skindist.data.loading import LesionImages
from skindist.data.resizing import seen_pixels
from skindist.data.split import Row
from skindist.data.store import PixelStore, Source, ensure_store
from skindist.distributed import group
from skindist.errors import OutOfMemory, UserError
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.differences import UNITS, TrainingSet
from skindist.evaluation.frozen import Frozen
from skindist.evaluation.operating_point import Threshold
from skindist.inference.batches import settle
from skindist.inference.predict import open_table, predict, what_rows_depend_on
from skindist.inference.saved_model import SavedModel, save_model
from skindist.inference.seeing import plain
from skindist.inference.single import probabilities
from skindist.inference.sources import load_model
from skindist.inference.table import GrowingTable
from skindist.machine import available_cores
from tests.helpers import commands, jobs
from tests.helpers.ranks import end_ranks, result_of, run_ranks, said, start_ranks

TRAINED_ON = TrainingSet(30, 10, dict.fromkeys(UNITS, (1.0, 2.0, 3.0)))
SIZE = 32


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def saved(folder: Path, threshold: Threshold, calibration: Calibration) -> Path:
    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=2)
    save_model(folder, module, SIZE, Frozen(calibration, threshold), TRAINED_ON, "# A card", views=2)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, whose threshold lies between the probabilities of the images below."""
    folder = tmp_path_factory.mktemp("model")
    return saved(folder, Threshold(0.542, "validation", 0.95), Calibration(0.5, -0.1))


def test_a_thread_of_a_lone_process_takes_the_gpu_that_it_begins_with() -> None:
    """Accelerate names it "cuda", without a number, which `torch.cuda.set_device` refuses."""
    settle(torch.device("cuda"))


def write(picture: Image.Image, place: str, kind: int) -> None:
    """A picture in one of several formats and modes."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    match kind:
        case 0:
            picture.save(f"{place}.jpg", exif=turned)
        case 1:
            picture.quantize(64).save(f"{place}.png")
        case 2:
            picture.convert("CMYK").save(f"{place}.tif")
        case 3:
            picture.convert("RGBA").save(f"{place}.webp")
        case 4:
            picture.resize((300, 200)).save(f"{place}.JPG")
        case _:
            picture.save(f"{place}.bmp")


@pytest.fixture(scope="module")
def images(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad files in no layout: 60 that can be read and 6 that cannot, and what is not to be looked at."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "deep/er").mkdir(parents=True)
    for number, file in enumerate(sorted(demo.glob("*/*"))):
        place = folder / ("deep/er" if number % 3 == 0 else "") / f"{number:02d}"
        write(Image.open(file).convert("RGB").resize((48 + number, 40)), f"{place}", number % 10)
    (folder / "empty.jpg").touch()
    (folder / "cut.png").write_bytes(file.read_bytes()[:500])
    (folder / "text.jpg").write_text("no image")
    (folder / "gone.jpg").symlink_to("nowhere")
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(folder / "deep/16 bits.png")
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    (folder / ".hidden.png").write_text("not looked at")
    return folder


@pytest.fixture(scope="module")
def found(model: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process finds; beside it are the heat maps."""
    folder = tmp_path_factory.mktemp("found")
    out = folder / "out.csv"
    run_ranks(1, folder / "ranks", jobs.predict_files, model, images, out, None, f"--explain={folder / 'maps'}")
    return out


def test_views_may_be_asked_for(model: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = images / "01.png"
    assert main(["predict", str(model), str(file), f"--out={tmp_path / 'out.csv'}", "--views=8"]) == 0
    with Image.open(file) as picture:
        (expected,) = probabilities(load_model(model, views=8), [picture.convert("RGB")])
    (row,) = rows(tmp_path / "out.csv")
    assert float(row["probability"]) == pytest.approx(expected, abs=1e-6)
    assert "each image is seen in 8 positions" in caplog.text


def test_each_file_has_a_row_and_each_bad_one_a_reason(found: Path, images: Path) -> None:
    table = rows(found)
    assert list(table[0]) == ["path", "probability", "decision", "error", "logit", "heat_map"]
    files = {path.relative_to(images).as_posix() for path in images.rglob("*") if not path.is_dir()}
    assert [row["path"] for row in table] == sorted(files - {".hidden.png"})
    bad = {row["path"]: row["error"] for row in table if row["error"]}
    assert bad == {
        "cut.png": "truncated",
        "deep/16 bits.png": "16-bit or floating-point pixels (mode I;16); convert it to 8 bits a channel",
        "empty.jpg": "empty (0 bytes)",
        "gone.jpg": "cannot be read (No such file or directory)",
        "huge.png": "more than 89478485 pixels (a decompression bomb?)",
        "text.jpg": "not an image",
    }
    for row in table:
        if row["error"]:
            assert (row["probability"], row["decision"], row["logit"], row["heat_map"]) == ("", "", "", "")
        else:
            probability = 1 / (1 + np.exp(-(float(row["logit"]) / 0.5 - 0.1)))
            assert float(row["probability"]) == pytest.approx(probability, rel=1e-12)
            assert row["decision"] == ("malignant" if probability >= 0.542 else "benign")
    assert {row["decision"] for row in table} == {"malignant", "benign", ""}


def test_heat_maps_are_there_for_each_good_image(found: Path) -> None:
    maps = {row["heat_map"] for row in rows(found) if row["heat_map"]}
    assert len(maps) == 60
    assert {path.name for path in (found.parent / "maps").iterdir()} == maps
    with Image.open(found.parent / "maps" / min(maps)) as picture:
        assert (picture.format, picture.size) == ("PNG", (2 * SIZE, SIZE))


def test_pixels_and_logits_are_those_of_an_evaluation(
    model: Path, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, table = tmp_path / "images", tmp_path / "rows.csv"
    shutil.copytree(demo, images)
    for number, path in enumerate(sorted(images.glob("*/*"))[:20]):
        picture = Image.open(path)
        picture.resize((300, 200 + number)).convert("P" if number % 2 else "RGBA").save(path)
    assert main(["evaluate", str(model), str(images), f"--out={tmp_path / 'evaluated'}"]) == 0
    assert main(["predict", str(model), str(images), f"--out={table}"]) == 0
    ours, theirs = rows(table), rows(tmp_path / "evaluated/predictions-test.csv")
    assert [row["path"] for row in ours] == [row["path"] for row in theirs]
    for name in ("logit", "probability"):
        assert [float(row[name]) for row in ours] == pytest.approx([float(row[name]) for row in theirs], abs=1e-6)


def test_pixels_are_those_of_the_store(images: Path, tmp_path: Path) -> None:
    with reading_images():
        good = [(path, facts) for path in sorted(images.glob("*.*")) if not (facts := inspect(path)).reason]
    sources = [Source(path, facts.sha256, facts.width, facts.height) for path, facts in good]
    store = PixelStore(ensure_store(tmp_path, sources, SIZE, "bicubic"))
    files = [Row(str(path), 0, "test", "", facts.sha256) for path, facts in good]
    stored = LesionImages(store, files, SIZE, 0, augmented=False).__getitems__([(0, n) for n in range(len(good))])
    for pixels_CHW, (path, _) in zip(stored.images_BCHW, good, strict=True):
        seen = seen_pixels(path, SIZE, "bicubic")
        assert isinstance(seen, torch.Tensor)
        assert torch.equal(seen.permute(2, 0, 1), pixels_CHW), path


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_finds_the_same_bytes(
    processes: int, model: Path, images: Path, found: Path, tmp_path: Path
) -> None:
    words = (model, images, tmp_path / "out.csv", None, f"--explain={tmp_path / 'maps'}")
    assert run_ranks(processes, tmp_path / "ranks", jobs.predict_files, *words) == [0] * processes
    assert (tmp_path / "out.csv").read_bytes() == found.read_bytes()
    maps, before = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in
                    (tmp_path / "maps", found.parent / "maps"))  # fmt: skip
    assert maps == before


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_what_was_killed_goes_on_and_ends_with_the_same_bytes(
    before: int, after: int, model: Path, images: Path, found: Path, tmp_path: Path
) -> None:
    out, part = tmp_path / "out.csv", tmp_path / "out.csv.part"
    words = (model, images, out)
    flags = (f"--explain={tmp_path / 'maps'}",)
    statuses = end_ranks(start_ranks(before, tmp_path / "ranks", jobs.predict_files, *words, 2, *flags))
    assert statuses[0] == -9
    assert [result_of(tmp_path / "ranks", rank) for rank in range(1, before)] == [1] * (before - 1)
    assert not out.exists()
    lines = part.read_bytes().splitlines(keepends=True)
    assert 1 + 8 * before <= len(lines) < 67
    with part.open("ab") as file:
        file.write(b'["half a ro')
    assert run_ranks(after, tmp_path / "ranks", jobs.predict_files, *words, None, *flags) == [0] * after
    assert f"{66 - 8 * ((len(lines) - 1) // 8)} of 66 files to predict" in said(tmp_path / "ranks", after)
    assert out.read_bytes().replace(bytes(tmp_path), b"") == found.read_bytes().replace(bytes(found.parent), b"")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.csv"]


@pytest.mark.parametrize("first", [0, 8])
@pytest.mark.parametrize("processes", [1, 3])
def test_one_thread_computes_a_batch_and_the_order_of_files_alone_decides_on_it(
    processes: int, first: int, tmp_path: Path
) -> None:
    """What decides the last bits of a sum: who is in a batch, and how many threads share it."""
    expected = [[str(number), number // 4 * 4, min(4, 70 - number // 4 * 4), 1] for number in range(first, 70)]
    assert run_ranks(processes, tmp_path, jobs.batches_of, 70, first) == [expected] * processes


def test_an_unfinished_table_is_cut_back_to_whole_batches(tmp_path: Path) -> None:
    """Else a batch of the rest would hold other images than that of a command that nobody stopped."""
    out = tmp_path / "out.csv"
    with GrowingTable(out, {"model": "a"}, 8) as table:
        table.append([[str(number)] for number in range(19)])
    with GrowingTable(out, {"model": "a"}, 8) as table:
        assert table.kept == 16
        assert [row[0] for row in table.rows()] == [str(number) for number in range(16)]


def test_number_of_threads_does_not_matter(model: Path, images: Path, found: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert main(["predict", str(model), str(images), f"--out={tmp_path / 'out.csv'}"]) == 0
        assert torch.get_num_threads() >= min(2, available_cores())
    finally:
        torch.set_num_threads(before)
    numbers = [[(row["path"], row["logit"]) for row in rows(path)] for path in (tmp_path / "out.csv", found)]
    assert numbers[0] == numbers[1]


def test_all_formats_hold_the_same(model: Path, images: Path, tmp_path: Path) -> None:
    for name in ("rows.csv", "rows.jsonl", "rows.parquet"):
        assert main(["predict", str(model), str(images / "deep"), f"--out={tmp_path / name}"]) == 0
    table = pq.read_table(tmp_path / "rows.parquet")
    assert list(map(str, table.schema.types)) == ["string", "double", "string", "string", "double"]
    parquet = table.to_pylist()
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == parquet
    as_text = [{key: "" if value is None else str(value) for key, value in row.items()} for row in parquet]
    assert as_text == rows(tmp_path / "rows.csv")
    assert len(parquet) == 21


def test_a_table_a_pattern_and_one_image(model: Path, images: Path, tmp_path: Path) -> None:
    """What is given may take many forms; each row is called as the user called the file."""
    table, out = images.parent / "list.csv", tmp_path / "rows.csv"
    table.write_text(f"id;path\n1;{images.name}/01.png\n2;\n3;{images / '02.tif'}\n4;nowhere.png\n")
    pattern, one = str(images / "*.bmp"), str(images / "text.jpg")
    for given, paths, errors in (
        (str(table), [f"{images.name}/01.png", "", str(images / "02.tif"), "nowhere.png"], 2),
        (pattern, sorted(map(str, images.glob("*.bmp"))), 0),
        (one, [one], 1),
    ):
        assert main(["predict", str(model), given, f"--out={out}", "--overwrite"]) == 0
        assert [row["path"] for row in rows(out)] == paths
        assert sum(bool(row["error"]) for row in rows(out)) == errors


def test_names_that_are_not_utf_8_are_kept(model: Path, demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    source = next(demo.glob("*/*"))
    try:
        Path(os.fsdecode(bytes(folder) + b"/\xff, a\n.png")).write_bytes(source.read_bytes())
    except OSError:
        pytest.skip("this file system takes no such name")
    for name in ("rows.csv", "rows.jsonl", "rows.parquet"):
        words = [str(model), str(folder), f"--out={tmp_path / name}", f"--explain={tmp_path / name[-3:]}"]
        assert main(["predict", *words]) == 0
    assert rows(tmp_path / "rows.csv")[0]["path"] == "\udcff, a\n.png"
    assert json.loads((tmp_path / "rows.jsonl").read_text())["path"] == "\udcff, a\n.png"
    assert pq.read_table(tmp_path / "rows.parquet")["path"].to_pylist() == ["?, a\n.png"]
    assert [path.name for path in (tmp_path / "csv").iterdir()] == ["0000001-_, a_.png"]
    assert plain("\U0001f600" * 60) == "\U0001f600" * 45, "180 of the 255 bytes that a name may have"


def test_it_says_what_decides(tmp_path: Path, demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for threshold, words in (
        (Threshold(0.3, "validation", 0.9), "from a calibrated probability of 0.3 on, chosen on validation for a"),
        (Threshold(0.5, "fixed", 0.9), "0.5 on, fixed: this model has no operating point of its own"),
    ):
        folder = saved(tmp_path / threshold.chosen, threshold, Calibration(2.0))
        out = tmp_path / f"{threshold.chosen}.csv"
        done = run_ranks(1, tmp_path / "ranks", jobs.predict_files, folder, demo / "benign", out, None)
        assert done == [0]
        assert words in said(tmp_path / "ranks", 1)


def no_model(folder: Path) -> list[str]:
    return ["images", "images", "--out=out.csv"]


def newer_model(folder: Path) -> list[str]:
    shutil.copytree("model", folder / "newer")
    values = json.loads((folder / "newer/config.json").read_text())
    values["skindist"] |= {"format": 99, "version": "9.0"}
    (folder / "newer/config.json").write_text(json.dumps(values))
    return ["newer", "images", "--out=out.csv"]


def there(folder: Path) -> list[str]:
    (folder / "out.csv").write_text("mine")
    return ["model", "images", "--out=out.csv"]


def empty_folder(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    (folder / "empty/.hidden").touch()
    return ["model", "empty", "--out=out.csv"]


def without_paths(folder: Path) -> list[str]:
    (folder / "list.csv").write_text("image,age\na.png,3\n")
    return ["model", "list.csv", "--out=out.csv"]


def from_elsewhere(folder: Path) -> list[str]:
    (folder / "list.csv").write_text("path\nbenign/1.png\nbenign/2.png\n")
    return ["model", "list.csv", "--out=out.csv"]


def a_cross_validation(folder: Path) -> list[str]:
    shutil.copytree(folder / "model/", folder / "folds/ensemble/model")
    return ["folds", "images", "--out=out.csv"]


def not_utf_8(folder: Path) -> list[str]:
    (folder / "list.csv").write_bytes("path\n\u00e9.png\n".encode("latin-1"))
    return ["model", "list.csv", "--out=out.csv"]


def maps_there(folder: Path) -> list[str]:
    (folder / "maps").mkdir()
    (folder / "maps/mine").touch()
    return ["model", "images", "--out=out.csv", "--explain=maps"]


def begun_with_another(folder: Path) -> list[str]:
    (folder / "out.csv.part").write_text('{"--views": "7"}\n["a.png"]\n')
    return ["model", "images", "--out=out.csv"]


def not_a_part(folder: Path) -> list[str]:
    (folder / "out.csv.part").write_text("the user's own\n")
    return ["model", "images", "--out=out.csv"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (no_model, "holds neither a run nor a model"),
        (newer_model, "saved by skindist 9.0, newer than this one; update skindist"),
        (there, "--out out.csv: exists; give another, or --overwrite"),
        (empty_folder, "empty: no file is there that is not hidden"),
        (without_paths, "list.csv: no column is called path; found image, age"),
        (not_utf_8, "list.csv: is not UTF-8 text"),
        (
            from_elsewhere,
            "list.csv: none of its 2 paths is a file, such as benign/1.png; they start in the folder that",
        ),
        (a_cross_validation, "folds: holds the runs of a cross-validation: give folds/ensemble"),
        (maps_there, "--explain maps: is not empty"),
        (
            begun_with_another,
            "out.csv.part: it was begun with another --views; run that command again to finish it, or",
        ),
        (not_a_part, "out.csv.part: it was begun with another program"),
        (lambda _: ["model", "nowhere", "--out=out.csv"], "nowhere: no such file or folder; give a folder, an image"),
        (lambda _: ["model", "images/*.gif", "--out=out.csv"], "images/*.gif: no file is there"),
        (lambda _: ["model", "images"], "--out is missing"),
        (lambda _: ["model", "images", "--out=out.xlsx"], "must end in .csv, .jsonl or .parquet"),
        (lambda _: ["model", "images", "--out=deep/out.csv"], "there is no folder"),
        (lambda _: ["model", "images", "--out=/proc/out.csv"], "--out /proc/out.csv: cannot be written"),
        (lambda _: ["model", "images", "--out=images"], "must end in .csv, .jsonl or .parquet"),
        (
            lambda _: ["model", "images", "--out=out.csv", "--explain=images/maps"],
            "--explain images/maps: lies in images",
        ),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    prepare: Callable[[Path], list[str]],
    message: str,
    model: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, folder in (("model", model), ("images", images)):
        Path(name).symlink_to(folder)
    words = prepare(tmp_path)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert main(["predict", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_model_without_heat_maps_is_refused_before_the_work(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = timm.create_model("test_vit", num_classes=2)
    save_model(tmp_path / "model", module, 160, Frozen(Calibration(), Threshold(0.5, "fixed", 0.9)), TRAINED_ON, "#")
    out, maps = tmp_path / "out.csv", tmp_path / "maps"
    assert main(["predict", str(tmp_path / "model"), str(demo), f"--out={out}", f"--explain={maps}"]) == 2
    assert "there are no heat maps of this model" in capsys.readouterr().err
    assert not maps.exists()
    assert not out.with_name("out.csv.part").exists()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("torch.nn.Module.to", "out of memory for the model itself"),
        ("skindist.inference.predict.explain", "out of memory for the model itself"),
        ("skindist.prediction.pictures.explain", "out of memory with 8 images at a time: use a GPU or a machine with"),
    ],
)
def test_wherever_memory_runs_out_it_is_said(
    model: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, words: str
) -> None:
    def full(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(place, full)
    with pytest.raises(OutOfMemory, match=f"^{words}"):
        predict(str(model), str(demo), tmp_path / "out.csv", maps=tmp_path / "maps")


def test_files_that_came_meanwhile_are_refused(
    model: Path, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out.csv"
    shutil.copytree(demo / "benign", images)
    end_ranks(start_ranks(1, tmp_path / "ranks", jobs.predict_files, model, images, out, 2))
    shutil.copy(next(images.iterdir()), images / "0.png")
    assert main(["predict", str(model), str(images), f"--out={out}"]) == 2
    assert "out.csv.part: the files are not those that it was begun with (such as " in capsys.readouterr().err
    (images / "0.png").unlink()
    assert main(["predict", str(model), str(images), f"--out={out}"]) == 0
    assert len(rows(out)) == 30


@pytest.mark.parametrize("call", [2, 3])
def test_a_full_disk_is_one_line_and_rows_are_kept(
    call: int,
    model: Path,
    demo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the rows (call 2) or of the end (3): what is there is whole, and the command goes on."""
    out, calls = tmp_path / "out.csv", iter(range(1, 99))
    sync = os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    words = ["predict", str(model), str(demo), f"--out={out}"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(words) == 1
    error = capsys.readouterr().err
    assert "No space left on device; make room, and start the same command again" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ([] if call == 2 else ["out.csv.part"])
    assert main(words) == 0
    assert len(rows(out)) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_what_it_writes_is_never_predicted(
    model: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither through another name of the folder, nor by a pattern that its heat maps fit, too."""
    shutil.copytree(demo / "benign", tmp_path / "here")
    count = len(list((tmp_path / "here").iterdir()))
    monkeypatch.chdir(tmp_path / "here")
    assert main(["predict", str(model), "../here", "--out=rows.csv", "--views=1"]) == 0
    assert len(rows(tmp_path / "here/rows.csv")) == count
    words = ["predict", str(model), str(tmp_path / "here/**/*.png"), f"--out={tmp_path / 'b.csv'}", "--views=1"]
    for again in ([], ["--overwrite"]):
        assert main([*words, f"--explain={tmp_path / 'here/maps'}", *again]) == 0
        assert len(rows(tmp_path / "b.csv")) == count


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    out.write_text("of another command")
    with pytest.raises(UserError, match="exists; give another, or --overwrite"):
        open_table(out, False, {}, 8)
    with open_table(out, True, {}, 8):
        assert out.read_text() == "of another command"


def test_two_at_a_time_are_refused(model: Path, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.csv"
    with GrowingTable(out, {}, 8):
        assert main(["predict", str(model), str(demo), f"--out={out}"]) == 2
    assert "another process is writing it" in capsys.readouterr().err


def test_an_error_on_several_processes_is_said_once_and_ends_all(model: Path, tmp_path: Path) -> None:
    words = (model, tmp_path / "nowhere", tmp_path / "out.csv", None)
    assert run_ranks(2, tmp_path / "ranks", jobs.predict_files, *words) == [2, 2]
    assert said(tmp_path / "ranks", 2).count("no such file or folder") == 1


@pytest.mark.slow
def test_accelerate_launch_runs_the_command(model: Path, images: Path, found: Path, tmp_path: Path) -> None:
    words = ["-m", "skindist.cli", "predict", str(model), str(images), f"--out={tmp_path / 'out.csv'}"]
    done = commands.run(*commands.LAUNCH, "--num_processes=3", *words, f"--explain={tmp_path / 'maps'}")
    assert done.returncode == 0, done.stderr
    assert "device: 3 processes" in done.stdout
    assert (tmp_path / "out.csv").read_bytes() == found.read_bytes()


def test_what_decides_on_a_row_is_part_of_what_it_depends_on(model: Path, tmp_path: Path) -> None:
    """An unfinished table is not continued with another threshold, or other files."""
    own, accelerator = load_model(model), group.join_group()
    turned = load_model(model, views=3)
    other = load_model(saved(tmp_path, Threshold(0.6, "validation", 0.95), Calibration(0.5, -0.1)))
    asked: list[tuple[SavedModel, int, str, Path | None]] = [
        (own, 8, "images", None), (other, 8, "images", None), (own, 4, "images", None), (own, 8, "others", None),
        (own, 8, "images", tmp_path),
    ]  # fmt: skip
    keys = [
        json.dumps(what_rows_depend_on(saved, accelerator, batch, given, maps)) for saved, batch, given, maps in asked
    ]
    assert len(set(keys)) == len(asked)
    first, then = (what_rows_depend_on(saved, accelerator, 8, "images", None) for saved in (own, turned))
    assert next(key for key, value in then.items() if first[key] != value) == "--views", "which the user is told"
    assert version("torch") in keys[0]


def test_a_table_is_continued_on_the_same_model_of_gpu_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others add up in another order, or in TF32."""
    own, accelerator = load_model(model), SimpleNamespace(device=torch.device("cuda"))
    places = []
    for name, major in (("H100", 9), ("A100", 8), ("V100", 7)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, n=major: SimpleNamespace(major=n))
        places.append(what_rows_depend_on(own, cast(Any, accelerator), 8, "images", None)["device"])
    assert places == [
        "H100, float32 (TF32 for convolution)", "A100, float32 (TF32 for convolution)", "V100, float32"
    ]  # fmt: skip
