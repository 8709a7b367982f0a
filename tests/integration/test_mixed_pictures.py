"""Sixty files of all formats, modes and sizes: a row each, and other programs say the same of all that can be read."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import ExifTags, Image, ImageOps
from safetensors.torch import load_file, save_file

from skindist.cli import main
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.differences import UNITS, TrainingSet
from skindist.evaluation.frozen import Frozen
from skindist.evaluation.operating_point import Threshold
from skindist.inference.export import drawn
from skindist.inference.saved_model import save_model

SIZE = 64
FROZEN = Frozen(Calibration(1.5, -0.25), Threshold(0.81, "validation", 0.95))  # no probability is near it
KINDS = [
    ("jpg", "RGB"), ("jpg", "L"), ("jpg", "CMYK"), ("jpg", "turned 3"), ("jpg", "turned 6"), ("jpg", "turned 8"),
    ("png", "RGB"), ("png", "L"), ("png", "LA"), ("png", "RGBA"), ("png", "P"), ("png", "1"), ("png", "I;16"),
    ("webp", "RGB"), ("webp", "RGBA"), ("tif", "RGB"), ("tif", "CMYK"), ("tif", "L"), ("bmp", "RGB"),
]  # fmt: skip
SHAPES = [(SIZE, SIZE), (57, 40), (150, 233)]  # height and width
Found = tuple[Path, dict[Path, float]]


def write(path: Path, picture: Image.Image, mode: str) -> None:
    """A picture in a mode, or with an EXIF tag that says how the camera was held."""
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    elif mode.startswith("turned"):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = int(mode[-1])
        return picture.save(path, exif=exif)
    else:
        picture = picture.convert(mode)
    picture.save(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(57):
        suffix, mode = KINDS[number % len(KINDS)]
        picture = Image.fromarray(drawn(number, *SHAPES[number // len(KINDS)]))
        write(folder / f"{number:02d} {mode.replace(';', ' ')}.{suffix}", picture, mode)
    Image.fromarray(drawn(57, 2000, 3000)).save(folder / "camera.jpg")
    content = io.BytesIO()
    Image.fromarray(drawn(58, 100, 100)).save(content, "JPEG")
    (folder / "cut off.jpg").write_bytes(content.getvalue()[:700])
    (folder / "empty.jpg").touch()
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights whose probabilities differ much from picture to picture."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    torch.manual_seed(0)
    trained_on = TrainingSet(30, 10, dict.fromkeys(UNITS, (1.0, 2.0, 3.0)))
    save_model(folder, timm.create_model("test_resnet", num_classes=2), SIZE, FROZEN, trained_on, "# A card")
    weights = load_file(folder / "model.safetensors")
    weights["fc.weight"] *= 100
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def found(images: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The table of `skindist predict`, and the probability of each file that can be read."""
    out = tmp_path_factory.mktemp("found") / "rows.csv"
    assert main(["predict", str(model), str(images), f"--out={out}"]) == 0
    return out, {images / row["path"]: float(row["probability"]) for row in rows(out) if not row["error"]}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def upright(path: Path) -> Image.Image:
    """The picture as other programs are to be given it."""
    with Image.open(path) as picture:
        return ImageOps.exif_transpose(picture).convert("RGB")


def calibrated(probability: float) -> float:
    """As the model card says, from a probability before calibration."""
    logit = math.log(probability / (1 - probability)) / FROZEN.calibration.temperature + FROZEN.calibration.bias
    return 1 / (1 + math.exp(-logit))


def test_each_file_has_a_row_and_each_bad_one_a_reason(found: Found, images: Path) -> None:
    table, probabilities = rows(found[0]), found[1]
    assert [row["path"] for row in table] == sorted(path.name for path in images.iterdir())
    assert len(table) == 60
    deep = "16-bit or floating-point pixels (mode I;16); convert it to 8 bits a channel"
    assert {row["path"]: row["error"] for row in table if row["error"]} == {
        **dict.fromkeys(("12 I 16.png", "31 I 16.png", "50 I 16.png"), deep),
        "cut off.jpg": "truncated",
        "empty.jpg": "empty (0 bytes)",
    }
    assert len(probabilities) == 55
    assert images / "camera.jpg" in probabilities
    assert max(probabilities.values()) - min(probabilities.values()) > 0.1
    assert {row["decision"] for row in table} == {"malignant", "benign", ""}


def test_timm_agrees(found: Found, model: Path) -> None:
    module = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    preprocessing: Any = timm.data.resolve_model_data_config  # its types are lost on mypy
    transform: Any = timm.data.create_transform(**preprocessing(module), is_training=False)
    for path, expected in found[1].items():
        with torch.inference_mode():
            said = module(transform(upright(path))[None]).softmax(1)[0, 1].item()
        assert calibrated(said) == pytest.approx(expected, abs=promised(path)), path


@pytest.mark.extra
def test_transformers_agrees(found: Found, model: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    pipeline = transformers.pipeline("image-classification", model=str(model))
    for path, expected in found[1].items():
        said = {score["label"]: score["score"] for score in pipeline(upright(path))}
        assert calibrated(said["malignant"]) == pytest.approx(expected, abs=promised(path)), path


def promised(path: Path) -> float:
    """`skindist predict` decodes a large JPEG at half its size or less, so it may differ more there."""
    return 5e-3 if path.name == "camera.jpg" else 1e-5


@pytest.mark.extra
def test_onnx_agrees(found: Found, model: Path, tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"needs {package} (pip install -e '.[export]')")
    import onnxruntime

    assert main(["export", str(model), f"--out={tmp_path / 'model.onnx'}"]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for path, expected in found[1].items():
        pixels = np.asarray(upright(path))
        probability, decision = session.run(None, {"images": pixels[None]})
        allowed = 1e-4 if pixels.shape == (SIZE, SIZE, 3) else 5e-3
        assert probability[0] == pytest.approx(expected, abs=allowed), path
        assert decision[0] == (expected >= FROZEN.threshold.value), path
