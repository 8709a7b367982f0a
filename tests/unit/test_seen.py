"""What a model has seen of other images: who of the patients, as far as the tables tell."""

from typing import Any

import pytest

from skindist.data.inspection import Facts
from skindist.data.prepare import Prepared
from skindist.data.split import Row
from skindist.inference.seen import baseline_images, of_the_same_people


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
    assert of_the_same_people(images("train", *trained), images("test", *tested, known="same"), {"same"}) == expected


def test_a_test_image_of_the_run_is_nobody_it_was_trained_on() -> None:
    there = images("test", {"patient_id": "p"})
    assert of_the_same_people(there, images("test", {"patient_id": "p"}), set()) is None


def test_no_baseline_is_judged_on_what_it_knows() -> None:
    data = images("train", {}, {})
    seen: dict[str, Any] = {"train": 0, "val": 3, "near_duplicates": None, "patients": 0}
    found = baseline_images(data, seen)
    assert not isinstance(found, str)
    assert found.labels.tolist() == [0, 1]
    assert baseline_images(data, seen | {"train": 1, "patients": 2}) == (
        "the baseline would be trained on the same images, or patients, as 3 of these"
    )
    assert "not at hand" in str(baseline_images(None, seen))
