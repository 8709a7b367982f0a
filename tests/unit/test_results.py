"""What a finished run writes of each image."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from skindist.evaluation.calibration import Calibration
from skindist.evaluation.predictions import Predictions
from skindist.prediction.outcome import prediction_rows


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
