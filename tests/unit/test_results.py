"""What a finished run writes of each image."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from skindist.data.split import Row
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.frozen import Frozen
from skindist.evaluation.known import Known
from skindist.evaluation.operating_point import Threshold
from skindist.evaluation.predictions import Predictions
from skindist.evaluation.stress import stress_of
from skindist.prediction.outcome import prediction_rows, tell_leaks


def test_columns_of_a_table_do_not_take_the_place_of_ours() -> None:
    """A table with the labels 1 (benign) and 0 (malignant) in a column "label": the file is read by column name."""
    images = [SimpleNamespace(path="a.jpg"), SimpleNamespace(path="b.jpg")]
    table = {"a.jpg": {"label": "1", "age": "50"}, "b.jpg": {"label": "0", "age": "60"}}
    data: Any = SimpleNamespace(rows=images, metadata=table)
    found = Predictions(np.array([0, 1]), np.array([0.0, 2.0]), np.array([0, 1]))
    header, rows = prediction_rows(found, Calibration(), data)
    assert header == ("path", "label", "probability", "logit", "table_label", "age")
    assert [(row[0], row[1], *row[4:]) for row in rows] == [
        ("a.jpg", "benign", "1", "50"),
        ("b.jpg", "malignant", "0", "60"),
    ]


def test_no_two_columns_have_one_name() -> None:
    """The predictions of a run with such a table are themselves the table of the next."""
    data: Any = SimpleNamespace(
        rows=[SimpleNamespace(path="a.jpg")], metadata={"a.jpg": {"label": "1", "table_label": "0", "logit": "2"}}
    )
    header, _ = prediction_rows(Predictions(np.array([0]), np.array([0.0]), np.array([0])), Calibration(), data)
    assert header == ("path", "label", "probability", "logit", "table_label", "table_table_label", "table_logit")


def test_a_leak_is_in_the_verdict() -> None:
    rows = [Row(str(at), 0, split, group, "") for at, (split, group) in enumerate([("train", "a"), ("val", "b"),
            ("test", "a"), ("test", "b"), ("test", "c")])]  # fmt: skip
    told: dict[str, Any] = {"verdict": "Good."}
    tell_leaks(told, rows)
    assert told["leaks"] == {"train": 1, "val": 1}
    assert told["verdict"] == (
        "Good. Of the 3 test images some belong together with others (copies, one lesion or one patient), 1 with a "
        "training image and 1 with a validation image: the figures flatter."
    )
    tell_leaks(clean := {"verdict": "Good."}, [row for row in rows if row.group != "a" and row.split != "val"])
    assert clean["verdict"] == "Good."


def test_the_stress_test_is_of_calibrated_probabilities_and_counts_groups() -> None:
    """A bias of 2 makes malignant of a logit of -1, and not of -3."""
    labels, logits = np.array([0, 0, 1, 1] * 5), np.array([-3.0, -1.0, -1.0, 1.0] * 5)
    plain = Predictions(np.arange(20), logits, labels)
    blurred = Predictions(np.arange(20), logits - 2, labels)
    known = Known(labels, np.repeat(np.arange(5), 4).astype(str), [], [])
    (row,) = stress_of(Frozen(Calibration(1.0, 2.0), Threshold(0.5, "fixed", 0.95)), plain, {"blur": blurred}, known, 0)
    assert (row["flipped"], row["sensitivity"], row["specificity"]) == (0.5, 0.5, 1.0)
    assert row["change"]["interval"] == "group bootstrap"
