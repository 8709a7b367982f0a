"""What a model has seen of other images: who of the patients, as far as the tables tell."""

import logging
from pathlib import Path

import numpy as np
import pytest

from skindist.data.demo import draw_lesion
from skindist.data.inspection import Facts
from skindist.data.prepare import Prepared
from skindist.data.scan import CLASSES, Scan
from skindist.data.split import Row
from skindist.data.survey import look_into
from skindist.inference.seen import baseline_images, of_the_same_people, seen_in_training, training_data
from skindist.recipe import DataConfig
from skindist.run.folder import Run
from tests.helpers.made_run import made_run, prepared


def images(split: str, *ids: dict[str, str], known: str = "") -> Prepared:
    """An image of each table row, of which the first has bytes that are known."""
    rows = [Row(f"{split}-{at}", at % 2, split, f"{split}-{at}", known if at == 0 else f"{split}-{at}")
            for at in range(len(ids))]  # fmt: skip
    return Prepared(rows, [Facts("")] * len(ids), metadata={f"{split}-{at}": row for at, row in enumerate(ids)})


@pytest.mark.parametrize(
    ("trained", "tested", "expected"),
    [
        ([{"patient_id": "p1"}, {"patient_id": "p2"}], [{"patient_id": "p1"}, {"patient_id": "p2"}, {}], 1),
        ([{"lesion_id": "p1"}, {"patient_id": "p3"}], [{"patient_id": "p9"}, {"patient_id": "p1"}], 0),
        ([{"patient_id": "p1"}], [{"lesion_id": "p1"}, {"lesion_id": "p1"}], None),
        ([{"patient_id": "unknown"}], [{"patient_id": "unknown"}, {"patient_id": "unknown"}], None),
        ([{"lesion_id": "l"}], [{}, {"lesion_id": "l", "patient_id": "p"}, {"lesion_id": " l "}], 2),
    ],
    ids=["one", "another column", "no common column", "nobody", "lesions"],
)
def test_other_images_of_the_same_people(
    trained: list[dict[str, str]], tested: list[dict[str, str]], expected: int | None
) -> None:
    """The first tested image has the bytes of a training image, and is counted as such."""
    data = images("test", *tested, known="same")
    assert of_the_same_people(images("train", *trained), data, {"same"})[0] == expected


def test_a_test_image_of_the_run_is_nobody_it_was_trained_on() -> None:
    there = images("test", {"patient_id": "p"})
    assert of_the_same_people(there, images("test", {"patient_id": "p"}), set()) == (None, set())


def test_no_baseline_is_judged_on_what_it_learnt_from() -> None:
    trained = images("train", {"patient_id": "p"}, {"patient_id": "q"}, {"patient_id": "p", "lesion_id": "l"}, {})
    _, met = of_the_same_people(trained, images("test", {"patient_id": "q"}, {"lesion_id": "l"}), set())
    assert met == {"train-1", "train-2"}
    found = baseline_images(trained, met)
    assert not isinstance(found, str)
    assert found.groups.tolist() == ["train-0", "train-3"]
    assert "not at hand" in str(baseline_images(None, met))


def test_a_run_that_does_not_name_its_images_says_nothing_of_them(tmp_path: Path) -> None:
    """A run that was shared without its tables is no reason to lose the predictions of another set."""
    (tmp_path / "config.yaml").write_text("data: {}\n")
    found, met = seen_in_training(training_data(Run(tmp_path)), DataConfig(), images("test", {}))
    assert (found["train"], met) == (None, set())
    assert found["note"].startswith("not known whether")


def test_the_table_of_the_training_images_is_read_without_a_word(
    demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Numbers of the training images would be taken for those of the images that are tested."""
    run = made_run(tmp_path / "run", *prepared(demo, tmp_path / "table.csv"))
    caplog.clear()
    with caplog.at_level(logging.INFO, "skindist"):
        trained = training_data(run)
    assert trained
    assert trained.data
    assert len(trained.data.metadata) == len(trained.rows)
    assert "metadata:" not in caplog.text


def test_the_folder_of_the_training_images_is_looked_through_once(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hold a million files, on a disk that is far away."""
    run = made_run(tmp_path / "run", *prepared(demo, tmp_path / "table.csv"))
    looked: list[str | None] = []

    def look(config: DataConfig) -> Scan:
        looked.append(config.path)
        return look_into(config)

    for module in ("data.prepare", "inference.seen"):
        monkeypatch.setattr(f"skindist.{module}.look_into", look)
    trained, tested = training_data(run), tmp_path / "tested"
    (tested / "benign").mkdir(parents=True)
    (tested / "malignant").mkdir()
    for number, name in enumerate(CLASSES):
        draw_lesion(np.random.default_rng(number), bool(number), 64).save(tested / name / "1.png")
    found, _ = seen_in_training(trained, DataConfig(path=str(tested)), images("test", {}))
    assert found["near_duplicates"] == 0
    assert looked == [str(demo), str(tested)]
