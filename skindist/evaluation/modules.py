"""The metrics as `evaluate` modules, apart from the table because `evaluate` takes seconds to import.

Nothing is downloaded, and with `keep_in_memory=True` nothing is written, so any number of processes can compute at
once.
"""

from typing import Any

import datasets
import evaluate
from numpy.typing import ArrayLike

from skindist.evaluation.metrics import DEFAULT_THRESHOLD, METRICS, check


class BinaryMetric(evaluate.Metric):  # type: ignore[misc]
    """One of METRICS as an `evaluate` module: `BinaryMetric("auroc", keep_in_memory=True)`.

    Predictions are probabilities of malignant, references are labels; the result is `{"auroc": value}`. `compute` takes
    a `threshold` and a `prevalence` too. Raises KeyError for a name that METRICS lacks and, when computing, ValueError
    as `check` does.
    """

    def _info(self) -> evaluate.EvaluationModuleInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
        return evaluate.EvaluationModuleInfo(
            description=METRICS[self.config_name].title,
            citation="",
            inputs_description="predictions: probabilities of malignant; references: 0 (benign) or 1 (malignant).",
            features=datasets.Features(features),
        )

    def _build_data_dir(self) -> str:
        # evaluate makes its cache folder even for a metric that is kept in memory
        return "" if self.keep_in_memory else str(super()._build_data_dir())

    def _compute(
        self,
        *,
        predictions: ArrayLike,
        references: ArrayLike,
        threshold: float = DEFAULT_THRESHOLD,
        prevalence: float | None = None,
        **_: Any,
    ) -> dict[str, float]:
        given = check(predictions, references, prevalence)
        return {self.config_name: METRICS[self.config_name](*given, threshold, prevalence)}


def compute(
    probabilities: ArrayLike,
    labels: ArrayLike,
    threshold: float = DEFAULT_THRESHOLD,
    prevalence: float | None = None,
) -> dict[str, float]:
    """Every metric of METRICS by name, through `evaluate`; PPV and NPV at a prevalence, or at the set's own.

    Raises ValueError as `check` does.
    """
    p, y = check(probabilities, labels, prevalence)  # first, for evaluate would cut a label of 0.5 to 0
    metrics = evaluate.combine({name: BinaryMetric(name, keep_in_memory=True) for name in METRICS})
    return dict(metrics.compute(predictions=p, references=y, threshold=threshold, prevalence=prevalence))
