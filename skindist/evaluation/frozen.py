"""What is fixed before a test image is seen: the calibration and the threshold, from validation images alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skindist.config import EvaluationConfig
from skindist.data.scan import CLASSES
from skindist.evaluation.calibration import Calibration, fit_calibration
from skindist.evaluation.known import Known
from skindist.evaluation.operating_point import Threshold, choose_threshold
from skindist.evaluation.predictions import Predictions


@dataclass(frozen=True)
class Frozen:
    """What is fixed before a test image is seen: how probabilities are calibrated, and from which on an image is called
    malignant."""

    calibration: Calibration
    threshold: Threshold

    def to_dict(self) -> dict[str, Any]:
        """What a saved model needs: calibrated probability = sigmoid(logit / temperature + bias), where the logit is
        that of the second class name minus that of the first."""
        return {
            "temperature": self.calibration.temperature,
            "bias": self.calibration.bias,
            "threshold": self.threshold.value,
            "target_sensitivity": self.threshold.target_sensitivity,
            "threshold_chosen": self.threshold.chosen,
            "threshold_note": self.threshold.note,
            "calibrated_on": self.calibration.fitted_on,
            "calibration_note": self.calibration.note,
            "class_names": list(CLASSES),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Frozen":
        """What `to_dict` gave; of the threshold's interval nothing is known then, and an older skindist gave neither
        notes nor a number of images. Raises KeyError for a missing value."""
        chosen, target, note = values["threshold_chosen"], values["target_sensitivity"], values.get("threshold_note")
        told = (values.get("calibrated_on", 0), values.get("calibration_note"))
        threshold = Threshold(values["threshold"], chosen, target, note=note)
        return cls(Calibration(values["temperature"], values["bias"], *told), threshold)


def freeze(validation: Predictions, known: Known, config: EvaluationConfig, seed: int) -> Frozen:
    """Fit the calibration and choose the threshold, on validation images alone."""
    calibration = fit_calibration(validation)
    calibrated = calibration.apply(validation)
    threshold = choose_threshold(calibrated.probabilities, calibrated.labels, config.sensitivity, seed, known.groups)
    return Frozen(calibration, threshold)
