"""The judgement: what is frozen, what is called out, subgroups, and an answer to each set that allows none."""

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from skindist.config import EvaluationConfig
from skindist.data.inspection import Facts
from skindist.evaluation.beside_shortcut import BETTER, NOT_BETTER, UNTOLD, why_not_better
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.frozen import Frozen, freeze
from skindist.evaluation.intervals import Estimate
from skindist.evaluation.judgement import judge
from skindist.evaluation.known import Known, age_band, pool
from skindist.evaluation.operating_point import Threshold
from skindist.evaluation.predictions import Predictions
from skindist.files import finite

CONFIG = EvaluationConfig()
FACTS = Facts("", file_size=20_000, format="JPEG", width=256, height=256)
Part = tuple[Predictions, Known]


def draw(n: int, seed: int, skill: float = 2.0, planted: float = 0.0, share: float = 0.3) -> Part:
    """Images whose logits know the label by `skill`; malignant files are denser by `planted` deviations."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) < share * n).astype(np.int64)
    sizes = rng.normal(20_000 + 2_000 * planted * labels, 2_000).astype(int).tolist()
    facts = [FACTS._replace(file_size=size, colours=tuple(rng.normal(128, 20, 9))) for size in sizes]
    known = Known(labels, np.array([f"g{index}" for index in range(n)]), facts, [{} for _ in range(n)])
    return Predictions(np.arange(n), rng.normal(skill * labels - 1, 1), labels), known


AWAY = "the training images are not at hand"


def judged(val: Part, test: Part, train: Known | str, config: EvaluationConfig = CONFIG) -> dict[str, Any]:
    return judge(freeze(*val, config, 0), val, test, train, config, 0)


def with_metadata(part: Part, **columns: list[str]) -> Part:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return part[0], replace(part[1], metadata=rows)


def test_a_model_that_sees_the_lesion_is_better_than_the_shortcut() -> None:
    val, test, train = draw(150, 0), draw(300, 1), draw(600, 2)[1]
    seed = 2**63 + 1  # a run's seeds have 64 bits
    found = judge(freeze(*val, CONFIG, seed), val, test, train, CONFIG, seed)
    assert found["shortcut"]["verdict"] == BETTER
    assert found["shortcut"]["difference"]["low"] > 0
    assert found["shortcut"]["note"] is None
    assert "It is clearly better than the shortcut: a model that never looks" in found["verdict"]
    assert found["verdict"].count(". ") == 1
    assert found["verdict"].endswith(".")


def test_a_planted_shortcut_is_called_out_even_if_the_model_sees_the_lesion_too() -> None:
    found = judged(draw(150, 0, planted=10), draw(300, 1, planted=10), draw(600, 2, planted=10)[1])
    assert found["shortcut"]["auroc"]["value"] > 0.99
    assert max(found["shortcut"]["families"], key=found["shortcut"]["families"].get) == "file"
    assert found["shortcut"]["verdict"] == NOT_BETTER
    assert "not clearly better than the shortcut" in found["verdict"]


def test_a_model_that_knows_the_shortcut_alone_is_called_out() -> None:
    """Files are a little denser where malignant; the model's logit is the file size and noise."""
    (val, _), (test, known), (_, train) = (draw(300, seed, planted=1.5) for seed in range(3))
    size = np.array([facts.file_size for facts in known.facts])
    test = replace(test, logits=(size - size.mean()) / 2_000 + np.random.default_rng(5).normal(0, 0.2, 300))
    found = judged((val, draw(300, 0, planted=1.5)[1]), (test, known), train)
    assert found["test"]["auroc"]["low"] > 0.5
    assert found["shortcut"]["verdict"] == NOT_BETTER
    assert "may be chance" in found["shortcut"]["note"]


