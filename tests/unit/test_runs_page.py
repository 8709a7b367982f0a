"""Runs side by side: which may be compared, and how far they differ."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from skindist import cli
from skindist.report.runs_page import compare, draw, in_one_order, join, names, read_side, write_runs_page
from skindist.report.scores import Scores, read_scores
from skindist.run.folder import Run
from tests.helpers.made_run import invented, made_run
from tests.unit.test_run_page import Reader


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two runs on the same 400 test images, the second clearly better, and one on 300 of them."""
    folder = tmp_path_factory.mktemp("runs")
    made = [
        made_run(folder / name, *invented(400), seed, skill) for seed, (name, skill) in enumerate((("a", 1), ("b", 3)))
    ]
    return [*made, made_run(folder / "c", *invented(300), 2, 1)]


def auroc(run: Run) -> float:
    test = read_scores(run, "test")
    return float(roc_auc_score(test.labels, test.probabilities))


def test_a_difference_is_paired_over_the_same_images(runs: list[Run]) -> None:
    a, b, _ = (read_side(run, name) for run, name in zip(runs, "abc", strict=True))
    pair = compare(a, b)
    assert pair.difference
    assert pair.difference.value == pytest.approx(auroc(runs[0]) - auroc(runs[1]))
    assert pair.difference.low < pair.difference.value < pair.difference.high < 0
    assert pair.said == "b is better"
    same = compare(a, a)
    assert same.difference
    assert (same.difference.low, same.difference.value, same.difference.high) == (0, 0, 0)
    assert same.said == "no clear difference"


def test_a_few_images_of_a_class_name_no_winner(tmp_path: Path) -> None:
    """45 test images have 9 malignant ones, 50 have 10."""
    sides = [
        read_side(made_run(tmp_path / f"{count}-{skill}", *invented(count), skill, skill), str(skill))
        for count in (45, 50)
        for skill in (1, 3)
    ]
    few, enough = compare(*sides[:2]), compare(*sides[2:])
    assert (few.difference, few.said) == (None, "too few test images: it takes 10 groups of each class")
    assert enough.difference


def test_where_nobody_knows_what_belongs_together_the_difference_says_so(runs: list[Run], tmp_path: Path) -> None:
    a, b, _ = (Run(Path(shutil.copytree(run.path, tmp_path / run.path.name))) for run in runs)
    (a.path / "split.csv").unlink()
    alone = ", if each image stands alone: there is no split.csv to tell which belong together"
    assert compare(read_side(a, "a"), read_side(b, "b")).said == "b is better"
    (b.path / "split.csv").unlink()
    assert compare(read_side(a, "a"), read_side(b, "b")).said == f"b is better{alone}"


def test_images_are_paired_by_their_bytes_whatever_their_order(runs: list[Run], tmp_path: Path) -> None:
    moved = Run(Path(shutil.copytree(runs[1].path, tmp_path / "moved")))
    for name in ("predictions-test.csv", "split.csv"):
        header, *lines = (moved.path / name).read_text().replace("/test", "/elsewhere/test").splitlines()
        (moved.path / name).write_text("\n".join([header, *reversed(lines)]))
    here, there = read_scores(runs[1], "test"), read_scores(moved, "test")
    assert list(here.paths) != list(there.paths)
    orders = in_one_order(here, there)
    assert orders is not None
    assert here.probabilities[orders[0]].tolist() == there.probabilities[orders[1]].tolist()


def test_copies_are_paired_one_by_one() -> None:
    """The last digits of two copies may differ."""
    labels = np.array([0, 1, 0])
    one = Scores(["a", "b", "c"], labels, np.array([0.1, 0.9, 0.2]), None, ["x", "y", "x"], [])
    other = Scores(["c", "a", "b"], labels[[2, 0, 1]], np.array([0.4, 0.3, 0.8]), None, ["x", "x", "y"], [])
    orders = in_one_order(one, other)
    assert orders is not None
    assert one.probabilities[orders[0]].tolist() == [0.1, 0.2, 0.9]
    assert other.probabilities[orders[1]].tolist() == [0.3, 0.4, 0.8]


def test_other_images_or_labels_are_not_paired(runs: list[Run], tmp_path: Path) -> None:
    a, c = read_side(runs[0], "a"), read_side(runs[2], "c")
    assert compare(a, c).difference is None
    assert "other images" in compare(a, c).said
    relabelled = Run(Path(shutil.copytree(runs[1].path, tmp_path / "relabelled")))
    file = relabelled.path / "predictions-test.csv"
    file.write_text(file.read_text().replace(",benign,", ",malignant,", 1))
    assert compare(a, read_side(relabelled, "d")).difference is None
    (relabelled.path / "predictions-test.csv").unlink()
    assert "predictions of one are missing" in compare(a, read_side(relabelled, "d")).said


def test_images_that_either_run_ties_together_are_one_group() -> None:
    """a and b are one lesion to the first run, b and c one to the second; d and e stand alone."""
    first, second = np.array(["1", "1", "2", "3", "4"]), np.array(["p", "q", "q", "r", "s"])
    for groupings in ([first, second], [second, first]):
        joined = join(groupings)
        assert joined is not None
        a, b, c, d, e = joined.tolist()
        assert a == b == c
        assert len({a, d, e}) == 3
    alone = join([second])
    assert alone is not None
    assert alone.tolist() == [0, 1, 1, 2, 3]
    assert join([]) is None


