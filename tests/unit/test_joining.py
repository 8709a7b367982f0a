"""Several runs as one model: whose word counts on which image, what is refused, and what a cross-validation leaves."""

import csv
import json
import math
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from skindist.cli import main, split_command
from skindist.config import Config, RunConfig
from skindist.data.inspection import Facts
from skindist.data.prepare import Prepared, prepare
from skindist.data.split import Row, cut_into_folds
from skindist.errors import UserError
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.known import Known
from skindist.folds import run_folds
from skindist.inference.joining import (
    Member,
    by_seed,
    common_rows,
    doubted,
    frozen_on,
    join_runs,
    predicted,
    shared_settings,
)  # fmt: skip
from skindist.parsing import parse_config
from skindist.recipe import DataConfig, ModelConfig
from skindist.report.model_card import header
from skindist.run.folder import Run
from tests.helpers import commands, jobs
from tests.helpers.ranks import run_ranks

LABELS = {"a": 1, "b": 0, "c": 1, "d": 0, "t": 1}
ROWS = [Row(name, label, "test" if name == "t" else "train", name, name) for name, label in LABELS.items()]


def test_an_image_has_the_mean_of_those_runs_that_did_not_train_on_it() -> None:
    found = predicted(ROWS, [{"a": 0.9, "b": 0.2}, {"c": 0.3, "d": 0.1}, {"a": 0.5, "b": 0.6}])
    assert found.ids.tolist() == [0, 1, 2, 3]
    assert found.labels.tolist() == [1, 0, 1, 0]
    assert found.probabilities == pytest.approx([0.7, 0.4, 0.3, 0.1])


def test_an_ensemble_has_the_settings_that_its_members_agree_on() -> None:
    def member(**model: Any) -> Any:
        data = DataConfig(path=model["name"], augment=model["name"] == "a")
        config = Config(data=data, model=ModelConfig(**model), run=RunConfig(seed=len(model)))
        return SimpleNamespace(config=config)

    first, other = member(name="a"), member(name="b", drop_rate=0.0)
    of_two = shared_settings(first.config, [first, other])
    assert "name" not in of_two["model"]
    assert of_two["model"]["drop_rate"] == 0.0
    assert of_two["optim"] == Config().to_dict()["optim"]
    assert "augment" not in of_two["data"]
    assert of_two["data"]["path"] == "a", "where the images were read"
    assert Config.from_dict(of_two).data.augment, "a setting that is not known has its default"


def test_a_probability_of_1_keeps_finite_log_odds() -> None:
    assert predicted(ROWS, [{"a": 1.0, "b": 0.0}]).logits == pytest.approx([math.log(1e16), -math.log(1e16)], rel=0.02)


def test_labels_are_doubted_where_the_other_class_is_more_probable() -> None:
    found = predicted(ROWS, [{"a": 0.9, "b": 0.7, "c": 0.1, "d": 0.4}])
    assert [(path, label) for path, label, _ in doubted(ROWS, found)] == [("c", "malignant"), ("b", "benign")]


def many(groups: int) -> list[Row]:
    """Three images of each group, every fourth group malignant; the first eight groups are test."""
    return [
        Row(f"{number}-{copy}", int(number % 4 == 0), "test" if number < 8 else "train", f"g{number}", "")
        for number in range(groups)
        for copy in range(3)
    ]


def test_each_image_is_validation_in_one_fold_and_groups_stay_together() -> None:
    rows = many(68)
    folds = [cut_into_folds(rows, 5, fold) for fold in range(5)]
    held_out = Counter(row.path for cut in folds for row in cut if row.split == "val")
    assert held_out == Counter({row.path: 1 for row in rows if row.split != "test"})
    for cut in folds:
        assert [row.path for row in cut if row.split == "test"] == [row.path for row in rows[:24]]
        groups = {split: {row.group for row in cut if row.split == split} for split in ("train", "val")}
        assert not groups["train"] & groups["val"]
        labels = [row.label for row in cut if row.split == "val"]
        assert (len(labels), sum(labels)) == (36, 9)