def test_a_model_that_knows_the_source_alone_is_called_out() -> None:
    """The archive is seen in no trait, but the table names it: four in five malignant images come from b."""
    rng = np.random.default_rng(0)

    def source(labels: NDArray[np.int64]) -> list[str]:
        from_b = rng.random(len(labels)) < np.where(labels == 1, 0.8, 0.2)
        return ["b" if each else "a" for each in from_b]

    parts = [draw(600, seed) for seed in range(3)]
    val, test, train = (with_metadata(part, source=source(part[1].labels)) for part in parts)
    from_b = np.array([row["source"] == "b" for row in test[1].metadata])
    blind = (replace(test[0], logits=2.0 * from_b + rng.normal(0, 0.1, 600)), test[1])
    found = judged(val, blind, train[1])
    assert found["test"]["auroc"]["low"] > 0.6
    assert found["shortcut"]["families"]["source"] > 0.7
    assert found["shortcut"]["verdict"] == NOT_BETTER
    for row in found["shortcut"]["within_source"]:
        assert row["auroc"]["low"] < 0.5 < row["auroc"]["high"]
    seeing = judged(val, test, train[1])
    assert seeing["shortcut"]["verdict"] == BETTER
    for row in seeing["shortcut"]["within_source"]:
        members = np.array([each["source"] == row["source"] for each in test[1].metadata])
        expected = roc_auc_score(test[0].labels[members], test[0].logits[members])
        assert row["auroc"]["value"] == pytest.approx(expected)
        assert (row["n"], row["malignant"]) == (members.sum(), test[0].labels[members].sum())


ABOVE = Estimate(0.85, 0.8, 0.9, 300)
GAIN = Estimate(0.2, 0.1, 0.3, 300)


@pytest.mark.parametrize(
    ("own", "gain", "within", "said"),
    [
        (ABOVE, GAIN, [], None),
        (replace(ABOVE, low=0.49), GAIN, [], "not surely above chance"),
        (Estimate(0.3, 0.2, 0.49, 300), GAIN, [], "surely below chance: labels may be swapped"),
        (ABOVE, replace(GAIN, low=-0.01), [], "may be chance"),
        (ABOVE, Estimate(-0.3, -0.4, -0.2, 300), [], "the shortcut is better, by 0.300 (0.200 to 0.400)"),
        (ABOVE, GAIN, [(0.55, 0.45, 0.65)], "among images of one source its AUROC is only 0.55"),
        (ABOVE, GAIN, [(0.60, 0.56, 0.64)], "is only 0.60"),  # surely above chance, but less than half of 0.35
        (ABOVE, GAIN, [(0.55, 0.45, 0.65), (0.85, 0.80, 0.90)], None),
        (ABOVE, GAIN, [(0.75, 0.40, 0.99)], None),  # too few images to say so
        (ABOVE, GAIN, [None], None),
    ],
)
def test_what_makes_a_model_not_clearly_better(own: Estimate, gain: Estimate, within: Any, said: str | None) -> None:
    rows = [
        {
            "source": "x",
            "n": 100,
            "malignant": 50,
            "auroc": ends and dict(zip(("value", "low", "high"), ends, strict=True)),
        }
        for ends in within
    ]
    found = why_not_better(own, Estimate(0.65, 0.6, 0.7, 300), gain, rows)
    assert (found is None) if said is None else (found and said in found)


def test_swapped_labels_are_told_of_in_two_whole_sentences() -> None:
    test, known = draw(300, 1)
    told = judged(draw(150, 0), (replace(test, logits=-test.logits), known), draw(600, 2)[1])["verdict"]
    assert told.endswith("labels may be swapped, or these images may be of another kind.")
    assert re.findall(r"[.?!](?= |$)", told) == [".", "."]


def test_threshold_and_temperature_do_not_depend_on_test() -> None:
    val = draw(150, 0)
    first, second = (judged(val, draw(200, seed), AWAY) for seed in (1, 2))
    for key in ("threshold", "threshold_interval", "validation", "note"):
        assert first["operating_point"][key] == second["operating_point"][key]
    assert first["calibration"]["temperature"] == second["calibration"]["temperature"]
    assert first["operating_point"]["test"] != second["operating_point"]["test"]


