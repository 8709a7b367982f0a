"""The model card: what a saved model is, what it was measured to be worth, what it is not for."""

from typing import Any

from skindist.config import Config
from skindist.evaluation.metrics import METRICS


def model_card(config: Config, results: dict[str, Any]) -> str:
    """A short model card: what it is, what it was measured to be worth, what it is not for."""
    test, threshold = results["test"], results["operating_point"]["threshold"]
    lines = "\n".join(
        f"| {metric.title} | {number(test[name]['value'])} "
        f"| {number(test[name]['low'])} to {number(test[name]['high'])} | {test[name]['n']} |"
        for name, metric in METRICS.items()
        if name != "loss"
    )
    return f"""---
library_name: timm
pipeline_tag: image-classification
---
# {config.model.name}: benign or malignant skin lesion

A research model, not a medical device. It gives the probability that a picture of a skin lesion shows a malignant one,
at {config.data.image_size} x {config.data.image_size} pixels; trained with skindist {results["versions"]["skindist"]}
on {results["images"]["train"]["benign"]} benign and {results["images"]["train"]["malignant"]} malignant images.

| test | value | 95 % interval | images |
| --- | --- | --- | --- |
{lines}

Malignant means a probability of {threshold} or more. The figures hold for images like those of the test set; another
camera, clinic or population may give others.

```python
model = timm.create_model("local-dir:model", pretrained=True)
```
"""


def number(value: float | None) -> str:
    """A figure as the card shows it."""
    return "undefined" if value is None else f"{value:.3f}"
