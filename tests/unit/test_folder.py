"""Run: the names of a run's files stand in one module, and every reader gives one clear error."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

import skindist
from skindist.config import Config, RunConfig
from skindist.data.split import Row
from skindist.errors import UserError
from skindist.recipe import DataConfig, OptimConfig
from skindist.run import record
from skindist.run.folder import Run
from skindist.run.opening import choose_folder

NAMES = (
    "metrics.jsonl", "report.html", "results.json", "split.csv", "quarantine.csv", "config.yaml", "predictions-",
    "checkpoints", ".lock", ".id", "errors.csv", "stress.jpg",
)  # fmt: skip
READERS = ("metrics", "results", "split", "quarantine", "config")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that was begun with one image."""
    begun = Run(tmp_path)
    row = Row("benign/a.jpg", 0, "train", "g", "00")
    begun.write_beginning(Config(optim=OptimConfig(lr=0.5)), [row], [("benign/b.jpg", "truncated")])
    return begun


def test_what_is_written_is_read(run: Run) -> None:
    record.append(run.record, {"val/loss": float("nan"), "epoch": 1, "global_step": 3})
    run.write_predictions("test", ("path", "label", "probability"), [("benign/a.jpg", "benign", "0.25")])
    run.write_results({"test": {"auroc": 0.75}})
    assert run.split() == [Row("benign/a.jpg", 0, "train", "g", "00")]
    assert run.quarantine() == [("benign/b.jpg", "truncated")]
    assert run.config() == Config(optim=OptimConfig(lr=0.5))
    assert run.metrics() == [{"val/loss": None, "epoch": 1, "global_step": 3}]
    assert run.predictions("test") == [{"path": "benign/a.jpg", "label": "benign", "probability": "0.25"}]
    assert run.results() == {"test": {"auroc": 0.75}}
    assert run.newest_checkpoint() is None


def test_the_saved_config_names_no_run_folder(run: Run) -> None:
    assert run.saved_config()["run"]["dir"] is None


def test_neither_a_new_run_nor_its_cache_lies_among_the_images(tmp_path: Path) -> None:
    """The next start would take either for a folder of images; a hidden one is not looked at."""

    def choose(run: str, cache: str) -> Path:
        data = DataConfig(path=str(tmp_path / "lesions"), cache_dir=str(tmp_path / cache))
        return choose_folder(Config(data=data, run=RunConfig(dir=str(tmp_path / run)))).path

    (tmp_path / "lesions").mkdir()
    with pytest.raises(UserError, match=r"^--run.dir .*/lesions/run: lies within the images"):
        choose("lesions/run", "cache")
    for cache in ("lesions", "lesions/cache", "lesions/deep/.not/../cache"):
        with pytest.raises(UserError, match=r"^--data.cache_dir .*: lies within the images \(.*/lesions\), where it"):
            choose("run", cache)
    assert choose("run", "lesions/.cache/deep") == tmp_path / "run"
    assert choose("run", "lesions-cache") == tmp_path / "run"


@pytest.mark.parametrize("reader", READERS)
def test_a_folder_that_is_no_run_is_said(tmp_path: Path, reader: str) -> None:
    with pytest.raises(UserError, match=r"no [a-z.]+ here: give the folder of a run"):
        getattr(Run(tmp_path), reader)()
    with pytest.raises(UserError, match=r"no predictions-val\.csv here: give the folder of a run"):
        Run(tmp_path).predictions("val")


def test_an_unfinished_run_is_said(run: Run) -> None:
    with pytest.raises(UserError, match=r"no results\.json yet: let the run go on"):
        run.results()


def test_a_damaged_file_is_named(run: Run) -> None:
    (run.path / "results.json").write_text("{")
    (run.path / "config.yaml").write_text("a: [")
    run.record.write_text("null\n")
    damaged = ((run.results, "results.json"), (run.saved_config, "config.yaml"), (run.metrics, "metrics.jsonl"))
    for read, file in damaged:
        with pytest.raises(UserError, match=f"{file}: cannot be read"):
            read()


def test_figures_that_are_none_are_damaged(run: Run) -> None:
    (run.path / "results.json").write_text("[]")
    with pytest.raises(UserError, match=r"results\.json: cannot be read \(ValueError: it holds no figures\)"):
        run.results()


def test_a_finished_run_is_not_told_to_go_on(run: Run) -> None:
    run.write_results({})
    with pytest.raises(UserError, match=r"no metrics\.jsonl here: it was removed, or only a training leaves one"):
        run.metrics()


def test_a_config_of_an_older_version_has_defaults_for_what_it_lacks(run: Run) -> None:
    values = run.saved_config()
    del values["train"]["log_every"], values["checkpoint"]
    (run.path / "config.yaml").write_text(yaml.safe_dump(values))
    assert run.config() == Config(optim=OptimConfig(lr=0.5))


def test_a_value_that_does_not_fit_is_said_with_its_file(run: Run) -> None:
    values = run.saved_config()
    values["train"]["epochs"] = "ten"
    run.config_file.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=rf"^{re.escape(str(run.config_file))}: --train\.epochs 'ten': must be a whole"):
        run.config()


def test_half_an_event_of_a_killed_run_is_left_out(run: Run) -> None:
    run.record.write_text(json.dumps({"global_step": 1}) + "\n" + '{"global_')
    assert run.metrics() == [{"global_step": 1}]


def test_the_name_of_each_file_is_spelled_once() -> None:
    """As a string of the code; messages and docstrings may speak of a file."""
    found: list[tuple[str, str]] = []
    for path in Path(skindist.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found += [(name, path.name) for name in NAMES if name in node.value.split("/")]
    found.remove((".lock", "store.py"))  # of the pixel store, which is no run
    assert sorted(found) == sorted((name, "folder.py") for name in NAMES)