def test_the_threshold_is_of_the_calibrated_probability() -> None:
    val, test = draw(400, 0), draw(300, 1)
    val = (replace(val[0], logits=val[0].logits * 3), val[1])
    found = judged(val, test, AWAY)
    fitted, threshold = found["calibration"], found["operating_point"]["threshold"]
    assert fitted["temperature"] > 1.3
    assert abs(fitted["bias"]) > 0.1
    called = 1 / (1 + np.exp(-(test[0].logits / fitted["temperature"] + fitted["bias"]))) >= threshold
    hit = found["operating_point"]["test"]["sensitivity"]
    assert hit["value"] == pytest.approx(called[test[0].labels == 1].mean())
    assert found["test"]["loss"]["value"] == found["calibration"]["test"]["after"]["loss"]
    assert found["operating_point"]["validation"]["sensitivity"]["value"] == 0.95  # 114 of 120, and no more


def test_the_prevalence_moves_predictive_values_alone() -> None:
    val, test = draw(150, 0), draw(200, 1)
    own, rare = (judged(val, test, AWAY, EvaluationConfig(prevalence=p)) for p in (None, 0.01))
    assert rare["operating_point"]["prevalence"] == 0.01
    assert own["operating_point"]["prevalence"] is None
    for part in ("validation", "test"):
        assert rare["operating_point"][part]["ppv"]["value"] < own["operating_point"][part]["ppv"]["value"]
        assert rare["operating_point"][part]["sensitivity"] == own["operating_point"][part]["sensitivity"]
    assert rare["test"]["ppv"]["interval"] == "mover"


def test_known_groups_widen_what_is_said() -> None:
    val, test = draw(150, 0), draw(200, 1)
    pairs = (test[0], replace(test[1], groups=np.array([f"g{index // 2}" for index in range(200)])))
    found = judged(val, pairs, AWAY)
    assert {row["interval"] for row in found["operating_point"]["test"].values()} == {"wilson over groups"}
    assert found["operating_point"]["validation"]["ppv"]["interval"] == "wilson"


def test_known_groups_count_in_subgroups_and_where_the_threshold_is_chosen() -> None:
    """Each image three times, as one lesion."""
    val, test = (take(draw(120, seed), np.repeat(np.arange(120), 3)) for seed in (0, 1))
    alone = [(part[0], replace(part[1], groups=np.arange(360).astype(str))) for part in (val, test)]
    lesions, images = (freeze(*part, CONFIG, 0).threshold.interval for part in (val, alone[0]))
    assert lesions
    assert images
    assert lesions[1] - lesions[0] > images[1] - images[0]
    sexes = ["female", "male"] * 180
    for part, interval in ((test, "wilson over groups"), (alone[1], "wilson over resamples")):
        found = judged(val, with_metadata(part, sex=sexes), AWAY)["subgroups"]
        assert {row["auroc"]["interval"] for row in found} == {interval}


def take(part: Part, rows: NDArray[np.int64]) -> Part:
    """These images, some of them several times."""
    found, known = part
    predictions = Predictions(np.arange(len(rows)), found.logits[rows], found.labels[rows])
    facts, metadata = [known.facts[row] for row in rows], [known.metadata[row] for row in rows]
    return predictions, Known(known.labels[rows], known.groups[rows], facts, metadata)


def test_the_baseline_knows_the_most_frequent_sources_of_training() -> None:
    """Two clinics have nearly all images, and most labels. 60 others come before them in the alphabet."""
    parts = []
    for seed in (1, 2):
        part = draw(600, seed)
        clinics = [f"a{index}" if index % 10 == 0 else f"z{label}" for index, label in enumerate(part[1].labels)]
        parts.append(with_metadata(part, source=clinics))
    found = judged(draw(150, 0), parts[0], parts[1][1])
    assert found["shortcut"]["families"]["source"] > 0.9


