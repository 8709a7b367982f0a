"""The shortcut baseline on traits drawn so that the answer is known."""

import numpy as np
import pytest

from skindist.data.inspection import Facts
from skindist.data.scan import ImageFile
from skindist.evaluation.intervals import Estimate
from skindist.evaluation.resampling import FEWEST
from skindist.evaluation.shortcut import Shortcut, shortcut_baseline


def draw(count: int, shift: float = 0.0, seed: int = 0, **given: object) -> list[ImageFile]:
    """Images of both classes in turn, alike but for file size: malignant files are larger by `shift` deviations."""
    rng = np.random.default_rng(seed)
    images = []
    for index in range(count):
        label = index % 2
        facts = Facts(
            reason="",
            sha256=f"{index:064x}",
            file_size=int(rng.normal(20_000 + 2_000 * shift * label, 2_000)),
            format="JPEG",
            width=256,
            height=256,
            colours=tuple(rng.normal(128, 20, 9)),
        )
        images.append(ImageFile(f"{index}.jpg", label, "", facts._replace(**given)))  # type: ignore[arg-type]
    return images


def alone(images: list[ImageFile]) -> list[str]:
    return [image.path for image in images]


def test_file_size_gives_the_label_away() -> None:
    images = draw(200, shift=10)
    found = shortcut_baseline(images, alone(images))
    assert found is not None
    assert found.auroc.value > 0.99
    assert found.auroc.n == 200
    assert found.auroc.low <= found.auroc.value <= found.auroc.high
    assert found.families["file"] > 0.99
    assert max(found.families["colour"], found.families["border"]) < 0.65
    assert found.verdict.endswith("here; most of it from file")


def test_each_family_sees_its_own_traits_alone() -> None:
    images = draw(120, width=300)
    facts = [image.facts for image in images]
    told = {
        "file": [fact._replace(format="PNG" if at % 2 else "JPEG") for at, fact in enumerate(facts)],
        "dimensions": [fact._replace(height=400 if at % 2 else 256) for at, fact in enumerate(facts)],
        "colour": [fact._replace(colours=(200.0 * (at % 2), *fact.colours[1:])) for at, fact in enumerate(facts)],
        "border": [fact._replace(colours=(*fact.colours[:8], 200.0 * (at % 2))) for at, fact in enumerate(facts)],
    }
    for family, changed in told.items():
        spoilt = [ImageFile(image.path, image.label, "", fact) for image, fact in zip(images, changed, strict=True)]
        found = shortcut_baseline(spoilt, alone(spoilt))
        assert found is not None
        assert found.auroc.value > 0.95
        assert max(found.families, key=lambda name: found.families[name]) == family
        assert found.families[family] > 0.99


def test_the_same_distribution_is_chance() -> None:
    scores = []
    for seed in range(5):
        images = draw(300, seed=seed)
        found = shortcut_baseline(images, alone(images))
        assert found is not None
        scores.append(found.auroc.value)
        assert found.families["dimensions"] == 0.5  # all equal: every pair of images is a tie
    assert np.mean(scores) == pytest.approx(0.5, abs=0.05)


def test_a_rare_class_does_not_rank_the_folds() -> None:
    """With nothing to see, models that know the share of malignant images would score below 0.5: it differs by fold."""
    facts = draw(1)[0].facts
    images = [ImageFile(f"{index}.jpg", int(index < 13), "", facts) for index in range(100)]
    found = shortcut_baseline(images, alone(images))
    assert found is not None
    assert (found.auroc.value, set(found.families.values())) == (0.5, {0.5})


def test_a_group_is_not_trained_on_and_judged() -> None:
    """20 patients with 10 images each, whose colour is the patient's: known patients would be recognised."""
    rng = np.random.default_rng(3)
    patient_colours = rng.normal(128, 40, (20, 9))
    images = []
    for index, image in enumerate(draw(200, seed=1)):
        patient = index // 10
        colours = tuple(patient_colours[patient] + rng.normal(0, 0.1, 9))
        images.append(ImageFile(image.path, patient % 2, "", image.facts._replace(colours=colours)))
    apart = shortcut_baseline(images, [str(index // 10) for index in range(200)])
    mixed = shortcut_baseline(images, alone(images))
    assert apart is not None
    assert mixed is not None
    assert mixed.auroc.value > 0.95
    assert apart.auroc.value < 0.85
    assert (mixed.auroc.interval, apart.auroc.interval) == ("wilson over resamples", "wilson over groups")
    assert apart.auroc.high - apart.auroc.low > 0.3, "20 patients say less than 200 images"


def test_too_few_groups_of_a_class_give_no_answer() -> None:
    images = draw(2 * FEWEST)
    assert shortcut_baseline(images, alone(images)) is not None
    assert shortcut_baseline(images[1:], alone(images[1:])) is None
    assert shortcut_baseline(images, ["one", "two", "three", *alone(images)[3:]]) is not None
    assert shortcut_baseline(images, ["one"] * 3 + alone(images)[3:]) is None
    assert shortcut_baseline([], []) is None


def test_the_same_seed_gives_the_same_answer() -> None:
    images = draw(60)
    assert shortcut_baseline(images, alone(images), 1) == shortcut_baseline(images, alone(images), 1)
    assert shortcut_baseline(images, alone(images), 1) != shortcut_baseline(images, alone(images), 2)


@pytest.mark.parametrize(
    ("value", "low", "high", "families", "said"),
    [
        (0.71, 0.69, 0.73, {"file": 0.55, "colour": 0.68}, "0.71 (0.69 to 0.73) here; most of it from colour"),
        (0.70, 0.65, 0.75, {"file": 0.58, "colour": 0.60}, "no family of traits alone explains most of it, colour is"),
        (0.53, 0.48, 0.58, {"file": 0.55, "colour": 0.50}, "0.53 (0.48 to 0.58) here: not above chance"),
        (0.40, 0.35, 0.45, {"file": 0.42, "colour": 0.45}, "0.40 (0.35 to 0.45) here: not above chance"),
    ],
)
def test_the_verdict(value: float, low: float, high: float, families: dict[str, float], said: str) -> None:
    verdict = Shortcut(Estimate(value, low, high, 100), families).verdict
    assert verdict.startswith("a model that never looks at the lesion scores AUROC 0.")
    assert said in verdict