def test_too_few_groups_for_the_folds_is_one_line() -> None:
    with pytest.raises(UserError, match=r"--data\.folds 4: class malignant has 3 groups; each fold needs one"):
        cut_into_folds(many(20), 4, 0)


def test_all_seeds_have_one_test_part_and_the_same_folds(demo: Path) -> None:
    config = Config.from_dict({"data": {"path": str(demo), "fold": 1, "folds": 3}})
    assert prepare(config.data, seed=5).rows == prepare(config.data, seed=6).rows


def test_a_fold_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"--data\.fold 5: must be below --data.folds 5"):
        parse_config(["--data.path=x", "--data.fold=5"], "train")


def test_folds_without_the_one_to_validate_on_are_refused() -> None:
    with pytest.raises(UserError, match=r"--data\.folds 3: name the fold to validate on, too \(--data\.fold 0\)"):
        parse_config(["--data.path=x", "--data.folds=3"], "train")


def test_folds_takes_its_own_flags_and_leaves_those_of_the_training() -> None:
    own, training = split_command(["folds", "--folds", "3", "--data.path", "x", "--out=y", "--config", "z"])
    assert own == ["folds", "--folds", "3", "--out=y"]
    assert training == [sys.executable, "-m", "skindist", "train", "--data.path", "x", "--config", "z"]
    own, training = split_command(["folds", "--seeds=2", "--", "accelerate", "launch", "--out", "z"])
    assert (own, training) == (["folds", "--seeds=2"], ["accelerate", "launch", "--out", "z"])
    own, training = split_command(["folds", "--only", "1", "--run.seed=2", "--", "torchrun", "--out", "z"])
    assert (own, training) == (["folds", "--only", "1"], ["torchrun", "--out", "z", "--run.seed=2"])


