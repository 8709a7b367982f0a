"""How images differ from those of training, against hand-computed expectations."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from skindist.data.inspection import Facts
from skindist.evaluation.differences import TrainingSet, differences, summarize
from skindist.evaluation.known import Known

Image = tuple[int, Facts]


def image(label: int, side: int = 100, red: float = 150.0) -> Image:
    return label, Facts("", width=side, height=side, colours=(red, 100.0, 90.0, *[10.0] * 6))


def known(images: list[Image]) -> Known:
    labels, facts = zip(*images, strict=True)
    return Known(np.array(labels), np.arange(len(labels)).astype(np.str_), facts, [{}] * len(labels))


def summary(images: list[Image]) -> TrainingSet:
    return summarize(known(images))


def compare(trained_on: TrainingSet, images: list[Image]) -> dict[str, Any]:
    return differences(trained_on, known(images))


def test_a_summary_is_counts_and_quantiles() -> None:
    found = summary([image(label=number < 5, red=float(number)) for number in range(21)])
    assert (found.benign, found.malignant) == (16, 5)
    assert found.traits["red"] == [1.0, 10.0, 19.0]  # of 0 to 20
    assert found.traits["width"] == [100, 100, 100]


def test_like_images_do_not_differ() -> None:
    images = [image(label=number < 5, red=float(number)) for number in range(21)]
    found = compare(summary(images), images)
    assert not found["malignant_share"]["differs"]
    assert [trait["outside"] for trait in found["traits"]] == [0, 0, pytest.approx(2 / 21), 0, 0]
    assert found["note"] == "size, mean colour and malignant share are like those of the training images"


def test_other_sizes_colours_and_shares_are_said() -> None:
    trained_on = TrainingSet(80, 20, summary([image(0)] * 10).traits)
    sides, reds = [200] * 31 + [100] * 69, [140.0] * 30 + [150.0] * 70
    there = [image(number % 2, side, red) for number, (side, red) in enumerate(zip(sides, reds, strict=True))]
    found = compare(trained_on, there)
    traits = {trait["name"]: trait for trait in found["traits"]}
    assert traits["width"]["outside"] == 0.31
    assert traits["width"]["differs"]
    assert traits["red"]["outside"] == 0.30
    assert not traits["red"]["differs"]
    assert found["malignant_share"]["differs"]
    assert found["note"] == (
        "these images differ from those of training: 31% in width (nine in ten training images: 100 pixels), 31% in "
        "height (100 pixels), 50% are malignant, in training 20%"
    )


def test_a_small_or_uncertain_change_of_the_malignant_share_is_none() -> None:
    traits = summary([image(0)]).traits
    near = compare(TrainingSet(54, 46, traits), [image(number % 2) for number in range(10_000)])
    assert not near["malignant_share"]["differs"]  # 4 points, however sure
    few = compare(TrainingSet(70, 30, traits), [image(number % 2) for number in range(10)])
    assert not few["malignant_share"]["differs"]  # 24 to 76 %


def test_a_malignant_share_of_a_few_patients_is_uncertain() -> None:
    """400 images, 40 % malignant where 25 % were: sure if each stands alone, but not of 20 patients with 20 each."""
    there = known([image(int(number < 160)) for number in range(400)])
    trained_on = TrainingSet(75, 25, summary([image(0)]).traits)
    assert differences(trained_on, there)["malignant_share"]["differs"]
    patients = replace(there, groups=np.array([str(number // 20) for number in range(400)]))
    assert not differences(trained_on, patients)["malignant_share"]["differs"]


def test_a_rare_class_that_is_rarer_here_is_said() -> None:
    """5 % and 0.4 %: of ten images that are called malignant, one was, and now it is one of a hundred."""
    traits = summary([image(0)]).traits
    found = compare(TrainingSet(950, 50, traits), [image(int(number < 8)) for number in range(2000)])
    assert found["malignant_share"]["differs"]
    assert found["note"].endswith("0.4% are malignant, in training 5.0%")
    none = compare(TrainingSet(950, 50, traits), [image(0)] * 2000)
    assert none["malignant_share"]["differs"]


def test_a_summary_is_plain_data() -> None:
    assert asdict(summary([image(1)]))["traits"]["blue"] == [90.0] * 3