def test_which_run_comes_first_changes_only_the_sign(runs: list[Run], tmp_path: Path) -> None:
    """One run knows that each four of its images are one lesion; the other does not, and its files are in another
    order."""
    knowing = Run(Path(shutil.copytree(runs[1].path, tmp_path / "knowing")))
    split = pd.read_csv(knowing.path / "split.csv")
    split["group"] = [f"lesion {at // 4}" for at in range(len(split))]
    split[::-1].to_csv(knowing.path / "split.csv", index=False)
    pd.read_csv(knowing.path / "predictions-test.csv")[::-1].to_csv(knowing.path / "predictions-test.csv", index=False)
    a, b, plain = (read_side(run, name) for run, name in ((runs[0], "a"), (knowing, "b"), (runs[1], "b")))
    there, back, alone = compare(a, b).difference, compare(b, a).difference, compare(a, plain).difference
    assert there
    assert back
    assert alone
    assert (there.interval, back.interval, alone.interval) == ("group bootstrap", "group bootstrap", "bootstrap")
    assert (there.low, there.value, there.high) == pytest.approx((-back.high, -back.value, -back.low))


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    runs = [Run(tmp_path / "x/same"), Run(tmp_path / "y/same"), Run(tmp_path / "z")]
    assert names(runs, named=True) == ["x/same", "y/same", f"{tmp_path.name}/z"]
    assert names(runs, named=False) == ["run 1", "run 2", "run 3"]


def test_the_page(runs: list[Run], tmp_path: Path) -> None:
    page = Reader(write_runs_page(runs, tmp_path / "three.html").read_text())
    for number, run in enumerate(runs):
        assert page.figures[f"{number}.test.auroc"] == pytest.approx(auroc(run))
    assert page.figures["difference.0"] == pytest.approx(auroc(runs[0]) - auroc(runs[1]))
    assert [key for key in page.figures if key.startswith("difference")] == ["difference.0"]
    assert page.text.count("tested on other images") == 2
    assert "AUROC of the first minus that of the second" in page.text
    assert "At each run's own threshold, on test" in page.text, "chosen or fixed"
    assert "The runs have the same settings" in page.text
    assert [where for where in page.fetched if not where.startswith("#")] == []
    assert len(page.ids) == len(set(page.ids))
    content = write_runs_page(runs[:2], tmp_path / "two.html", named=False).read_text()
    assert 'id="roc"' in content
    assert str(runs[0].path.parent) not in content


def test_settings_that_differ_are_shown(runs: list[Run], tmp_path: Path) -> None:
    other = Run(Path(shutil.copytree(runs[0].path, tmp_path / "other")))
    other.config_file.write_text(
        other.config_file.read_text().replace("lr: 0.1", "lr: 0.5").replace("path: null", "path: /secret", 1)
    )
    text = Reader(write_runs_page([runs[0], other], tmp_path / "page.html").read_text()).text
    assert "optim.lr 0.1 0.5" in text
    assert "/secret" in text
    text = Reader(write_runs_page([runs[0], other], tmp_path / "page.html", named=False).read_text()).text
    assert "optim.lr 0.1 0.5" in text
    assert "/secret" not in text


def test_a_setting_that_one_side_lacks_is_no_difference(runs: list[Run], tmp_path: Path) -> None:
    """An ensemble has no --run.seed of its own, nor a --tracking.to."""
    ensemble = Run(Path(shutil.copytree(runs[0].path, tmp_path / "ensemble")))
    sections = ensemble.saved_config()
    sections["optim"]["lr"] = 0.5
    ensemble.write_settings({name: sections[name] for name in ("data", "optim")})
    text = Reader(write_runs_page([runs[0], ensemble], tmp_path / "page.html").read_text()).text
    assert "optim.lr 0.1 0.5" in text
    assert "tracking" not in text


def test_the_command(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *(str(run.path) for run in runs)]) == 0
    assert capsys.readouterr().out == "comparison.html\n"
    assert Path("comparison.html").exists()
    assert cli.main(["report", str(runs[0].path), str(runs[0].path)]) == 2
    assert "the same run twice" in capsys.readouterr().err
    assert cli.main(["report", str(runs[0].path), "nowhere"]) == 2
    assert "results.json" in capsys.readouterr().err


def test_the_plot_counts_the_runs_and_a_list_names_them(runs: list[Run], tmp_path: Path) -> None:
    """Folders have long names, which have no room in a plot."""
    long = [Run(Path(shutil.copytree(run.path, tmp_path / f"{'_$' * 30}-{run.path.name}"))) for run in runs[:2]]
    drawn = draw([read_side(run, run.path.name) for run in long])
    assert drawn is not None
    assert ("run 1" in drawn, "run 2" in drawn, "_$" in drawn) == (True, True, False)
    said = Reader(write_runs_page(long, tmp_path / "long.html").read_text()).text
    assert f"by their numbers: {long[0].path.name} {long[1].path.name}" in said
    unnamed = Reader(write_runs_page(long, tmp_path / "unnamed.html", named=False).read_text()).text
    assert "by their numbers" not in unnamed