@pytest.fixture(scope="module")
def crossed(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of one seed: runs as the command makes them, then the command, which finds them done."""
    folder = tmp_path_factory.mktemp("crossed")
    for fold in range(2):
        flags = ("--data.folds=2", f"--data.fold={fold}", "--run.seed=0", "--evaluation.explain=0")
        run_ranks(1, folder / "ranks", jobs.fit, demo, folder / f"out/runs/seed-0-fold-{fold}", *flags)
    run_folds([sys.executable, "-c", "raise"], 2, 1, folder / "out")
    return folder / "out"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_cross_validation_judges_each_image_by_the_run_that_did_not_train_on_it(crossed: Path) -> None:
    ensemble, runs = crossed / "ensemble", [crossed / f"runs/seed-0-fold-{fold}" for fold in range(2)]
    own = [row for run in runs for row in rows(run / "predictions-val.csv")]
    pooled = {row["path"]: float(row["probability"]) for row in rows(ensemble / "predictions-val.csv")}
    assert pooled == pytest.approx({row["path"]: float(row["probability"]) for row in own}, abs=1e-9)
    tested = [{row["path"]: float(row["probability"]) for row in rows(run / "predictions-test.csv")} for run in runs]
    mean = {path: (tested[0][path] + tested[1][path]) / 2 for path in tested[0]}
    found = {row["path"]: float(row["probability"]) for row in rows(ensemble / "predictions-test.csv")}
    assert found == pytest.approx(mean, abs=1e-9)
    said = json.loads((crossed / "folds.json").read_text())
    assert [(run["seed"], run["fold"]) for run in said["runs"]] == [(0, 0), (0, 1)]
    assert said["out_of_fold"]["auroc"]["n"] == len(pooled)
    assert said["ensemble"]["test"]["auroc"]["n"] == len(found)
    card = yaml.safe_load((ensemble / "model/README.md").read_text().split("---")[1])
    assert card["model-index"][0]["name"] == "2 x test_resnet"
    labels = {row["path"]: row["label"] for row in rows(ensemble / "predictions-val.csv")}
    threshold = said["operating_point"]["threshold"]
    malignant = sorted((pooled[path] for path in pooled if labels[path] == "malignant"), reverse=True)
    lowest = malignant[math.ceil(0.95 * len(malignant)) - 1]
    assert threshold == pytest.approx((lowest + max(p for p in pooled.values() if p < lowest)) / 2)


def member(scores: dict[str, float], seed: int = 0, fold: int | None = None, rows: list[Row] = ROWS) -> Member:
    """A run of which no more is asked than what it says of its validation images."""
    config = Config.from_dict({"data": {"fold": fold}, "run": {"seed": seed}})
    frozen: Any = SimpleNamespace(frozen=SimpleNamespace(calibration=Calibration(2.0)))
    return Member(Run(Path("run")), config, frozen, rows, {}, {"val": scores})


def test_each_seed_has_the_figures_of_its_own_runs() -> None:
    data: Any = Prepared(ROWS, [Facts("")] * 5)
    folds = [{"a": 0.9, "b": 0.2}, {"c": 0.8, "d": 0.1}]
    others = [{"a": 0.1, "b": 0.9}, {"c": 0.2, "d": 0.7}]
    members = [member(scores, seed, fold) for seed, of in enumerate((folds, others)) for fold, scores in enumerate(of)]
    assert [(row["seed"], row["auroc"]["value"], row["auroc"]["n"]) for row in by_seed(members, data, 0)] == [
        (0, 1.0, 4), (1, 0.0, 4)
    ]  # fmt: skip


@pytest.mark.parametrize(("folds", "expected"), [((0, 1), True), ((None, None), False), ((2, 2), False)])
def test_only_where_single_members_speak_is_the_mean_of_all_another_thing(
    folds: tuple[int | None, ...], expected: bool
) -> None:
    found = predicted(ROWS, [{"a": 0.9, "b": 0.2, "c": 0.3, "d": 0.1}])
    known = Known(found.labels, np.array(list("abcd")), [Facts("")] * 4, [{}] * 4)
    frozen = frozen_on([member({}, fold=fold) for fold in folds], found, known, 0.5, 0)
    assert frozen.threshold.value == pytest.approx(0.6), "between the two malignant ones"
    assert ("expect a sensitivity above the target" in (frozen.threshold.note or "")) == expected


def test_an_image_is_one_of_training_if_any_member_was_trained_on_it() -> None:
    first = [replace(row, split="val") if row.path == "a" else row for row in ROWS]
    second = [replace(row, split="val") if row.path in "ab" else row for row in ROWS]
    found = common_rows([member({}, rows=first), member({}, rows=second)])
    assert [row.split for row in found] == ["val", "train", "train", "train", "test"]


def test_an_ensemble_was_trained_on_what_its_members_were_trained_on(crossed: Path, tmp_path: Path) -> None:
    """Runs of one split have validation images that none was trained on."""
    run = shutil.copytree(crossed / "runs/seed-0-fold-0", tmp_path / "run")
    again = shutil.copytree(run, tmp_path / "again")
    assert main(["ensemble", str(run), str(again), f"--out={tmp_path / 'both'}"]) == 0
    counts = Counter(row["label"] for row in rows(run / "split.csv") if row["split"] == "train")
    trained_on = Run(tmp_path / "both").model / "config.json"
    said = json.loads(trained_on.read_text())["skindist"]["trained_on"]
    assert (said["benign"], said["malignant"]) == (counts["benign"], counts["malignant"])


def test_runs_with_other_settings_are_not_joined(crossed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(crossed, tmp_path / "copy"))
    config = copy / "runs/seed-0-fold-1/config.yaml"
    config.write_text(config.read_text().replace("label_smoothing: 0.1", "label_smoothing: 0.2"))
    with pytest.raises(UserError, match=r"seed-0-fold-1: was run with other settings \(train.label_smoothing"):
        run_folds([sys.executable, "-c", "raise"], 2, 1, copy)
    config.write_text(config.read_text().replace("sensitivity: 0.95", "sensitivity: 0.8"))
    with pytest.raises(UserError, match=r"cannot be one ensemble: --evaluation.sensitivity is 0.95 and 0.8"):
        join_runs([copy / f"runs/seed-0-fold-{fold}" for fold in range(2)], tmp_path / "out")


def test_a_mistake_of_the_user_is_not_told_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fold-0\.log$"):
        run_folds([sys.executable, "-c", "import sys; print('error: --x'); sys.exit(2)"], 2, 1, tmp_path, only=0)


@pytest.mark.slow
def test_the_command_trains_side_by_side_and_goes_on_after_a_failure(demo: Path, tmp_path: Path) -> None:
    flags = [*commands.TINY, "--folds=2", "--at_once=2", f"--out={tmp_path / 'out'}", "--tracking.wandb=disabled"]
    folds = [sys.executable, str(commands.ROOT / "launch/folds.py"), *flags]
    failed = commands.run(*folds, f"--data.path={tmp_path / 'none'}")
    assert failed.returncode == 2
    assert "fold 0: ended with status 2:\nerror: --data.path" in failed.stderr.replace("fold 1", "fold 0")
    done = commands.run(*folds, f"--data.path={demo}")
    assert done.returncode == 0, done.stderr
    assert "2 members; out of fold, 48 images: AUROC" in done.stdout
    assert (tmp_path / "out/ensemble/report.html").is_file()


def test_the_ensemble_is_a_model_that_says_what_its_predictions_say(crossed: Path, demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    assert main(["predict", str(crossed / "ensemble"), str(demo), f"--out={out}"]) == 0
    ours = {row["path"]: float(row["probability"]) for row in rows(out)}
    theirs = {row["path"]: float(row["probability"]) for row in rows(crossed / "ensemble/predictions-test.csv")}
    assert {path: ours[path] for path in theirs} == pytest.approx(theirs, abs=1e-6)


def test_equal_images_of_two_machines_are_the_same(crossed: Path, demo: Path, tmp_path: Path) -> None:
    """And members may differ: the config says nothing of that, and the page and an evaluation go on without it."""
    other = Path(shutil.copytree(crossed / "runs/seed-0-fold-1", tmp_path / "other"))
    (other / "config.yaml").write_text(
        (other / "config.yaml").read_text().replace(str(demo), "/mnt/x").replace("smoothing: 0.1", "smoothing: 0.2")
    )
    out = tmp_path / "out"
    join_runs([crossed / "runs/seed-0-fold-0", other], out)
    saved = Run(out).saved_config()
    assert (saved["data"]["path"], "label_smoothing" in saved["train"]) == (str(demo), False)
    assert "train.label_smoothing" not in (out / "report.html").read_text()
    assert main(["report", str(out), str(crossed / "ensemble"), f"--page={tmp_path / 'page.html'}"]) == 0
    assert main(["evaluate", str(out), str(demo), f"--out={tmp_path / 'evaluated'}", "--views=1"]) == 0
    assert Run(tmp_path / "evaluated").results()["seen_in_training"]["train"] > 0


def test_the_card_of_an_ensemble_names_no_base_model_that_there_is_not(crossed: Path) -> None:
    """Its members are on the Hub of timm; "2 x efficientnet_b0" is not."""
    config, results = Config(), Run(crossed / "ensemble").results()
    assert header(config, results)["base_model"] == "timm/efficientnet_b0.ra_in1k"
    assert "base_model" not in header(config, results, "2 x efficientnet_b0")


def test_what_is_done_is_kept_and_a_failure_is_one_line(crossed: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (crossed / "runs/seed-0-fold-0/results.json").stat().st_mtime_ns
    fails = [sys.executable, "-c", "import sys; sys.exit('error: it fails')"]
    run_folds(fails, 2, 1, crossed, only=1)
    assert "seed 0, fold 1: validation AUROC" in caplog.text
    run_folds(fails, 2, 1, crossed)
    assert (crossed / "runs/seed-0-fold-0/results.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="seed 1, fold 0: ended with status 1:\nerror: it fails\nits output is in"):
        run_folds(fails, 2, 2, crossed, only=2)


def test_only_the_words_of_the_last_attempt_say_why_it_failed(tmp_path: Path) -> None:
    words = ["import pathlib, sys", "flag = pathlib.Path('tried')", "first = not flag.exists()", "flag.touch()",
             "sys.exit('error: the disk is full' if first else 'error: no such user')"]  # fmt: skip
    command = [sys.executable, "-c", "; ".join(words).replace("'tried'", repr(str(tmp_path / "tried")))]
    for said in ("the disk is full", "no such user"):
        with pytest.raises(UserError, match=f"ended with status 1:\nerror: {said}\nits output is in"):
            run_folds(command, 2, 1, tmp_path / "out", only=0)


def test_an_ensemble_is_kept_until_there_is_another_one(crossed: Path, tmp_path: Path) -> None:
    """As a copy of the folder, in which the ensemble may look older than its runs."""
    copy = Path(shutil.copytree(crossed, tmp_path / "copy"))
    (copy / "runs/seed-0-fold-0/results.json").touch()
    (copy / "runs/seed-0-fold-1/predictions-val.csv").write_text("damaged")
    before = sorted(path.relative_to(copy) for path in (copy / "ensemble").rglob("*"))
    with pytest.raises(UserError, match="its predictions of val are not those of the images"):
        run_folds([sys.executable, "-c", "raise"], 2, 1, copy)
    assert sorted(path.relative_to(copy) for path in (copy / "ensemble").rglob("*")) == before
    assert sorted(path.name for path in copy.iterdir()) == ["ensemble", "folds.json", "runs"]


def test_the_calibration_of_an_ensemble_counts_the_members_that_have_one(crossed: Path) -> None:
    """Both were trained on too few images to fit a temperature."""
    note = Run(crossed / "ensemble").results()["calibration"]["note"]
    assert note == "the mean of the members' ones, of which 0 of 2 are calibrated"


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--run.dir=x", "--run.dir: each run gets its own; leave it out"),
        ("--data.fold=1", "--data.fold: each run gets its own"),
        ("--data.pth=x", "nearest: --data.path"),
    ],
)
def test_a_mistake_in_the_flags_is_found_before_anything_is_made(tmp_path: Path, flag: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        run_folds([sys.executable, "launch/train.py", "--data.path=x", flag], 2, 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda runs: runs[:1], "one run is no ensemble"),
        (lambda runs: [runs[0], runs[0].parent], "no results.json here: give the folder of a run"),
        (lambda runs: [runs[0], runs[0].parents[1] / "ensemble"], "is not a run of the main job"),
        (lambda runs: [*runs, runs[0].parent / ".." / "runs" / runs[0].name], "seed-0-fold-0: is given twice"),
    ],
)
def test_what_is_no_ensemble_is_refused(
    crossed: Path, tmp_path: Path, change: Callable[[list[Path]], list[Path]], said: str
) -> None:
    runs = [crossed / f"runs/seed-0-fold-{fold}" for fold in range(2)]
    with pytest.raises(UserError, match=said):
        join_runs(change(runs), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_runs_that_test_on_other_images_are_refused(crossed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(crossed / "runs/seed-0-fold-1", other)
    text = (other / "split.csv").read_text().replace(",test,", ",val,", 1)
    (other / "split.csv").write_text(text)
    moved = next(row.path for row in Run(other).split() if row.split == "val" and row.path in names_of(other, "test"))
    lines = {
        part: (other / f"predictions-{part}.csv").read_text().splitlines(keepends=True) for part in ("val", "test")
    }
    (line,) = (line for line in lines["test"] if line.startswith(f"{moved},"))
    lines["test"].remove(line)
    for part, content in lines.items():
        (other / f"predictions-{part}.csv").write_text("".join([*content, line] if part == "val" else content))
    with pytest.raises(UserError, match="their test images are not the same; with a folder that is not split"):
        join_runs([crossed / "runs/seed-0-fold-0", other], tmp_path / "out")


def names_of(run: Path, part: str) -> set[str]:
    return {row["path"] for row in rows(run / f"predictions-{part}.csv")}


def cut_weights(run: Path) -> None:
    file = run / "model/model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def lose_a_prediction(run: Path) -> None:
    file = run / "predictions-val.csv"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_weights, "model.safetensors: does not fit .* or is damaged"),
        (lose_a_prediction, "its predictions of val are not those of the images in its split.csv"),
        (lambda run: (run / "split.csv").write_text("path,label,split,group,sha256\n"), "it holds no image"),
        (lambda run: (run / "config.yaml").write_text("train: {of_tomorrow: 1}"), "of a newer skindist"),
        (lambda run: (run / "config.yaml").write_text("x"), "config.yaml: cannot be read .*it holds no sections"),
    ],
)
def test_a_damaged_member_is_refused(
    crossed: Path, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(crossed / "runs/seed-0-fold-1", other)
    damage(other)
    with pytest.raises(UserError, match=said):
        join_runs([crossed / "runs/seed-0-fold-0", other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_settings_than_those_of_runs_that_are_done_are_refused(crossed: Path, demo: Path, tmp_path: Path) -> None:
    """Of a run that is done, the checkpoints are not needed any more."""
    train = [sys.executable, "-m", "skindist", "train"]
    flags = ["--tracking.wandb=disabled", "--evaluation.explain=0", f"--data.path={demo}"]
    run_folds([*train, *commands.TINY, *flags], 2, 1, crossed)
    lean = Path(shutil.copytree(crossed, tmp_path / "lean", ignore=shutil.ignore_patterns("checkpoints")))
    run_folds([*train, *commands.TINY, *flags], 2, 1, lean)
    for command, folds, said in (
        ([*flags, "--train.epochs=77"], 2, "train.epochs 2 -> 77"),
        (flags, 3, "--folds 2 -> 3"),
        ([*flags, "--evaluation.sensitivity=0.9"], 2, "it was judged with other --evaluation flags"),
    ):
        refused = f"--out {crossed}: seed-0-fold-0 is another run: {said}. Give the same to go on, or another --out"
        with pytest.raises(UserError, match=f"^{re.escape(refused)}$"):
            run_folds([*train, *commands.TINY, *command], folds, 1, crossed)


def test_after_a_failure_no_other_run_begins(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    script = f"import sys; open({str(begun)!r}, 'a').write('x'); sys.exit('error: it fails')"
    with pytest.raises(UserError, match="fold 0: ended with status 1:\nerror: it fails"):
        run_folds([sys.executable, "-c", script], 4, 1, tmp_path / "out")
    assert begun.read_text() == "x"


def test_a_damaged_probability_is_refused(crossed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(crossed / "runs/seed-0-fold-1", other)
    damaged = rows(file := other / "predictions-test.csv")
    damaged[3]["probability"] = "nan"
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, damaged[0])
        writer.writeheader()
        writer.writerows(damaged)
    with pytest.raises(UserError, match="other: predictions of test cannot be read"):
        join_runs([crossed / "runs/seed-0-fold-0", other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_threshold_of_an_ensemble_says_what_it_was_chosen_on(crossed: Path) -> None:
    note = Run(crossed / "ensemble").results()["operating_point"]["note"]
    assert "expect a sensitivity above the target" in note
    page = (crossed / "ensemble/report.html").read_text()
    assert "expect a sensitivity above the target" in page
    assert "The probabilities are the mean of the members" in page


def test_an_ensemble_older_than_one_of_its_runs_is_made_again(crossed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(crossed, out)
    before = (made := out / "ensemble/results.json").stat().st_mtime_ns
    run_folds([sys.executable, "-c", "raise"], 2, 1, out)
    assert made.stat().st_mtime_ns == before
    (out / "runs/seed-0-fold-1/results.json").touch()
    run_folds([sys.executable, "-c", "raise"], 2, 1, out)
    assert made.stat().st_mtime_ns > before


def test_a_page_that_a_kill_has_left_out_is_drawn_by_the_next_command(crossed: Path) -> None:
    """The results are there already, so nothing is trained or joined again."""
    pages = [crossed / folder / "report.html" for folder in ("runs/seed-0-fold-1", "ensemble")]
    before = [page.read_text() for page in pages]
    for page in pages:
        page.unlink()
    run_folds([sys.executable, "-c", "raise"], 2, 1, crossed, only=1)
    assert [page.exists() for page in pages] == [True, False]
    run_folds([sys.executable, "-c", "raise"], 2, 1, crossed)
    assert [page.read_text() for page in pages] == before
