"""The model card: what a saved model is, what it was measured to be worth, what it is not for.

It begins with the header that the Hugging Face Hub reads, and follows CLEAR Derm (Daneshjou et al., "Checklist for
evaluation of image-based artificial intelligence reports in dermatology", JAMA Dermatology 158, 2022). It names no
patient, path or file.
"""

from collections.abc import Mapping
from typing import Any

import yaml
from timm.models import get_pretrained_cfg

from skindist.config import Config
from skindist.evaluation.metrics import METRICS
from skindist.report.words import describe_figure, figure_text, origin_of_threshold, prevalence_in_words

UNKNOWN = "not provided"
DESCRIBED = {"age": "Age", "sex": "Sex", "skin_tone": "Skin tone", "site": "Body site"}  # columns of the metadata
POINT = ("sensitivity", "specificity", "ppv", "npv")
CLEAR_DERM = (
    "Where and when the images were taken",
    "Cameras, light and dermoscopy",
    "How the diagnoses were made (histopathology, follow-up, experts)",
    "Who was left out, and why",
    "Diagnoses within benign and malignant",
    "Test on images of another clinic",
    "Comparison with dermatologists",
    "Consent and ethics approval",
)

USE = """## Use

With timm, from pixels to the decision (`model` is this folder):

```python
import json
import timm
import torch
from PIL import Image, ImageOps

model = timm.create_model("local-dir:model", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
upright = ImageOps.exif_transpose(Image.open("lesion.jpg")).convert("RGB")
with torch.inference_mode():
    benign, malignant = model(transform(upright)[None])[0]
with open("model/config.json") as file:
    fixed = json.load(file)["skindist"]
probability = torch.sigmoid((malignant - benign) / fixed["temperature"] + fixed["bias"]).item()
decision = probability >= fixed["threshold"]
```

With transformers, `pipeline("image-classification", model="model")` gives the same probabilities before calibration. To
calibrate one of malignant, take logit = log(p / (1 - p)). skindist does all of this: `skindist export` writes it as one
ONNX file."""
ENSEMBLE_USE = """## Use

The probability is the mean of the calibrated probabilities of all members. `skindist predict` and `skindist evaluate`
take this folder like a single model; `skindist export` writes it as one ONNX file. Each `member-N` folder is a model of
its own, which timm and transformers load."""
OF_LOGIT = """`config.json` holds temperature, bias and threshold under "skindist". The logit is that of malignant minus
that of benign; calibrated probability = 1 / (1 + exp(-(logit / temperature + bias)))."""
OF_MEMBERS = """`config.json` holds the threshold under "skindist". Each member has a temperature and a bias of its own,
in the `config.json` of its folder."""


def model_card(config: Config, results: Mapping[str, Any], ensemble: str | None = None) -> str:
    """The card of a run's model, or of an ensemble, which is called so, from its results."""
    test, point, images = results["test"], results["operating_point"], results["images"]
    figures = "\n".join(_line(name, test[name]) for name in METRICS)
    at_threshold = "\n".join(_line(name, point["test"][name]) for name in POINT)
    counts = "\n".join(f"| {split} | {n['benign']} | {n['malignant']} |" for split, n in images.items())
    return f"""---
{yaml.safe_dump(header(config, results, ensemble), sort_keys=False).strip()}
---
# {ensemble or config.model.name}: benign or malignant skin lesion

{results["verdict"]}

## Intended use

Research on pictures of single skin lesions. This is not a medical device, and it must not decide on a patient. It gives
the probability that a picture of a skin lesion shows a malignant one, at {config.data.image_size} x
{config.data.image_size} pixels. It was trained with skindist {results["versions"]["skindist"]}.

## Limits

The figures hold for images like those of the test set. Another camera, clinic or population may give others. Measure it
on your own images before you believe it there. It knows no other classes than benign and malignant. It gives a
probability for any picture, also for one that shows no lesion.

## Operating point

The threshold is {figure_text(point["threshold"], "threshold")} of the calibrated probability, {_origin(point)}.
PPV and NPV are at {prevalence_in_words(point)}.

| test, at this threshold | value | 95 % interval | images | interval by |
| --- | --- | --- | --- | --- |
{at_threshold}

## Figures

At a threshold of {test["threshold"]}.

| test | value | 95 % interval | images | interval by |
| --- | --- | --- | --- | --- |
{figures}

## Calibration

{_calibration(results["calibration"])}
{OF_MEMBERS if ensemble else OF_LOGIT}

## Shortcut

{_shortcut(results["shortcut"])}

## Data

| images | benign | malignant |
| --- | --- | --- |
{counts}

Copies, near-duplicates, and images of one lesion or patient where a table named these, lie on one side of a split that
skindist draws. A split that was given is kept as it was.

## CLEAR Derm

| item | answer |
| --- | --- |
{_clear_derm(results["subgroups"])}

{ENSEMBLE_USE if ensemble else _use(config.evaluation.views)}"""


