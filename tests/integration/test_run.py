"""One whole run in this process: what it leaves, how it resumes, what it says about bad input."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, log_loss, precision_score, recall_score, roc_auc_score

from skindist.cli import main, train
from skindist.errors import UserError
from skindist.evaluation.frozen import Frozen
from skindist.inference.single import probabilities
from skindist.inference.sources import load_model
from skindist.optim import learning_rate
from skindist.parsing import parse_config
from skindist.prediction.evaluate import evaluate
from skindist.recipe import OptimConfig
from skindist.run.folder import Run
from skindist.run.lock import RunLock
from skindist.run.opening import choose_folder, claim, prepare_data
from skindist.training import trainer
from skindist.training.saving import split_weights
from tests.helpers import jobs
from tests.helpers.commands import flags
from tests.helpers.disks import room_for
from tests.helpers.ranks import run_ranks, said


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def events(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train(flags(demo, folder)) == 0
    return folder


def test_the_run_folder_is_the_contract(run: Path) -> None:
    assert {path.name for path in run.iterdir()} - {".id", ".lock"} == {
        "checkpoints", "config.yaml", "errors", "metrics.jsonl", "model", "predictions-test.csv", "predictions-val.csv",
        "quarantine.csv", "report.html", "results.json", "split.csv", "wandb",
    }  # fmt: skip
    assert {path.name for path in (run / "model").iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_metrics_are_logged_by_step_and_by_epoch(run: Path) -> None:
    logged = events(run)
    assert [event["global_step"] for event in logged if "train/loss" in event] == [2, 3, 5, 6]
    ends = [event for event in logged if "val/loss" in event]
    assert [(event["epoch"], event["global_step"]) for event in ends] == [(1, 3), (2, 6)]
    assert {"val/auroc", "val/balanced_accuracy", "train/images_per_second"} <= set(ends[0])


def test_split_csv_holds_every_image_once(run: Path, demo: Path) -> None:
    split = rows(run / "split.csv")
    assert sorted(row["path"] for row in split) == sorted(
        path.relative_to(demo).as_posix() for path in demo.glob("*/*")
    )
    assert [sum(row["split"] == name for row in split) for name in ("train", "val", "test")] == [36, 12, 12]
    assert all(row["path"].startswith(f"{row['label']}/") for row in split)


@pytest.mark.parametrize("split", ["val", "test"])
def test_figures_can_be_recomputed_from_the_predictions(run: Path, split: str) -> None:
    predictions = rows(run / f"predictions-{split}.csv")
    assert [row["path"] for row in predictions] == [r["path"] for r in rows(run / "split.csv") if r["split"] == split]
    truth = np.array([row["label"] == "malignant" for row in predictions])
    probability = np.array([float(row["probability"]) for row in predictions])
    logits = np.array([float(row["logit"]) for row in predictions])
    assert probability == pytest.approx(1 / (1 + np.exp(-logits)), rel=1e-12)
    results = json.loads((run / "results.json").read_text())[split]
    assert results["accuracy"]["value"] == pytest.approx(accuracy_score(truth, probability >= 0.5))
    assert results["auroc"]["value"] == pytest.approx(roc_auc_score(truth, probability))
    assert results["loss"]["value"] == pytest.approx(log_loss(truth, probability))
    matrix = results["confusion_matrix"]
    assert sum(matrix["malignant"].values()) == truth.sum() == 6
    assert matrix["benign"]["malignant"] == ((probability >= 0.5) & ~truth).sum()
    for figure in ("accuracy", "balanced_accuracy", "auroc", "sensitivity", "specificity", "loss"):
        assert results[figure]["low"] <= results[figure]["value"] <= results[figure]["high"]


def test_results_tell_how_they_came_about(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["images"] == {
        split: {"benign": n, "malignant": n} for split, n in (("train", 18), ("val", 6), ("test", 6))
    }
    assert (results["world_size"], results["images_seen"], results["mixed_precision"]) == (1, 72, "no")
    stop = results["early_stopping"]
    ends = {event["epoch"]: event["val/loss"] for event in events(run) if "val/loss" in event}
    assert stop["best"] == ends[stop["best_epoch"]] == pytest.approx(results["val"]["loss"]["value"], abs=1e-6)
    assert stop["first_epoch"] == 2, "until then the rate is above half of its peak"
    assert torch.__version__.startswith(results["versions"]["torch"])
    assert results["images_per_second"] > 0


def test_the_best_epoch_is_tested_and_saved_not_the_last(run: Path, demo: Path, tmp_path: Path) -> None:
    """No epoch is better by 100 than the first one. The curve's points are means of the steps since the one before."""
    folder, early = tmp_path / "run", {"first_epoch": 1, "min_delta": 100, "patience": 1, "monitor": "val/auroc"}
    more = [f"--early_stopping.{key}={value}" for key, value in early.items()]
    more += ["--evaluation.views=2", "--train.log_every=1", "--tracking.wandb=disabled"]
    assert train(flags(demo, folder, *more)) == 0
    stop = json.loads((folder / "results.json").read_text())["early_stopping"]
    assert (stop["best_epoch"], stop["epochs"], stop["stopped_early"]) == (1, 2, False)
    assert (stop["min_delta"], stop["mode"]) == (100, "max")
    steps = [event for event in events(folder) if "train/loss" in event]
    assert [event["train/lr"] for event in steps] == [learning_rate(step, 3, 2, OptimConfig()) for step in range(6)]
    losses, points = (
        [event["train/loss"] for event in events(each) if "train/loss" in event] for each in (folder, run)
    )
    pairs = [losses[:2], losses[2:3], losses[3:5], losses[5:]]
    assert points == pytest.approx([sum(pair) / len(pair) for pair in pairs])
    saved = load_file(folder / "model/model.safetensors")
    best, last = (
        split_weights(load_file(folder / f"checkpoints/step-0000000{step}/model.safetensors"))[1] for step in (3, 6)
    )
    assert all(torch.equal(best[name], tensor) for name, tensor in saved.items())
    assert not all(torch.equal(last[name], tensor) for name, tensor in saved.items())
    model = load_model(folder)
    assert model.description.views == 2
    tested = rows(folder / "predictions-test.csv")
    pictures = [Image.open(demo / row["path"]) for row in tested]
    expected = probabilities(model, pictures)
    assert [float(row["probability"]) for row in tested] == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_operating_point_can_be_computed_again(run: Path) -> None:
    results = json.loads((run / "results.json").read_text(), parse_constant=pytest.fail)  # no NaN in it
    point = results["operating_point"]
    truth, probability = {}, {}
    for split in ("val", "test"):
        predictions = rows(run / f"predictions-{split}.csv")
        truth[split] = np.array([row["label"] == "malignant" for row in predictions])
        probability[split] = np.array([float(row["probability"]) for row in predictions])
    malignant = np.sort(probability["val"][truth["val"]])
    below = max((p for p in probability["val"] if p < malignant[0]), default=0)
    assert point["threshold"] == pytest.approx((malignant[0] + below) / 2)
    assert (point["chosen"], point["target_sensitivity"]) == ("validation", 0.95)
    assert point["note"].startswith("only 6 malignant validation images")
    called = probability["test"] >= point["threshold"]
    found = {name: figure["value"] for name, figure in point["test"].items()}
    assert found["sensitivity"] == pytest.approx(recall_score(truth["test"], called))
    assert found["specificity"] == pytest.approx(recall_score(~truth["test"], ~called))
    assert found["ppv"] == pytest.approx(precision_score(truth["test"], called))
    assert found["number_needed_to_biopsy"] == pytest.approx(called.sum() / (truth["test"] & called).sum())
    assert results["shortcut"]["verdict"] == "cannot be told", "6 test images of each class are too few"
    assert results["verdict"].startswith("On 12 test images the model has an AUROC of ")
    assert results["test"]["threshold"] == 0.5


