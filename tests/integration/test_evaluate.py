"""`skindist evaluate`: a saved model on other images, on any number of processes, and what it says of bad input."""

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import recall_score, roc_auc_score

from skindist.cli import main, train
from skindist.data.demo import write_demo_data
from skindist.errors import OutOfMemory, UserError
from skindist.evaluation.stress import DISTURBANCES
from skindist.inference import evaluation
from skindist.prediction import pictures
from skindist.recipe import DataConfig
from skindist.report.history import evaluation_flags, repeat_command
from skindist.report.run_page import run_page
from skindist.run.folder import Run
from tests.helpers import commands, jobs
from tests.helpers.ranks import run_ranks, said


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, whose threshold and temperature are set by hand to values that change decisions."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train(commands.flags(demo, folder, "--evaluation.stress=true", "--evaluation.explain=2")) == 0
    description = json.loads((folder / "model/config.json").read_text())
    description["skindist"] |= {"temperature": 0.5, "bias": 0.001, "threshold": 0.5}
    (folder / "model/config.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other images, larger ones, one in three malignant."""
    folder = tmp_path_factory.mktemp("elsewhere") / "images"
    write_demo_data(folder, count=72, size=40, seed=7)
    for path in sorted((folder / "malignant").iterdir())[18:]:
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def found(run: Path, elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process finds, with all there is to find."""
    out = tmp_path_factory.mktemp("found") / "out"
    run_ranks(1, out.parent / "ranks", jobs.evaluate_elsewhere, run, elsewhere, out, "--recalibrate", "--stress")
    return out


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


def logits(folder: Path) -> dict[str, float]:
    return {row["path"]: float(row["logit"]) for row in rows(folder / "predictions-test.csv")}


def results(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "results.json").read_text())
    return values


def test_a_device_without_room_for_the_model_is_told_so(
    run: Path, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(evaluation, "build_predictor", full)
    with pytest.raises(OutOfMemory, match=r"^out of memory for the model itself"):
        evaluation.evaluate_model(str(run), DataConfig(path=str(elsewhere)), tmp_path / "out")


def test_the_frozen_threshold_and_calibration_decide(found: Path, elsewhere: Path) -> None:
    predictions = rows(found / "predictions-test.csv")
    paths = sorted(path.relative_to(elsewhere).as_posix() for path in elsewhere.glob("*/*"))
    assert [row["path"] for row in predictions] == paths
    model_says = np.array([float(row["logit"]) for row in predictions])
    probability = np.array([float(row["probability"]) for row in predictions])
    assert probability == pytest.approx(1 / (1 + np.exp(-(model_says / 0.5 + 0.001))), rel=1e-12)
    truth = np.array([row["label"] == "malignant" for row in predictions])
    told = results(found)
    assert told["test"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, probability))
    point = told["operating_point"]
    assert (point["threshold"], point["chosen"], point["target_sensitivity"]) == (0.5, "validation", 0.95)
    assert point["validation"] is None
    assert point["test"]["sensitivity"]["value"] == pytest.approx(recall_score(truth, probability >= 0.5))
    assert told["calibration"]["temperature"] == 0.5


def test_it_says_what_differs_and_that_no_image_was_seen(found: Path) -> None:
    told = results(found)
    width, *_ = told["differences"]["traits"]
    assert (width["name"], width["training"], width["here"], width["outside"]) == ("width", [32] * 3, [40] * 3, 1.0)
    share = told["differences"]["malignant_share"]
    assert (share["training"], share["here"], share["differs"]) == (0.5, pytest.approx(1 / 3), True)
    assert told["seen_in_training"] == {
        "train": 0, "val": 0, "near_duplicates": 0, "patients": None,
        "note": "no image is among those of training and validation, nor a near-duplicate of one",
    }  # fmt: skip
    assert "differ from those of training" in told["verdict"]
    assert told["images"] == {"test": {"benign": 36, "malignant": 18}}


def test_what_is_refitted_stands_apart(found: Path) -> None:
    told = results(found)
    again = told["recalibrated"]
    assert again["fitted_on"] == {"benign": 18, "malignant": 9}
    assert again["shown_on"] == {"benign": 18, "malignant": 9}
    assert again["threshold"] != told["operating_point"]["threshold"]
    assert again["refitted"]["sensitivity"]["n"] == again["frozen"]["sensitivity"]["n"] == 9


def test_a_killed_loader_worker_is_one_line(
    run: Path, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(*args: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(evaluation, "evaluate", die)
    assert main(["evaluate", str(run), str(elsewhere), f"--out={tmp_path / 'out'}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: a loader worker was killed: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("folder", ["run", "found"])
def test_a_stress_test_has_figures_and_a_picture(folder: str, request: pytest.FixtureRequest) -> None:
    place: Path = request.getfixturevalue(folder)
    rows = results(place)["stress"]
    assert [row["name"] for row in rows] == list(DISTURBANCES)
    assert {row["n"] for row in rows} == {12 if folder == "run" else 54}
    area = results(place)["test"]["auroc"]["value"]
    for row in rows:
        assert row["change"]["value"] == pytest.approx(row["auroc"]["value"] - area)
        assert row["change"]["low"] <= row["change"]["value"] <= row["change"]["high"]
        assert 0 <= row["flipped"] <= 1
    assert size_of(place / "stress.jpg") == (32 * 10, 20 + 4 * 32)


def test_the_page_of_an_evaluation_tells_of_no_training(run: Path, found: Path) -> None:
    page, of_run = ((place / "report.html").read_text() for place in (found, run))
    assert "A saved model, tested on" in page
    command = re.search(r"skindist evaluate MODEL (\S+/images) --recalibrate --stress --out NEW", page)
    assert command
    assert "skindist evaluate MODEL DATA --recalibrate --stress --out NEW" in run_page(Run(found), pictures=False)
    assert "On the half that was not fitted on" in page
    assert "explained" in page
    for words in ('id="training"', "launch/train.py", "No leak"):
        assert words not in page
        assert words in of_run


@pytest.mark.parametrize(("folder", "most"), [("run", 2), ("found", 4)])
def test_errors_are_listed_and_drawn(folder: str, most: int, request: pytest.FixtureRequest) -> None:
    place: Path = request.getfixturevalue(folder)
    listed, threshold = rows(place / "errors/errors.csv"), results(place)["operating_point"]["threshold"]
    kinds = Counter(row["kind"] for row in listed)
    assert max(kinds.values()) == most
    known = {row["path"]: row for row in rows(place / "predictions-test.csv")}
    for row in listed:
        assert (row["label"], row["probability"]) == tuple(known[row["path"]][key] for key in ("label", "probability"))
        called = float(row["probability"]) >= threshold
        assert row["kind"] == "least certain" or (row["label"], called) in {
            "missed": [("malignant", False)], "false alarm": [("benign", True)]
        }[row["kind"]]  # fmt: skip
        assert size_of(place / "errors" / row["picture"]) == (64, 32)
    assert {path.name for path in (place / "errors").iterdir()} == {row["picture"] for row in listed} | {"errors.csv"}


def test_without_heat_maps_an_evaluation_is_whole_and_one_line_says_why(
    run: Path, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> None:
        raise UserError("there are no heat maps of this model")

    monkeypatch.setattr(pictures, "explain", refuse)
    assert main(["evaluate", str(run), str(elsewhere), f"--out={tmp_path / 'out'}"]) == 0
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == ["errors: no pictures of them are drawn: there are no heat maps of this model"]
    assert results(tmp_path / "out")["stress"] == []
    assert not (tmp_path / "out/errors").exists()


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_finds_the_same_bits(
    processes: int, run: Path, elsewhere: Path, found: Path, tmp_path: Path
) -> None:
    words = (run, elsewhere, tmp_path / "out", "--recalibrate", "--stress")
    assert run_ranks(processes, tmp_path / "ranks", jobs.evaluate_elsewhere, *words) == [0] * processes
    before, now = (
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*.[cjy]*") if path.suffix != ".json"}
        for out in (found, tmp_path / "out")
    )
    assert now == before
    alone, together = results(found), results(tmp_path / "out")
    assert together.pop("world_size") == processes
    alone.pop("world_size")
    assert together == alone


def test_its_own_test_images_give_what_the_run_found(run: Path, demo: Path, tmp_path: Path) -> None:
    """Of class folders all images are used, and those that the run has seen are counted."""
    assert main(["evaluate", str(run / "model"), str(demo), f"--out={tmp_path / 'out'}"]) == 0
    before, now = logits(run), logits(tmp_path / "out")
    assert {path: now[path] for path in before} == pytest.approx(before, abs=1e-6)
    told = results(tmp_path / "out")
    assert (told["seen_in_training"]["train"], told["seen_in_training"]["val"]) == (36, 12)
    assert "48 of 60 images were used to train or choose the model" in told["verdict"]
    assert told["shortcut"]["verdict"] == "cannot be told", "no image is left to train the baseline on"


def test_the_baseline_is_trained_on_the_training_images_and_a_prevalence_counts(
    run: Path, elsewhere: Path, tmp_path: Path
) -> None:
    assert main(["evaluate", str(run), str(elsewhere), f"--out={tmp_path / 'out'}", "--prevalence=0.02"]) == 0
    told = results(tmp_path / "out")
    assert told["shortcut"]["auroc"]["n"] == 54
    assert (told["operating_point"]["prevalence"], told["test"]["ppv"]["interval"]) == (0.02, "mover")


def test_a_training_image_that_was_encoded_again_is_found(
    run: Path, demo: Path, elsewhere: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(elsewhere, images)
    trained = [row["path"] for row in rows(run / "split.csv") if row["split"] == "train"]
    for number, path in enumerate(trained[:3]):
        with Image.open(demo / path) as picture:
            picture.convert("RGB").resize((64, 64)).save(
                images / path.split("/")[0] / f"again-{number}.jpg", quality=90
            )
    assert main(["evaluate", str(run), str(images), f"--out={tmp_path / 'out'}"]) == 0
    told = results(tmp_path / "out")
    assert {name: told["seen_in_training"][name] for name in ("train", "val", "near_duplicates")} == {
        "train": 0, "val": 0, "near_duplicates": 3
    }  # fmt: skip
    assert "3 of 57 images show the same picture as one of training or validation" in told["verdict"]


def test_a_model_in_a_folder_that_is_no_run_is_evaluated(run: Path, elsewhere: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "X/model")
    assert main(["evaluate", str(tmp_path / "X"), str(elsewhere), f"--out={tmp_path / 'out'}"]) == 0
    assert "only its run folder could tell" in results(tmp_path / "out")["seen_in_training"]["note"]


def test_views_may_be_asked_for(run: Path, elsewhere: Path, found: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(run), str(elsewhere), f"--out={tmp_path / 'out'}", "--views=2"]) == 0
    assert logits(tmp_path / "out").keys() == logits(found).keys()
    assert logits(tmp_path / "out") != logits(found)
    assert (results(found)["model"]["views"], results(tmp_path / "out")["model"]["views"]) == (None, 2)


def test_of_a_split_folder_the_test_part_is_used(run: Path, elsewhere: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(elsewhere, tmp_path / "split" / part)
    (tmp_path / "split/train/benign/bad.png").write_text("not an image")
    (tmp_path / "split/test/benign/bad.png").write_text("not an image")
    shutil.copytree(run / "model", tmp_path / "model")
    assert main(["evaluate", str(tmp_path / "model"), str(tmp_path / "split"), f"--out={tmp_path / 'out'}"]) == 0
    told = rows(tmp_path / "out/predictions-test.csv")
    assert len(told) == 54
    assert all(row["path"].startswith("test/") for row in told)
    assert [row["path"] for row in rows(tmp_path / "out/quarantine.csv")] == ["test/benign/bad.png"]
    found = results(tmp_path / "out")
    assert found["seen_in_training"]["train"] is None  # no run beside the model
    assert found["shortcut"]["verdict"] == "cannot be told"


def few(folder: Path) -> None:
    for name in ("benign", "malignant"):
        for path in sorted((folder / name).iterdir())[3:]:
            path.unlink()


def one_class(folder: Path) -> None:
    shutil.rmtree(folder / "malignant")


def none_malignant(folder: Path) -> None:
    one_class(folder)
    (folder / "malignant").mkdir()


def spoilt(folder: Path) -> None:
    for path in sorted((folder / "benign").iterdir())[:10]:
        path.write_text("no")


def copies(folder: Path) -> None:
    first, *others = sorted((folder / "malignant").iterdir())
    for path in others:
        shutil.copy(first, path)


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (few, [], "3 benign images to test on; with fewer than 5 of a class nothing can be said: add benign images"),
        (one_class, [], "must hold exactly the class folders benign/ and malignant/"),
        (none_malignant, [], "0 malignant images to test on"),
        (spoilt, [], r"10 of 54 images cannot be used, more than --max_bad 5%"),
        (copies, ["--recalibrate"], "all malignant images are of one group, which cannot be halved"),
        (shutil.rmtree, [], "no such folder"),
        (lambda folder: None, ["--metadata=none.csv"], "none.csv: no such file"),
        (lambda folder: None, ["--prevalence=2"], "--prevalence 2.0: must be above 0 and below 1"),
    ],
)
def test_bad_images_are_one_clear_line_and_nothing_is_written(
    change: Callable[[Path], None],
    flags: list[str],
    message: str,
    run: Path,
    elsewhere: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(elsewhere, folder)
    change(folder)
    assert main(["evaluate", str(run), str(folder), f"--out={tmp_path / 'out' / 'deep'}", *flags]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.startswith("error: ")
    assert "--data." not in error
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_among_the_images(run: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), str(elsewhere), f"--out={elsewhere / 'out'}"]) == 2
    assert "lies within the images" in capsys.readouterr().err
    assert sorted(path.name for path in elsewhere.iterdir()) == ["benign", "malignant"]


def test_the_command_that_repeats_an_evaluation_has_its_flags() -> None:
    data = {"path": "/my lesions", "metadata": "/m.csv", "malignant": ["mel", "bcc"], "max_bad": 0.05, "image_size": 32}
    told = {"model": {"views": 2}, "operating_point": {"prevalence": 0.02}, "recalibrated": None, "stress": [1]}
    named, bare = (" ".join(evaluation_flags({"data": data}, told, named)) for named in (True, False))
    assert named == "'/my lesions' --metadata /m.csv --malignant '[mel, bcc]' --views 2 --prevalence 0.02 --stress"
    assert bare == "DATA --metadata METADATA --malignant '[mel, bcc]' --views 2 --prevalence 0.02 --stress"


def test_the_command_that_repeats_an_ensemble_names_its_runs() -> None:
    told = {"members": [{"run": "seed-0-fold-0"}, {"run": "my run"}]}
    named, bare = (repeat_command(Run(Path("ensemble")), told, {}, named) for named in (True, False))
    assert named == "skindist ensemble seed-0-fold-0 'my run' --out NEW"
    assert bare == "skindist ensemble RUN RUN --out NEW"


def test_nan_in_a_table_is_no_patient(
    run: Path, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table lies at home, and the config says where."""
    monkeypatch.setenv("HOME", str(tmp_path))
    names = sorted(path.relative_to(elsewhere).as_posix() for path in elsewhere.glob("*/*"))
    (tmp_path / "table.csv").write_text("path,patient_id,age\n" + "".join(f"{name},nan,NaN\n" for name in names))
    out = tmp_path / "out"
    assert main(["evaluate", str(run), str(elsewhere), f"--out={out}", "--metadata=~/table.csv"]) == 0
    assert Run(out).config().data.metadata == str((tmp_path / "table.csv").resolve())
    assert len({row["group"] for row in rows(out / "split.csv")}) == 54
    assert results(out)["subgroups"] == []


@pytest.mark.parametrize("inside", ["results.json", "deep/file"])
def test_a_folder_that_is_not_empty_is_refused_and_left_alone(
    inside: str, run: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out" / inside
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    assert main(["evaluate", str(run), str(elsewhere), f"--out={tmp_path / 'out'}"]) == 2
    assert f"--out {tmp_path / 'out'}: is not empty; give a new folder" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_an_error_on_several_processes_is_said_once_and_ends_all(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_ranks(2, tmp_path / "ranks", jobs.evaluate_elsewhere, run, tmp_path / "none", out) == [2, 2]
    assert said(tmp_path / "ranks", 2).count("no such folder") == 1
    assert not out.exists()


@pytest.mark.slow
def test_accelerate_launch_runs_the_command(run: Path, elsewhere: Path, found: Path, tmp_path: Path) -> None:
    command = ["-m", "skindist", "evaluate", str(run), str(elsewhere), f"--out={tmp_path / 'out'}"]
    done = commands.run(*commands.LAUNCH, "--num_processes=2", *command)
    assert done.returncode == 0, done.stderr
    assert "device: 2 processes" in done.stdout
    assert results(tmp_path / "out")["world_size"] == 2
    now, before = (logits(out) for out in (tmp_path / "out", found))
    assert now == pytest.approx(before, abs=1e-6)


def test_a_model_without_images_of_its_size(run: Path, tmp_path: Path) -> None:
    """Images of any size are brought to the model's."""
    for name, colour in (("benign", 100), ("malignant", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (300 + number, 50), (colour, number, 0)).save(tmp_path / "images" / name / f"{number}.png")
    assert main(["evaluate", str(run), str(tmp_path / "images"), f"--out={tmp_path / 'out'}"]) == 0