def test_subgroups_have_their_own_figures_or_too_few_images() -> None:
    val, test = draw(150, 0), draw(300, 1)
    ages = ["25"] * 30 + ["70"] * 100 + ["82.0"] * 100 + [""] * 60 + ["-1"] * 10
    sexes = ["female", "male"] * 145 + ["na"] * 5 + ["other words"] * 3 + ["more words"] * 2
    test = with_metadata(test, age=ages, sex=sexes, patient_id=[f"p{index % 20}" for index in range(300)],
                         hospital=["north", "south"] * 150)  # fmt: skip
    found = judged(val, test, AWAY)
    rows = {(row["column"], row["value"]): row for row in found["subgroups"]}
    assert {column for column, _ in rows} == {"age", "sex"}, "ids and other columns are nobody's business"
    assert [value for column, value in rows if column == "age"] == ["0 to 29", "60 to 74", "75 or more", "unknown"]
    assert [value for column, value in rows if column == "sex"] == ["female", "male", "other", "unknown"]
    assert [rows["age", value]["n"] for value in ("0 to 29", "60 to 74", "unknown")] == [30, 100, 70]
    young = rows["age", "0 to 29"]
    assert (young["malignant"], young["auroc"], young["specificity"], young["note"]) == (30, None, None, "too few")
    assert young["sensitivity"]["n"] == 30
    women = rows["sex", "female"]
    members = np.array([sex == "female" for sex in sexes])
    assert women["auroc"]["value"] == pytest.approx(roc_auc_score(test[0].labels[members], test[0].logits[members]))
    assert (women["note"], women["specificity"]["interval"]) == (None, "wilson")
    assert rows["sex", "other"]["note"] == "too few"


def test_image_size_is_a_subgroup_where_there_are_few() -> None:
    val, (test, known) = draw(150, 0), draw(300, 1)
    facts = [each._replace(width=300 if index % 2 else 256) for index, each in enumerate(known.facts)]
    found = judged(val, (test, replace(known, facts=facts)), AWAY)
    assert [(row["column"], row["value"], row["n"]) for row in found["subgroups"]] == [
        ("image size", "256 x 256", 150), ("image size", "300 x 256", 150),
    ]  # fmt: skip
    assert [row["source"] for row in found["shortcut"]["within_source"]] == ["256 x 256", "300 x 256"]


@pytest.mark.parametrize(
    ("age", "band"),
    [("0", "0 to 29"), ("29.9", "0 to 29"), ("30", "30 to 44"), ("74", "60 to 74"), ("75", "75 or more"),
     ("90+", "75 or more"), ("", ""), ("60-69", "60-69"), ("-1", ""), ("999", ""), ("nan", "")],
)  # fmt: skip
def test_age_bands(age: str, band: str) -> None:
    assert age_band(age) == band


