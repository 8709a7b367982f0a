"""The model card: its figures are those of the run, in words that hold for this model."""

from collections.abc import Mapping
from typing import Any

import pytest

from skindist.config import Config
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.frozen import Frozen
from skindist.evaluation.operating_point import Threshold
from skindist.inference.predict import describe_frozen
from skindist.report.model_card import model_card
from tests.helpers.made_run import invented, made_run

Judged = tuple[Config, Mapping[str, Any]]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """The settings and the results of a run on 200 test images."""
    config, data = invented(200)
    return config, made_run(tmp_path_factory.mktemp("card") / "run", config, data).results()


@pytest.mark.parametrize(("value", "said"), [(0.0000123, "1.23e-05"), (0.9999876, "0.999988"), (0.25, "0.25")])
def test_a_threshold_near_an_end_is_told_from_it(judged: Judged, value: float, said: str) -> None:
    config, results = judged
    point = {**results["operating_point"], "threshold": value}
    card = model_card(config, {**results, "operating_point": point})
    assert f"The threshold is {said} of the calibrated probability, chosen on validation" in card
    frozen = Frozen(Calibration(2.0, 0.0), Threshold(value, "validation", 0.95))
    assert f"a calibrated probability of {said} on, chosen" in describe_frozen(frozen)


def test_the_card_of_an_ensemble_has_no_formula_of_one_logit(judged: Judged) -> None:
    single, ensemble = model_card(*judged), model_card(*judged, "2 x test_resnet")
    assert "logit / temperature + bias" in single
    assert "holds temperature, bias and threshold" in single
    assert "logit" not in ensemble
    assert '`config.json` holds the threshold under "skindist". Each member has a temperature' in ensemble