def test_what_was_fixed_travels_with_the_model(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    saved = json.loads((run / "model/config.json").read_text())["skindist"]
    frozen = Frozen.from_dict(saved)
    assert saved["class_names"] == ["benign", "malignant"]
    assert frozen.threshold.value == results["operating_point"]["threshold"]
    assert frozen.calibration.temperature == results["calibration"]["temperature"] == 1, "6 images are too few"
    assert "6 benign and 6 malignant validation images" in results["calibration"]["note"]


def test_the_model_card_is_one_for_the_hub(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    card = ModelCard.load(run / "model/README.md")
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found["auroc"] == pytest.approx(results["test"]["auroc"]["value"], abs=1e-4)
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    for wanted in (results["verdict"], "not a medical device", "| Skin tone (test images) | not provided |"):
        assert wanted in card.text
    assert not any(row["path"] in card.content for row in rows(run / "split.csv"))


def test_the_saved_model_loads_with_timm_and_predicts_the_same(run: Path, demo: Path) -> None:
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    config = json.loads((run / "model/config.json").read_text())
    assert config["label_names"] == ["benign", "malignant"]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    preprocessing: Any = timm.data.resolve_model_data_config  # its types are lost on mypy
    transform = timm.data.create_transform(**preprocessing(model), is_training=False)
    predictions = rows(run / "predictions-test.csv")
    images = [transform(Image.open(demo / row["path"]).convert("RGB")) for row in predictions]
    with torch.inference_mode():
        found = model(torch.stack(images)).softmax(1)[:, 1].tolist()
    assert found == pytest.approx([float(row["probability"]) for row in predictions], abs=1e-6)
    _, best = split_weights(load_file(run / "checkpoints/best/model.safetensors"))  # the average is what was judged
    saved = load_file(run / "model/model.safetensors")
    assert best.keys() == saved.keys()
    assert all(torch.equal(best[name], saved[name]) for name in best)


def test_the_cards_own_lines_give_the_probability_and_the_decision(
    run: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run / "model", tmp_path / "model")
    card = tmp_path / "model/README.md"
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for row in rows(run / "predictions-test.csv")[:3]:
        shutil.copy(demo / row["path"], "lesion.jpg")
        said: dict[str, Any] = {}
        exec(compile(code, "card", "exec"), said)
        assert said["probability"] == pytest.approx(float(row["probability"]), abs=1e-6)
        assert said["decision"] == (
            said["probability"] >= json.loads(Path("model/config.json").read_text())["skindist"]["threshold"]
        )


@pytest.mark.extra
def test_the_saved_model_loads_with_transformers(run: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForImageClassification.from_pretrained(run / "model").eval()
    assert model.config.id2label == {0: "benign", 1: "malignant"}
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()(images)
        torch.testing.assert_close(model(images).logits, expected, rtol=0, atol=1e-6)


def test_bad_files_and_metadata_of_a_run(demo: Path, tmp_path: Path) -> None:
    """What is bad is in quarantine.csv, before and after a resume; what the table says is in the predictions."""
    data, folder = shutil.copytree(demo, tmp_path / "data"), tmp_path / "run"
    (data / "benign/half.png").write_bytes((demo / "benign/0000.png").read_bytes()[:500])
    lines = [f"{path.stem}-{path.parent.name},{path.relative_to(data).as_posix()},61" for path in data.glob("*/0*.png")]
    (tmp_path / "table.csv").write_text("\n".join(["patient_id,file_name,age_approx", *lines]))
    words = flags(data, folder, f"--data.metadata={tmp_path / 'table.csv'}", "--tracking.wandb=disabled")
    assert train([*words, "--train.epochs=1"]) == 0
    assert rows(folder / "quarantine.csv") == [{"path": "benign/half.png", "reason": "truncated"}]
    assert json.loads((folder / "results.json").read_text())["left_out"] == 1
    predictions = rows(folder / "predictions-test.csv")
    for row in predictions:
        folder_name, file_name = row["path"].split("/")
        assert (row["patient_id"], row["age"]) == (f"{file_name[:4]}-{folder_name}", "61")
    assert train([*words, "--train.epochs=1", "--run.resume=must"]) == 0
    assert rows(folder / "predictions-test.csv") == predictions
    assert len(rows(folder / "quarantine.csv")) == 1
    assert json.loads((folder / "results.json").read_text())["left_out"] == 1


def test_pixels_are_prepared_once_for_all_runs(demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = [f"--data.cache_dir={tmp_path / 'cache'}", "--tracking.wandb=disabled", "--train.epochs=1"]
    caplog.set_level("INFO", "skindist")
    assert train(flags(demo, tmp_path / "a", *words)) == 0
    assert caplog.text.count("pixels: preparing 60 images at 32 px") == 1
    assert train(flags(demo, tmp_path / "b", *words, "--run.seed=1")) == 0
    assert caplog.text.count("pixels: preparing") == 1


def test_clear_cache_command(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    words = [f"--data.cache_dir={cache}", "--tracking.wandb=disabled", "--train.epochs=1"]
    assert train(flags(demo, tmp_path / "run", *words)) == 0
    capsys.readouterr()
    assert main(["clear-cache", "--cache_dir", str(cache)]) == 0
    assert re.fullmatch(rf"\d+\.\d\d kB removed from {re.escape(str(cache))}\n", capsys.readouterr().out)
    assert list(cache.iterdir()) == []
    assert main(["clear-cache", "--cache_dir", str(cache)]) == 0
    assert capsys.readouterr().out == f"nothing of skindist's is in {cache}\n"


def test_the_saved_config_repeats_the_run_in_a_new_folder(run: Path, tmp_path: Path) -> None:
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["run"]["dir"] is None
    again = tmp_path / "again"
    assert train([f"--config={run / 'config.yaml'}", f"--run.dir={again}"]) == 0
    for file in ("split.csv", "predictions-test.csv", "predictions-val.csv", "model/model.safetensors"):
        assert (again / file).read_bytes() == (run / file).read_bytes()


def test_wandb_records_offline_and_keeps_the_secrets(run: Path, demo: Path) -> None:
    (record,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    for wanted in (b"val/auroc", b"train/loss", b"test/confusion_matrix", b"test/roc", b"test/precision_recall"):
        assert wanted in content
    for private in (str(demo), str(run), "benign/0000", *(Path(row["path"]).name for row in rows(run / "split.csv"))):
        assert private.encode() not in content


def test_console_says_what_matters(demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert train(flags(demo, tmp_path / "r", "--train.epochs=1")) == 0
    said = caplog.text
    assert "data: 60 images: train 18 benign + 18 malignant, val 6 benign + 6 malignant" in said
    assert "epoch 1: val loss" in said
    assert "95 % interval" in said
    assert "operating point: threshold 0." in said
    assert "Whether it is better than a shortcut cannot be told" in said
    assert "wandb sync" in said
    assert str(tmp_path / "r/results.json") in said


def test_a_finished_run_is_not_trained_again(run: Path, demo: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    assert train(flags(demo, copy)) == 0
    for file in ("metrics.jsonl", "predictions-test.csv", "split.csv", "config.yaml"):
        assert (copy / file).read_bytes() == (run / file).read_bytes()


def test_a_finished_run_can_be_judged_by_another_sensitivity(run: Path, demo: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    assert train(flags(demo, copy, "--evaluation.sensitivity=0.5", "--evaluation.prevalence=0.02")) == 0
    before, after = (json.loads((folder / "results.json").read_text()) for folder in (run, copy))
    assert after["operating_point"]["target_sensitivity"] == 0.5
    assert after["operating_point"]["threshold"] > before["operating_point"]["threshold"]
    assert after["operating_point"]["prevalence"] == 0.02
    assert after["test"]["auroc"] == before["test"]["auroc"]
    for file in ("metrics.jsonl", "predictions-test.csv", "model/model.safetensors"):
        assert (copy / file).read_bytes() == (run / file).read_bytes()


def test_a_killed_run_goes_on_and_logs_nothing_twice(
    run: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, original, evaluations = tmp_path / "cut", evaluate, []

    def die_in_epoch_2(*args: Any) -> Any:
        evaluations.append(args)
        if len(evaluations) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(trainer, "evaluate", die_in_epoch_2)
    words = flags(demo, cut, "--tracking.wandb=disabled")
    assert train(words) == 130
    assert [event["global_step"] for event in events(cut)] == [2, 3, 3, 5, 6]
    monkeypatch.undo()
    assert train([*words, "--run.resume=must"]) == 0
    assert [event["global_step"] for event in events(cut)] == [event["global_step"] for event in events(run)]
    for file in ("predictions-test.csv", "model/model.safetensors"):
        assert (cut / file).read_bytes() == (run / file).read_bytes()


def test_a_damaged_checkpoint_is_passed_over_unless_it_must_be_resumed(
    run: Path, demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    for folder in (copy / "checkpoints").glob("step-*"):
        (folder / "model.safetensors").write_bytes(b"x")
    assert train(flags(demo, copy, "--run.resume=must")) == 2
    assert "no intact checkpoint" in capsys.readouterr().err
    assert train(flags(demo, copy, "--tracking.wandb=disabled")) == 0
    assert "is damaged" in caplog.text
    assert (copy / "predictions-test.csv").read_bytes() == (run / "predictions-test.csv").read_bytes()


def test_checkpoints_of_other_data_or_precision_are_refused(
    run: Path, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    lines = (copy / "split.csv").read_text().splitlines(keepends=True)
    (copy / "split.csv").write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert train(flags(demo, copy)) == 2
    assert "belong to another run: other images, labels or split than in split.csv." in capsys.readouterr().err
    assert run_ranks(1, tmp_path / "rank", jobs.status_in, "bf16", flags(demo, run)) == [2]
    refusal = said(tmp_path / "rank", 1)
    assert "belong to another run: --mixed_precision no -> bf16. Give what they were made" in refusal


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer.build_learner

    def poison(*args: Any) -> Any:
        learner = original(*args)
        steps = []

        def spoil(module: object, inputs: object, logits: torch.Tensor) -> torch.Tensor:
            steps.append(1)
            return logits * float("nan") if len(steps) == 2 else logits

        learner.module.register_forward_hook(spoil)
        return learner

    monkeypatch.setattr(trainer, "build_learner", poison)
    assert train(flags(demo, tmp_path / "nan")) == 1
    error = capsys.readouterr().err
    assert "the training loss is nan at step 2" in error
    assert "Traceback" not in error


def missing(demo: Path, tmp: Path) -> list[str]:
    return [f"--data.path={tmp / 'nowhere'}"]


def not_given(demo: Path, tmp: Path) -> list[str]:
    return ["--data.path=null"]


def empty(demo: Path, tmp: Path) -> list[str]:
    (tmp / "empty").mkdir()
    return [f"--data.path={tmp / 'empty'}"]


def one_class(demo: Path, tmp: Path) -> list[str]:
    shutil.copytree(demo / "benign", tmp / "one/benign")
    return [f"--data.path={tmp / 'one'}"]


def one_image(demo: Path, tmp: Path) -> list[str]:
    shutil.copytree(demo / "benign", tmp / "single/benign")
    (tmp / "single/malignant").mkdir()
    shutil.copy(next((demo / "malignant").iterdir()), tmp / "single/malignant")
    return [f"--data.path={tmp / 'single'}"]


def other_weights(demo: Path, tmp: Path) -> list[str]:
    save_file(timm.create_model("test_vit").state_dict(), tmp / "vit.safetensors")
    return [f"--model.weights={tmp / 'vit.safetensors'}"]


def no_metadata(demo: Path, tmp: Path) -> list[str]:
    return [f"--data.metadata={tmp / 'nowhere.csv'}"]


def no_cache(demo: Path, tmp: Path) -> list[str]:
    (tmp / "a file").write_text("")
    return [f"--data.cache_dir={tmp / 'a file'}"]


def other_config(demo: Path, tmp: Path) -> list[str]:
    (tmp / "run").mkdir()
    saved = parse_config(flags(demo, tmp / "run", "--optim.lr=0.7")).to_dict()
    (tmp / "run/config.yaml").write_text(yaml.safe_dump(saved))
    return []


def other_micro_batch(demo: Path, tmp: Path) -> list[str]:
    other_config(demo, tmp)
    return ["--optim.lr=0.7", "--train.micro_batch_size=auto"]


def images_there(demo: Path, tmp_path: Path) -> list[str]:
    for name in ("benign", "train"):
        (tmp_path / "run" / name).mkdir(parents=True)
    return []


def no_run(demo: Path, tmp: Path) -> list[str]:
    (tmp / "run/model").mkdir(parents=True)
    (tmp / "run/results.json").write_text("mine")
    return []


BAD_INPUT: list[tuple[Callable[[Path, Path], list[str]], str]] = [
    (missing, "no such folder"),
    (not_given, "--data.path is missing"),
    (empty, "must hold exactly the class folders benign/ and malignant/"),
    (one_class, "it holds benign/"),
    (one_image, "class malignant has 1 image in 1 group that must stay together"),
    (lambda *_: ["--model.nmae=x"], "nearest: --model.name"),
    (lambda *_: ["--model.name=efficientnet_b00"], "--model.name efficientnet_b00"),
    (lambda *_: ["--model.name=efficientnet_b0", "--model.pretrained=true"], "--model.pretrained false"),
    (other_weights, "does not fit --model.name test_resnet"),
    (lambda *_: ["--optim.name=adadleta"], "--optim.name adadleta"),
    (lambda *_: ["--train.micro_batch_size=0"], "must be 1 or more, or auto"),
    (lambda *_: ["--run.resume=must"], "--run.resume must: no checkpoint"),
    (other_config, "optim.lr 0.7 -> 0.1"),
    (other_micro_batch, "train.micro_batch_size None -> 'auto'"),
    (no_metadata, "nowhere.csv: no such file"),
    (no_cache, "a file: Not a directory; give another folder"),
    (images_there, "holds images (benign, train), and no run; give another folder"),
    (no_run, "holds no run (config.yaml is missing), but what a run would write over (results.json, model)"),
    (lambda *_: ["--model.name=test_vit"], "--data.image_size 32: test_vit takes images of 160 pixels alone; give 160"),
    (
        lambda *_: ["--train.batch_size=2", "--train.micro_batch_size=1"],
        "BatchNorm cannot learn from one image at a time at --data.image_size 32",
    ),
]
NAMES = [
    "missing", "not given", "empty", "one class", "one image", "unknown flag", "unknown model", "no network",
    "other weights", "unknown optimizer", "no images at a time", "nothing to resume", "other config",
    "other micro-batch", "no metadata", "no cache", "images", "another folder", "another size", "one image at a time",
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BAD_INPUT, ids=NAMES)
def test_bad_input_gets_one_message_and_status_2(
    demo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path, Path], list[str]],
    message: str,
) -> None:
    words = flags(demo, tmp_path / "run", *spoil(demo, tmp_path))
    before = sorted(tmp_path.rglob("*"))
    assert train(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before, "a refused run must leave nothing behind"


def test_fp16_on_a_cpu_is_refused(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert train(flags(demo, tmp_path / "run")) == 2
    assert "--mixed_precision fp16 does nothing on a CPU" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_within_its_images_is_refused(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The next one would find a folder there that is no class."""
    before = sorted(demo.rglob("*"))
    assert train(flags(demo, demo / "runs/a")) == 2
    assert f"lies within the images ({demo}), where it would be taken for some" in capsys.readouterr().err
    assert sorted(demo.rglob("*")) == before


def test_a_run_that_another_command_began_meanwhile_is_not_trained_with_other_images(
    demo: Path, tmp_path: Path
) -> None:
    """Both looked at the folder while it was not there; the first one has come and gone since."""
    first, other, again = (parse_config(flags(demo, tmp_path / "run", f"--run.seed={seed}")) for seed in (0, 1, 0))
    looked = [(config, choose_folder(config)) for config in (first, other, again)]
    data = [prepare_data(config, run) for config, run in looked]
    with RunLock() as lock:
        claim(looked[0][1], first, data[0], lock)
    with pytest.raises(UserError, match=r"holds a run with another config: run\.seed 0 -> 1"), RunLock() as lock:
        claim(looked[1][1], other, data[1], lock)
    with pytest.raises(UserError, match="another command has begun a run there meanwhile"), RunLock() as lock:
        claim(looked[2][1], again, data[1], lock)
    with RunLock() as lock:
        claim(looked[2][1], again, data[2], lock)


def test_a_finished_run_without_checkpoints_is_not_trained_anew(
    run: Path, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("checkpoints"))
    before = (again / "results.json").read_bytes()
    assert train(flags(demo, again)) == 2
    assert "the run is finished, and its checkpoints are gone" in capsys.readouterr().err
    assert (again / "results.json").read_bytes() == before


def test_never_refuses_a_folder_that_holds_a_run(run: Path, demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(flags(demo, run, "--run.resume=never")) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_folder_that_is_being_written_is_refused(
    run: Path, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import subprocess
    import sys

    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(copy / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert train(flags(demo, copy)) == 2
    assert "another process" in capsys.readouterr().err
    holder.communicate(b"\n")
    assert train(flags(demo, copy)) == 0


@pytest.mark.parametrize("place", ["/proc/run", "file/run"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(demo: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--run\.dir .*run: cannot be written \((No such file|Not a directory).*\)$"):
        choose_folder(parse_config(flags(demo, tmp_path / place)))
    choose_folder(parse_config(flags(demo, tmp_path / "new/run")))
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "to try leaves nothing behind"


@pytest.mark.parametrize("place", [300 * "n", f"{300 * 'n'}/run"])
def test_a_folder_with_too_long_a_name_is_refused(demo: Path, tmp_path: Path, place: str) -> None:
    with pytest.raises(UserError, match=r"^--run\.dir .*: cannot be (read|written) \(File name too long"):
        choose_folder(parse_config(flags(demo, tmp_path / place)))


def test_a_model_that_does_not_fit_on_the_disk_is_one_line(
    run: Path, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    room = (copy / "model/model.safetensors").stat().st_size - 1
    (copy / "results.json").unlink()
    with room_for(room):
        assert train(flags(demo, copy)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {copy}/model: ")
    assert "File too large" in error
    assert error.count("\n") == 1
    assert not (copy / "results.json").exists()
    assert train(flags(demo, copy)) == 0


def test_a_run_that_is_being_written_is_refused_before_the_work(run: Path, demo: Path, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(run, tmp_path / "copy", symlinks=True))
    config = parse_config(flags(demo, copy.path))
    with RunLock() as lock:
        lock.take(copy.lock)
        with pytest.raises(UserError, match="is writing this run; stop it first, or give another folder"):
            choose_folder(config)
        lock.check()
    assert choose_folder(config) == copy


def test_curves_are_drawn(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    assert main(["curves", str(copy)]) == 0
    with Image.open(copy / "curves.png") as picture:
        assert picture.width > 800
    assert main(["curves", str(tmp_path)]) == 2
    assert "no metrics.jsonl here" in capsys.readouterr().err


def test_demo_data_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo-data", str(tmp_path / "a b"), "--count", "4", "--size=32"]) == 0
    assert len(list((tmp_path / "a b").glob("*/*"))) == 4
    assert capsys.readouterr().out.count(f"--data.path '{tmp_path}/a b'") == 2
    assert main(["demo-data", str(tmp_path / "a b")]) == 2
    assert main(["demo-dat"]) == 2
    assert "Traceback" not in capsys.readouterr().err