def _use(views: int) -> str:
    """How to use a single model elsewhere."""
    if views == 1:
        return USE
    return (
        f"{USE} timm and transformers see a picture in one position. The figures above are of {views} (turned and\n"
        "mirrored; the mean of their logits), so their probabilities differ a little. What skindist exports sees all."
    )


def header(config: Config, results: Mapping[str, Any], ensemble: str | None = None) -> dict[str, Any]:
    """The card's metadata as the Hub reads it, with the test figures as a model-index. The cards of an ensemble's
    members say what they are based on."""
    names = [name for name in METRICS if results["test"][name]["value"] is not None]
    metrics = [
        {"type": name, "name": METRICS[name].title, "value": round(results["test"][name]["value"], 4)} for name in names
    ]
    task = {"type": "image-classification", "name": "Image classification"}
    data = {"name": "benign or malignant skin lesions (held out)", "type": "imagefolder", "split": "test"}
    of_timm = config.model.pretrained and not config.model.weights and ensemble is None
    pretrained_cfg = get_pretrained_cfg(config.model.name) if of_timm else None
    name = ensemble or config.model.name
    return {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "transformers", "skin-lesion", "dermatology", "skindist"],
        **({"base_model": pretrained_cfg.hf_hub_id} if pretrained_cfg and pretrained_cfg.hf_hub_id else {}),
        "model-index": [{"name": name, "results": [{"task": task, "dataset": data, "metrics": metrics}]}],
    }


def _line(name: str, figure: Mapping[str, Any]) -> str:
    value, low, high = (METRICS[name].text(figure[part]) for part in ("value", "low", "high"))
    return f"| {METRICS[name].title} | {value} | {low} to {high} | {figure['n']} | {figure['interval']} |"


def _origin(point: Mapping[str, Any]) -> str:
    if point["chosen"] == "fixed":
        return origin_of_threshold(point)
    note = f" ({point['note']})" if point["note"] else ""
    said = f"{origin_of_threshold(point)}{note}"
    if not point["threshold_interval"]:
        return said
    low, high = (figure_text(end, "threshold") for end in point["threshold_interval"])
    return f"{said}; 95 % interval {low} to {high}"


def _calibration(found: Mapping[str, Any]) -> str:
    if found["note"]:
        return f"The probabilities are {found['note']}."
    before, after = (found["test"][stage]["ece"] for stage in ("before", "after"))
    return (
        f"The temperature is {found['temperature']:.3f} and the bias {found['bias']:.3f}, fitted on "
        f"{found['fitted_on']} validation images. On test the expected calibration error was {before:.3f} without them "
        f"and is {after:.3f} with them."
    )


def _shortcut(found: Mapping[str, Any]) -> str:
    if not found["auroc"]:
        return f"Whether the model is better than a shortcut cannot be told: {found['note']}."
    gain, traits = found["difference"], ", ".join(found["families"])
    return (
        f"The model is {found['verdict']}. A baseline that sees no lesion ({traits} alone) has "
        f"{describe_figure('auroc', found['auroc'])} on the same test images. The model's AUROC minus the "
        f"baseline's is {gain['value']:.3f} ({gain['low']:.3f} to {gain['high']:.3f})."
    )


def _clear_derm(subgroups: list[dict[str, Any]]) -> str:
    """What the run knows of the test images, and what it does not."""
    rows = []
    for column, title in DESCRIBED.items():
        values = [f"{row['value']} {row['n']}" for row in subgroups if row["column"] == column]
        rows.append(f"| {title} (test images) | {', '.join(values).replace('|', '/') or UNKNOWN} |")
    return "\n".join(rows + [f"| {item} | {UNKNOWN} |" for item in CLEAR_DERM])