def test_what_is_rare_names_nobody() -> None:
    values = ["face"] * 5 + ["a patient's name"] * 4 + [""]
    assert pool([*values, "another's"]).tolist() == ["face"] * 5 + ["other"] * 4 + ["unknown", "other"]
    assert pool(values).tolist() == ["face"] * 5 + ["unknown"] * 5, "four others might point to somebody, too"
    assert pool(["Male", "male", "male", "MALE", "male"]).tolist() == ["male"] * 5
    assert pool(["Other"] * 5 + ["rare"] + ["face"] * 5).tolist() == ["other"] * 6 + ["face"] * 5
    assert len(set(pool([str(index // 5) for index in range(200)]).tolist())) == 13


def test_a_frozen_model_judges_elsewhere() -> None:
    """From what is saved with the model, with no validation and no training image at hand."""
    val, test = draw(150, 0), draw(200, 1)
    frozen = freeze(*val, CONFIG, 0)
    again = Frozen.from_dict(json.loads(json.dumps(frozen.to_dict())))
    here, there = judged(val, test, AWAY), judge(again, None, test, AWAY, CONFIG, 0)
    assert there["test"] == here["test"]
    assert there["operating_point"]["test"] == here["operating_point"]["test"]
    assert there["operating_point"]["validation"] is None
    assert "val" not in there
    assert there["shortcut"]["verdict"] == UNTOLD
    assert there["verdict"].endswith(f"cannot be told: {AWAY}.")
    assert frozen.to_dict()["class_names"] == ["benign", "malignant"]


def one_class(part: Part, label: int) -> Part:
    return cut(part, np.flatnonzero(part[0].labels == label))


def cut(part: Part, at: NDArray[np.int64]) -> Part:
    predictions, known = part
    facts, metadata = [known.facts[index] for index in at], [known.metadata[index] for index in at]
    return (
        Predictions(predictions.ids[at], predictions.logits[at], predictions.labels[at]),
        Known(known.labels[at], known.groups[at], facts, metadata),
    )


WHOLE = draw(150, 0)
FIVE = cut(draw(5, 3, share=0.5), np.arange(5))


@pytest.mark.parametrize(
    ("val", "test", "said"),
    [
        (one_class(WHOLE, 0), WHOLE, "no validation image is malignant"),
        (one_class(WHOLE, 1), WHOLE, "no validation image is benign"),
        (cut(WHOLE, np.arange(0)), WHOLE, "no validation image is malignant"),
        (WHOLE, one_class(WHOLE, 0), "all of one class"),
        (WHOLE, one_class(WHOLE, 1), "all of one class"),
        (WHOLE, cut(WHOLE, np.arange(1)), "The test set holds 1 image, all of one class, so"),
        (WHOLE, FIVE, "cannot be told: the baseline takes 10 groups of each class"),
        (FIVE, FIVE, "none may be missed"),
    ],
    ids=["no malignant val", "no benign val", "no val", "benign test", "malignant test", "1 test", "5 test", "5 and 5"],
)
def test_sets_that_allow_no_answer_get_one_all_the_same(val: Part, test: Part, said: str) -> None:
    found = finite(judged(val, test, draw(100, 2)[1]))
    text = json.dumps(found, allow_nan=False)
    assert said in text
    assert isinstance(found["verdict"], str)
    assert isinstance(found["operating_point"]["threshold"], float)


def test_a_model_that_says_the_same_of_all_is_judged() -> None:
    test = draw(100, 0)
    found = judged(test, (replace(test[0], logits=np.zeros(100)), test[1]), draw(100, 2)[1])
    assert found["test"]["auroc"]["value"] == 0.5
    assert found["shortcut"]["verdict"] == NOT_BETTER
    assert "not surely above chance" in found["verdict"]


def test_no_image_at_all_is_no_mistake() -> None:
    nothing = cut(WHOLE, np.arange(0))
    found = judged(WHOLE, nothing, WHOLE[1])
    assert math.isnan(found["test"]["accuracy"]["value"])
    json.dumps(finite(found), allow_nan=False)


def test_figures_follow_from_logits() -> None:
    p = np.array([0.1, 0.6, 0.2, 0.3, 0.9])
    assert Predictions(np.arange(5), logit(p), np.zeros(5, np.int64)).probabilities == pytest.approx(p)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"^logits must be finite: that of image 7 is not$"):
        Predictions(np.array([5, 7]), np.array([0.5, bad]), np.array([0, 1]))


def test_what_is_pooled_is_no_source() -> None:
    """A model that knows nothing but the source: among images of "other" sources it still tells them apart."""
    ends = {"x": 0.5, "other": 0.8, "unknown": 0.8}
    rows = [
        {"source": name, "n": 100, "malignant": 50, "auroc": {"value": value, "low": value - 0.1, "high": value + 0.1}}
        for name, value in ends.items()
    ]
    found = why_not_better(ABOVE, Estimate(0.65, 0.6, 0.7, 300), GAIN, rows)
    assert found
    assert "is only 0.50" in found


def test_what_was_fixed_is_remembered_with_its_notes() -> None:
    fixed = Frozen(Calibration(1.7, 0.0, 150, "a note"), Threshold(0.3, "validation", 0.975, None, "another"))
    again = Frozen.from_dict(json.loads(json.dumps(fixed.to_dict())))
    assert again == fixed
    older = {key: value for key, value in fixed.to_dict().items() if not key.startswith("calibrat")}
    del older["threshold_note"]
    assert Frozen.from_dict(older) == Frozen(Calibration(1.7), Threshold(0.3, "validation", 0.975))


def test_a_target_is_said_as_it_was_given() -> None:
    val, test = draw(150, 0), draw(200, 1)
    config = replace(CONFIG, sensitivity=0.975)
    assert (
        "for a sensitivity of 97.5% it finds" in judge(freeze(*val, config, 0), val, test, AWAY, config, 0)["verdict"]
    )
