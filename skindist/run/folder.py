"""The run folder: the one module that spells the names of its files, with a reader for each.

from skindist import Run
run = Run(Path("runs/mine"))
run.results()["test"]["auroc"], run.metrics(), run.predictions("test")
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import yaml

from skindist.config import Config
from skindist.data.split import Row, read_split, write_split
from skindist.errors import Damaged, UserError
from skindist.files import read_csv, write_atomic, write_csv, write_json
from skindist.run import record
from skindist.run.record import Event

PREDICTED = ("path", "label", "probability", "logit")
"""The first columns of the predictions; what the metadata say of an image comes after them."""
T = TypeVar("T")


class Place:
    """A file or folder of a run, by its name in the run's folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, run: None, owner: type) -> Self: ...
    @overload
    def __get__(self, run: "Run", owner: type) -> Path: ...
    def __get__(self, run: "Run | None", owner: type) -> Self | Path:
        return self if run is None else run.path / self.name


@dataclass(frozen=True)
class Run:
    """A run's folder, whether it is there yet or not. Each reader raises UserError where its file is missing, because
    the folder is no run or the run is not that far, or is damaged."""

    path: Path

    lock = Place(".lock")
    """Says who writes the run."""
    id_file = Place(".id")
    """The run's id in W&B."""
    config_file = Place("config.yaml")
    """The config, written once, when the run begins."""
    checkpoints = Place("checkpoints")
    """The folder of checkpoints."""
    model = Place("model")
    """The folder of the best model, as timm and transformers load it."""
    record = Place("metrics.jsonl")
    """The curves."""
    results_file = Place("results.json")
    """The final figures, written last."""
    report = Place("report.html")
    """The page that says what the figures are worth."""
    stress_picture = Place("stress.jpg")
    """Test images under each disturbance of the stress test."""
    errors = Place("errors")
    """The folder of pictures of where the model errs, with a list of them."""
    error_list = Place("errors/errors.csv")
    """What the pictures of errors show."""
    doubted = Place("doubted.csv")
    """Images whose label the models doubt most that did not train on it."""
    _split = Place("split.csv")
    _quarantine = Place("quarantine.csv")

    def _predictions(self, split: str) -> Path:
        return self.path / f"predictions-{split}.csv"

    def error_picture(self, sha256: str) -> Path:
        """The picture of one image, named by what the image's file holds."""
        return self.errors / f"{sha256[:16]}.jpg"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.config_file.exists()

    @property
    def began(self) -> float:
        """When the run was begun, in seconds since 1970: its config is written once."""
        return self.config_file.stat().st_mtime

    def saved_config(self) -> dict[str, dict[str, Any]]:
        """The config by section, as it was written."""
        return self._read(self.config_file, read_settings)

    def config(self) -> Config:
        """The config; a key that the run did not know yet has its default."""
        values = self.saved_config()
        try:
            return Config.from_dict(values)
        except UserError as error:
            raise Damaged(f"{self.config_file}: {error}") from None
        except (TypeError, AttributeError) as error:
            raise Damaged(f"{self.config_file}: is damaged, or of a newer skindist ({error}); update it") from None

    def split(self) -> list[Row]:
        """The images that are used; the position of a row is its sample id."""
        return self._read(self._split, read_split)

    def quarantine(self) -> list[tuple[str, str]]:
        """The images that were left out, and why."""
        return [(row["path"], row["reason"]) for row in self._read(self._quarantine, read_csv)]

    def metrics(self) -> list[Event]:
        """The events of the curves, in order: keys like "train/loss", "val/auroc", "epoch", "global_step"."""
        return self._read(self.record, record.read)

    def results(self) -> dict[str, Any]:
        """The final figures."""
        return self._read(self.results_file, read_results)

    def predictions(self, split: str) -> list[dict[str, str]]:
        """One row an image of "val" or "test": path, label, probability of malignant, and what the metadata say."""
        return self._read(self._predictions(split), read_csv)

    def doubted_labels(self) -> list[dict[str, str]]:
        """Of an ensemble: path, label and probability of images whose label is doubted, the most doubted first."""
        return self._read(self.doubted, read_csv)

    def newest_checkpoint(self) -> Path | None:
        """The folder of the newest checkpoint that is whole; None without any."""
        from skindist.run.checkpoint import newest_intact  # with torch, which takes seconds: a page is drawn without

        return newest_intact(self.checkpoints)

    def write_beginning(self, config: Config, rows: list[Row], quarantine: list[tuple[str, str]]) -> None:
        """Write what is fixed from the beginning; the config comes last and names no run folder, so that it repeats the
        run in a new one."""
        self.write_images(rows, quarantine)
        values = config.to_dict()
        self.write_settings(values | {"run": values["run"] | {"dir": None}})

    def write_settings(self, values: dict[str, dict[str, Any]]) -> None:
        """Write a config, or some sections of it."""
        write_atomic(self.config_file, yaml.safe_dump(values, sort_keys=False))

    def write_images(self, rows: list[Row], quarantine: list[tuple[str, str]]) -> None:
        """Write which images are used, and which were left out."""
        write_csv(self._quarantine, ("path", "reason"), quarantine)
        write_split(self._split, rows)

    def write_predictions(self, split: str, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
        """Write the predictions of a split."""
        write_csv(self._predictions(split), header, rows)

    def write_doubted(self, rows: list[tuple[str, str, str]]) -> None:
        """Write path, label and probability of images whose label is doubted."""
        write_csv(self.doubted, ("path", "label", "probability"), rows)

    def write_results(self, results: dict[str, Any]) -> None:
        """Write the final figures."""
        write_json(self.results_file, results)

    def _read(self, file: Path, read: Callable[[Path], T]) -> T:
        try:
            return read(file)
        except (FileNotFoundError, NotADirectoryError):
            remedy = "here: give the folder of a run"
            if self.exists:
                ended = self.results_file.exists()
                remedy = (
                    "here: it was removed, or only a training leaves one"
                    if ended
                    else "yet: let the run go on to its end"
                )
            raise UserError(f"{self.path}: no {file.name} {remedy}") from None
        except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
            raise Damaged(f"{file}: cannot be read ({type(error).__name__}: {error}); copy it again") from None


def read_results(file: Path) -> dict[str, Any]:
    """The final figures. Raises ValueError if there are none."""
    values: Any = json.loads(file.read_text())
    if not isinstance(values, dict):
        raise ValueError("it holds no figures")
    return values


def read_settings(file: Path) -> dict[str, dict[str, Any]]:
    """The sections of a config. Raises ValueError if there are none."""
    values: Any = yaml.safe_load(file.read_text())
    if not isinstance(values, dict) or not all(isinstance(section, dict) for section in values.values()):
        raise ValueError("it holds no sections")
    return values
