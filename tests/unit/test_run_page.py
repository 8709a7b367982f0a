"""The page of a run: every figure on it is computed again from the predictions, by other code; and what is missing in
the run is said on the page."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from skindist import cli
from skindist.data.demo import write_demo_data
from skindist.errors import UserError
from skindist.report import run_page as module
from skindist.report.history import early_stopping_story, facts
from skindist.report.plots import with_mark
from skindist.report.run_page import draw_run_page, run_page, write_run_page
from skindist.report.scores import read_scores
from skindist.run.folder import Run
from tests.helpers.made_run import invented, made_run, prepared

Array = NDArray[Any]


class Reader(HTMLParser):
    """The figures of a page by name (what `data-figure` says), its text, and what would be fetched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.figures: dict[str, float] = {}
        self.fetched: list[str] = []
        self.images, self.headings, self.ids, self.words = 0, [""], [""], [""]
        self.inside = [""]
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        if name := held.get("data-figure"):
            value = float(held["value"] or "nan")
            assert self.figures.setdefault(name, value) == value, name
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data", "poster")]
        self.images += tag == "img"
        self.headings += [tag] * bool(re.fullmatch("h[1-6]", tag))
        self.ids += [held["id"] or ""] if "id" in held else []
        assert tag != "img" or held["alt"]
        assert tag != "th" or held["scope"] in ("row", "col")
        self.inside.append(tag)

    def handle_data(self, data: str) -> None:
        if self.inside[-1] not in ("style", "script"):
            self.words.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on 180 drawn lesions, 99 of them to test on."""
    folder = tmp_path_factory.mktemp("page")
    write_demo_data(folder / "lesions", count=180, size=32)
    return made_run(folder / "made", *prepared(folder / "lesions", folder / "table.csv"))


@pytest.fixture(scope="module")
def page(run: Run) -> Reader:
    return Reader(run_page(run))


def copy(run: Run, folder: Path) -> Run:
    return Run(Path(shutil.copytree(run.path, folder / "copy")))


def partial_auroc(y: Array, p: Array) -> float:
    """As the ISIC 2024 challenge published it."""
    scaled = float(sk.roc_auc_score(np.abs(y - 1), -p, max_fpr=0.2))
    return 0.5 * 0.2**2 + (0.2 - 0.5 * 0.2**2) / 0.5 * (scaled - 0.5)


def ece(y: Array, p: Array) -> float:
    table = pd.DataFrame({"y": y, "p": p, "bin": np.digitize(p, np.linspace(0, 1, 11)[1:-1])})
    gaps = table.groupby("bin").agg(n=("y", "size"), was=("y", "mean"), said=("p", "mean"))
    return float((gaps.n * (gaps.was - gaps.said).abs()).sum() / len(y))


OF_SCORES: dict[str, Callable[[Array, Array], float]] = {
    "loss": lambda y, p: sk.log_loss(y, p),
    "auroc": sk.roc_auc_score,
    "auprc": sk.average_precision_score,
    "partial_auroc": partial_auroc,
    "brier": sk.brier_score_loss,
    "ece": ece,
}
OF_CALLS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": sk.accuracy_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
    "sensitivity": sk.recall_score,
    "specificity": lambda y, called: sk.recall_score(y, called, pos_label=0),
    "ppv": lambda y, called: sk.precision_score(y, called, zero_division=np.nan),
    "npv": lambda y, called: sk.precision_score(y, called, pos_label=0),
    "f1": sk.f1_score,
    "number_needed_to_biopsy": lambda y, called: 1 / sk.precision_score(y, called),
}


def again(y: Array, p: Array, name: str, threshold: float = 0.5) -> float:
    """A figure by its name, from labels and probabilities."""
    return OF_SCORES[name](y, p) if name in OF_SCORES else OF_CALLS[name](y, (p >= threshold).astype(int))


def test_every_figure_is_computed_again_from_the_predictions(run: Run, page: Reader) -> None:
    results = run.results()
    tables = {split: pd.read_csv(run.path / f"predictions-{split}.csv") for split in ("val", "test")}
    of = {s: ((t.label == "malignant").to_numpy(int), t.probability.to_numpy()) for s, t in tables.items()}
    y, p = of["test"]
    raw = 1 / (1 + np.exp(-tables["test"].logit.to_numpy()))
    threshold, untold = page.figures["operating_point.threshold"], []
    for key, shown in page.figures.items():
        first, *rest = key.removesuffix(".value").split(".")
        if first == "test":
            expected = again(y, p, rest[0])
        elif first == "benign":
            expected = again(y, np.zeros(y.size), rest[0])
        elif key == "operating_point.threshold":  # the target of malignant validation images, and no fewer, reach it
            found = np.sort(of["val"][1][of["val"][0] == 1])[::-1]
            lowest = found[int(np.ceil(0.95 * found.size)) - 1]
            expected = (lowest + max(of["val"][1][of["val"][1] < lowest], default=0)) / 2  # halfway to the next lower
        elif first == "operating_point":
            expected = again(*of[{"validation": "val"}.get(rest[0], "test")], rest[1], threshold)
        elif first == "calibration":
            expected = again(y, p if rest[1] == "after" else raw, rest[2])
        elif first == "reliability":
            members = np.digitize(p, np.linspace(0, 1, 11)[1:-1]) == int(rest[1])
            was, said = calibration_curve(y[members], p[members], n_bins=10)
            expected = {"mean_probability": said[0], "malignant_share": was[0]}[rest[2]]
        elif first == "subgroups":
            members = (tables["test"][rest[0]] == rest[1]).to_numpy()
            expected = again(y[members], p[members], rest[2], threshold)
        elif first == "confusion":
            counts = sk.confusion_matrix(y, p >= threshold)
            names = {"benign": 0, "malignant": 1}
            expected = counts[names[rest[0]], names[rest[1]]]
        elif key == "shortcut.difference":
            expected = again(y, p, "auroc") - page.figures["shortcut.auroc"]
        else:  # what other models score, which the predictions do not hold
            untold.append(key)
            expected = results["shortcut"]["auroc"]["value"]
        assert shown == pytest.approx(expected, abs=1e-12), key
    assert set(untold) == {"shortcut.auroc.value", "shortcut.auroc"}
    kinds = {key.split(".")[0] for key in page.figures}
    shown_in = "test benign operating_point calibration reliability subgroups confusion shortcut"
    assert kinds == set(shown_in.split())
    assert {f"test.{name}" for name in (*OF_SCORES, *OF_CALLS)} - set(page.figures) == {"test.number_needed_to_biopsy"}


def test_the_script_holds_the_probabilities_as_they_are(run: Run) -> None:
    (held,) = re.findall(r'<script type="application/json" id="scores">(.*?)</script>', run_page(run))
    for name in ("malignant", "benign"):
        rows = [row for row in run.predictions("test") if row["label"] == name]
        expected = sorted((float(row["probability"]) for row in rows), reverse=True)
        assert json.loads(held)[name] == expected


def test_the_sets_own_prevalence_stands_beside_the_stated_one(run: Run, tmp_path: Path) -> None:
    stated = copy(run, tmp_path)
    results = run.results()
    results["operating_point"]["prevalence"] = 0.03
    stated.results_file.write_text(json.dumps(results))
    labels = [row["label"] == "malignant" for row in run.predictions("test")]
    buttons = [float(share) for share in re.findall(r'data-prevalence="(.*?)"', run_page(stated))]
    assert buttons == pytest.approx([np.mean(labels), 0.03, 0.02])


def test_what_was_not_fitted_has_one_reliability_curve(run: Run, tmp_path: Path) -> None:
    bare = copy(run, tmp_path)
    results = run.results()
    results["calibration"] |= {"temperature": 1.0, "bias": 0.0, "fitted_on": 0, "note": "not calibrated: for a test"}
    bare.results_file.write_text(json.dumps(results))
    fitted, not_fitted = (run_page(each).split('id="reliability"')[1].split("</svg>")[0] for each in (run, bare))
    assert ("before" in fitted, "after" in fitted, "this model" in fitted) == (True, True, False)
    assert ("before" in not_fitted, "after" in not_fitted, "this model" in not_fitted) == (False, False, True)


def test_the_page_needs_nothing_else_and_can_be_read(run: Run, page: Reader) -> None:
    content = run_page(run)
    assert len(content.encode()) < 1e6
    assert [where for where in page.fetched if not where.startswith(("#", "data:image/jpeg;base64,"))] == []
    assert "@import" not in content
    assert not re.search(r"url\((?!#)", content)
    assert page.headings[1] == "h1"
    assert page.headings.count("h1") == 1
    assert len(page.ids) == len(set(page.ids)), "ids are unlike each other, in all plots too"
    assert page.text.count(run.results()["verdict"]) == 1
    for said in ("chosen on the validation images, to find 95 %",
                 "It did not improve by at least 0.001 in the next epoch",
                 "No leak", "No image was left out",
                 f"--num_processes 2 --mixed_precision no launch/train.py --config {run.config_file}",
                 "data.image_size", "skindist 0.1.0", "fitted on"):  # fmt: skip
        assert said in page.text, said


def test_the_same_run_gives_the_same_page(run: Run) -> None:
    assert run_page(run) == run_page(run)


def test_mistakes_are_the_surest_ones(run: Run) -> None:
    table = pd.read_csv(run.path / "predictions-test.csv")
    threshold = run.results()["operating_point"]["threshold"]
    missed = table[(table.label == "malignant") & (table.probability < threshold)].sort_values("probability")
    alarms = table[(table.label == "benign") & (table.probability >= threshold)].sort_values("probability")
    near = table.iloc[(table.probability - threshold).abs().argsort()]
    shown = re.findall(r"<h3>(\w+)|<figcaption><strong>.*?<span class=\"soft\">(.*?)<br>", run_page(run), re.DOTALL)
    found: dict[str, list[str]] = {}
    for heading, path in shown:
        if heading:
            found[heading] = files = []
        else:
            files.append(path.replace("<wbr>", ""))
    assert found["Malignant"] == list(missed.path[:8])
    assert found["Benign"] == list(alarms.path[::-1][:8])
    assert found["Least"] == list(near.path[~near.path.isin([*found["Malignant"], *found["Benign"]])][:8])


def test_an_error_is_shown_with_its_heat_map_where_the_run_has_drawn_one(run: Run, tmp_path: Path) -> None:
    drawn = copy(run, tmp_path)
    scores = read_scores(drawn, "test")
    assert scores.hashes
    surest = min(np.flatnonzero(scores.labels == 1).tolist(), key=lambda index: scores.probabilities[index])
    drawn.errors.mkdir()
    Image.new("RGB", (64, 32)).save(drawn.error_picture(scores.hashes[surest]))
    before, after = run_page(run), run_page(drawn)
    assert (before.count('class="explained"'), after.count('class="explained"')) == (0, 1)
    for words in ("orange speaks for malignant", "0.5 before calibration, not about the threshold"):
        assert (before.count(words), after.count(words)) == (0, 1)
    first = after[after.index('class="explained"') :]
    assert (
        f"probability of malignant {scores.probabilities[surest]:.3f}; beside it"
        in first[: first.index("<figcaption>")]
    )


def test_pictures_are_left_out_if_asked_and_where_the_file_has_changed(run: Run, tmp_path: Path) -> None:
    assert Reader(run_page(run)).images > 10
    bare = run_page(run, pictures=False)
    assert Reader(bare).images == 0
    for name in (str(run.path.parent), "made", "/lesions", ".png", "table.csv"):
        assert name not in bare, name
    moved = copy(run, tmp_path)
    values = moved.config_file.read_text()
    data = Path(run.config().data.path or "")
    shutil.copytree(data, tmp_path / "changed")
    moved.config_file.write_text(values.replace(str(data), str(tmp_path / "changed")))
    assert Reader(run_page(moved)).images > 10
    for file in (tmp_path / "changed").glob("*/*.png"):
        file.write_bytes(file.read_bytes() + b" ")
    page = Reader(run_page(moved))
    assert page.images == 0
    assert "as if each image stood alone: there is no split.csv" not in page.text
    (moved.path / "split.csv").unlink()  # whether a file has the bytes that were judged is not known now
    unsplit = Reader(run_page(moved))
    assert unsplit.images == 0
    assert "as if each image stood alone: there is no split.csv to tell which belong together." in unsplit.text
    assert "The pictures cannot be shown" in page.text
    assert "holds pictures of patients" not in page.text


MISSING = {
    "verdict": "This run has no verdict",
    "test": "This run has no test figures",
    "shortcut": "was not compared with a classifier that never sees the lesion",
    "operating_point": "No threshold was chosen in this run",
    "calibration": "This run was not calibrated",
    "subgroups": "There are none: they come from the size of the images, and from columns of --data.metadata",
    "early_stopping": "does not tell how its training ended",
    "images": "does not tell how many images it had",
    "left_out": "does not tell how many images were left out",
    "predictions-test.csv": "The curves cannot be drawn",
    "metrics.jsonl": "The run has no curves",
    "split.csv": "is not known: there is no split.csv",
    "config.yaml": "the run does not tell",
}


@pytest.mark.parametrize("part", MISSING)
def test_a_missing_part_is_one_sentence(run: Run, tmp_path: Path, part: str) -> None:
    older = copy(run, tmp_path)
    if "." in part:
        (older.path / part).unlink()
    else:
        results = older.results()
        del results[part]
        older.write_results(results)
    assert MISSING[part] not in Reader(run_page(run)).text
    assert MISSING[part] in Reader(run_page(older)).text


@pytest.mark.parametrize("part", ["predictions-test.csv", "metrics.jsonl"])
def test_a_damaged_part_is_named_on_the_console(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    damaged = copy(run, tmp_path)
    file = damaged.path / part
    file.write_text(file.read_text().replace("0.", "x.", 1))
    assert MISSING[part] in Reader(run_page(damaged)).text
    assert re.search(f"{part}|predictions of test", caplog.text)
    assert "what it tells is left out" in caplog.text


def test_a_gain_that_is_too_little_to_count_is_told(run: Run) -> None:
    """The second epoch is the best one, with a loss of 0.5."""
    stop = {"monitor": "val/loss", "best": 0.5, "best_epoch": 2, "epochs": 4, "stopped_early": True}
    settings = {"early_stopping": {"min_delta": 0.001}}
    later = [{"epoch": 3, "val/loss": 0.4997}, {"epoch": 4, "val/loss": 0.4993}]
    said = " ".join(early_stopping_story(stop, settings, [*run.metrics(), *later]))
    assert "What epoch 4 gained on that, 0.4993, is too little to count (min_delta 0.001)." in said
    assert "too little to count" not in " ".join(early_stopping_story(stop, settings, run.metrics()))


def test_a_run_of_which_only_results_are_left(run: Run, tmp_path: Path) -> None:
    bare = Run(tmp_path)
    bare.write_results({})
    assert all(said in Reader(run_page(bare)).text for said in MISSING.values())


def test_undefined_figures_are_said_to_be_so(tmp_path: Path) -> None:
    """A test set of one class."""
    config, data = invented(40)
    rows = [row for row in data.rows if row.split != "test" or not row.label]
    run = made_run(tmp_path / "one", config, type(data)(rows, data.facts[: len(rows)]))
    text = Reader(run_page(run)).text
    assert "undefined" in text
    assert "undefined to" not in text
    assert "no test image is of that class" in text
    assert "all of one class" in text


def test_leaks_and_quarantine_are_told(run: Run, tmp_path: Path) -> None:
    leaky = copy(run, tmp_path)
    rows = leaky.split()
    trained, tested = (next(row for row in rows if row.split == split) for split in ("train", "test"))
    split = leaky.path / "split.csv"
    split.write_text(split.read_text().replace(f"{tested.group},{tested.sha256}", f"{trained.group},{tested.sha256}"))
    (leaky.path / "quarantine.csv").write_text("path,reason\nbenign/Jane Doe.png,truncated\n")
    leaky.write_results({**leaky.results(), "left_out": 1})
    text = Reader(run_page(leaky)).text
    assert "Leaks: 1 of the test images belong together with a training image, 0 others with a validation image" in text
    assert "1 image was left out" in text
    assert "Jane Doe" in text
    assert "Jane Doe" not in run_page(leaky, pictures=False)


def test_what_the_files_say_is_text_never_html(run: Run, tmp_path: Path) -> None:
    hostile = copy(run, tmp_path)
    bad = "<script>alert(1)</script>"
    predictions = hostile.path / "predictions-test.csv"
    predictions.write_text(predictions.read_text().replace(",female", f",{bad}"))
    results: Mapping[str, Any] = hostile.results()
    hostile.write_results(
        {**results, "verdict": bad, "versions": {bad: bad}, "stress": [{"change": bad, "auroc": 0.5}]}
    )
    assert bad not in run_page(hostile)


def test_a_stress_test_is_shown_as_the_results_have_it(run: Run, tmp_path: Path) -> None:
    assert 'id="stress"' not in run_page(run)
    stressed = copy(run, tmp_path)
    estimate = {"value": -0.0002, "low": -0.05, "high": 0.01, "n": 9, "interval": "bootstrap"}
    row = {"name": "blur", "change": estimate, "flipped": 0.25, "npv": dict.fromkeys(estimate), "n": 1200}
    stressed.write_results({**stressed.results(), "stress": [row]})
    text = Reader(run_page(stressed)).text
    assert "pictures with change of AUROC called otherwise NPV images" in text
    assert "blur 0.000 (-0.050 to 0.010) 25.0% undefined 1,200" in text


@pytest.mark.parametrize(("folds", "pooled"), [((0, 1), True), ((None, None), False), ((1, 1), False)])
def test_folds_are_spoken_of_where_there_are_folds(
    run: Run, tmp_path: Path, folds: tuple[int | None, ...], pooled: bool
) -> None:
    ensemble = copy(run, tmp_path)
    line = {
        "run": "a",
        "seed": 0,
        "epochs": 3,
        "best_epoch": 2,
        "val_auroc": 0.8,
        "test_auroc": 0.8,
        "train_seconds": 9,
    }
    auroc = {"value": 0.8, "low": 0.7, "high": 0.9}
    members = {"members": [{**line, "fold": fold} for fold in folds], "by_seed": [{"seed": 0, "auroc": auroc}]}
    ensemble.write_results({**ensemble.results(), **members})
    text = Reader(run_page(ensemble)).text
    assert ("Seeds, their folds pooled" in text, "out-of-fold AUROC" in text) == (pooled, pooled)
    assert ("out of fold:" in text) == pooled
    assert "Where the folders of the members lie, this command" in text
    assert "skindist ensemble a a --out NEW" in text


@pytest.mark.parametrize(
    ("prevalence", "said"), [(0.02, "for a prevalence of 2.0%"), (None, "at that half's own share of malignant images")]
)
def test_a_refit_is_shown_beside_what_is_frozen(run: Run, tmp_path: Path, prevalence: float | None, said: str) -> None:
    refitted = copy(run, tmp_path)
    results = refitted.results()
    biopsies = {"number_needed_to_biopsy": {"value": 2.5, "low": 2, "high": 4}}
    found = {
        "fitted_on": {"benign": 1040, "malignant": 30}, "shown_on": {"benign": 1041, "malignant": 29},
        "threshold": 0.25, "threshold_interval": [0.125, 0.5], "temperature": 1.5, "bias": -0.5,
        "note": "few validation images", "frozen": biopsies, "refitted": biopsies,
    }  # fmt: skip
    frozen = {
        "operating_point": {**results["operating_point"], "threshold": 0.75, "threshold_interval": None},
        "calibration": {**results["calibration"], "temperature": 2.0, "bias": 0.125},
    }
    frozen["operating_point"]["prevalence"] = prevalence
    refitted.write_results({**results, **frozen, "recalibrated": found})
    text = Reader(run_page(refitted)).text
    assert "fitted on half of these images: 1,040 benign and 30 malignant." in text
    assert f"not fitted on: 1,041 benign and 29 malignant; PPV, NPV and biopsies {said} figure" in text
    assert "threshold 0.75 0.25 (0.125 to 0.5) temperature 2.000 1.500 bias 0.125 -0.500" in text
    assert "biopsies for one malignant lesion 2.5 (2.0 to 4.0) 2.5 (2.0 to 4.0)" in text
    assert "the validation images are the half that was fitted on: few validation images." in text


def test_a_mark_lies_where_its_figures_say() -> None:
    """Axes from 0 to 1 between 10 and 110 across, and from 90 up to 10."""
    plot = Markup('<svg data-frame="10 90 110 10 0 0 1 1"></svg>')
    assert '<circle class="mark" cx="35" cy="50" r="4.5"/></svg>' in with_mark(plot, 0.25, 0.5)
    assert '<rect class="mark" x="34.25" y="10" width="1.5" height="80"/></svg>' in with_mark(plot, 0.25)
    assert with_mark(plot, 0.25, float("nan")) == plot


def test_the_frozen_threshold_is_drawn_in_three_plots(run: Run) -> None:
    assert re.findall(r'<(\w+) class="mark"', run_page(run)) == ["rect", "circle", "circle"]


def test_the_command_writes_the_page(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = copy(run, tmp_path)
    assert cli.main(["report", str(made.path)]) == 0
    assert capsys.readouterr().out == f"{made.report}\n"
    assert Reader(made.report.read_text()).images > 10
    there = tmp_path / "there.html"
    assert cli.main(["report", str(made.path), "--page", str(there), "--pictures", "false"]) == 0
    assert Reader(there.read_text()).images == 0


def test_a_mistake_is_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        [str(tmp_path)],
        [str(run.path), "--page", str(tmp_path)],
        [str(run.path), "--page", "no/where.html"],
    ):
        assert cli.main(["report", *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    damaged = copy(run, tmp_path)
    damaged.results_file.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        write_run_page(damaged)


def test_names_are_written_as_people_write_them(page: Reader) -> None:
    assert facts({"hardware": {"memory_gib": 23.5}})["Hardware"].rows == [["memory GiB", "23.5"]]
    assert "Wilson balanced accuracy" in page.text
    assert "MOVER AUROC" in page.text
    assert not re.search("wilson|mover", page.text)


def test_a_page_that_cannot_be_drawn_does_not_end_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("no font")

    monkeypatch.setattr(module, "run_page", fail)
    draw_run_page(run)
    assert f"the page could not be drawn (RuntimeError: no font); skindist report {run.path} tries again" in caplog.text


@pytest.mark.parametrize("name", ["results.json", "lesion.png"])
def test_nothing_but_a_page_is_overwritten(run: Run, tmp_path: Path, name: str) -> None:
    (mine := tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=rf"{name}: is no name of a page; give one that ends in \.html"):
        write_run_page(run, mine)
    assert mine.read_text() == "{}"
