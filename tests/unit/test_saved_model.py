"""A saved model: what is written is what is read; what is not whole, or not ours, is refused in one line."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import ExifTags, Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import nn

from skindist.errors import UserError
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.differences import UNITS, TrainingSet
from skindist.evaluation.frozen import Frozen
from skindist.evaluation.operating_point import Threshold
from skindist.inference.export import drawn
from skindist.inference.saved_model import save_model
from skindist.inference.single import normalised, probabilities, square_of
from skindist.inference.sources import find_model, load_model
from skindist.model import Preprocessing
from tests.helpers import commands

TRAINED_ON = TrainingSet(30, 10, dict.fromkeys(UNITS, (1.0, 2.0, 3.0)))
FROZEN = Frozen(Calibration(1.5, -0.25), Threshold(0.3, "validation", 0.95))


def module() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", module(), 64, FROZEN, TRAINED_ON, "# A card")
    return tmp_path / "model"


def test_what_is_written_is_what_is_read(folder: Path) -> None:
    found = load_model(folder)
    described = found.description
    assert (described.architecture, described.image_size) == ("test_resnet", 64)
    assert described.preprocessing == Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
    assert described.frozen == FROZEN
    assert described.trained_on == TrainingSet(30, 10, {name: [1.0, 2.0, 3.0] for name in UNITS})
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(found.module(images), module().eval()(images))


def test_a_model_may_be_asked_for_more_views(folder: Path) -> None:
    picture = Image.fromarray(drawn(0, 64, 64))
    one, two = load_model(folder), load_model(folder, views=2)
    squares = [square_of(seen, one.description) for seen in (picture, ImageOps.mirror(picture))]
    with torch.inference_mode():
        logits_2K = one.module(normalised(squares, one.description))
    malignant = logits_2K.mean(dim=0).softmax(dim=0)[1].item()
    assert probabilities(two, [picture])[0] == pytest.approx(calibrated(malignant), abs=1e-6)


@pytest.mark.parametrize("views", [0, 9, "2", 2.0, True])
def test_a_number_of_views_that_there_is_not_is_refused(folder: Path, views: Any) -> None:
    with pytest.raises(UserError, match=f"^--views {views!r}: must be from 1 to 8$"):
        load_model(folder, views)


@pytest.mark.parametrize("picture", ["lesion.jpg", drawn(0, 64, 64), torch.zeros(64, 64, 3)])
def test_what_is_no_picture_is_refused_with_a_way_to_make_one(folder: Path, picture: Any) -> None:
    with pytest.raises(TypeError, match=f"^{type(picture).__name__}: is no PIL image; open_picture"):
        probabilities(load_model(folder), [picture])


def test_no_pictures_have_no_probabilities(folder: Path) -> None:
    assert probabilities(load_model(folder), []).shape == (0,)


def saved_pictures(folder: Path) -> list[tuple[Path, Image.Image]]:
    """Files of several formats, sizes and shapes, one turned by its EXIF tag; and the upright pictures."""
    shapes = {"own.png": (64, 64), "small.bmp": (40, 57), "tall.webp": (300, 200), "camera.jpg": (2000, 3000)}
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for number, (name, shape) in enumerate(shapes.items()):
        Image.fromarray(drawn(number, *shape)).save(folder / name, exif=turned if name == "tall.webp" else Image.Exif())
    files = [folder / name for name in shapes]
    return [(file, ImageOps.exif_transpose(Image.open(file)).convert("RGB")) for file in files]


def calibrated(probability: float) -> float:
    """As the card says, from a probability before calibration."""
    logit = math.log(probability / (1 - probability)) / FROZEN.calibration.temperature + FROZEN.calibration.bias
    return 1 / (1 + math.exp(-logit))


@pytest.mark.extra
def test_timm_and_transformers_give_the_same_probabilities_of_image_files(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    weights = load_file(folder / "model.safetensors")
    weights["fc.weight"] *= 100  # so that pictures differ in more than the fifth place
    save_file(weights, folder / "model.safetensors")
    own, found = load_model(folder), []
    with_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    preprocessing: Any = timm.data.resolve_model_data_config  # its types are lost on mypy
    transform: Any = timm.data.create_transform(**preprocessing(with_timm), is_training=False)
    pipeline = transformers.pipeline("image-classification", model=str(folder))
    for file, picture in saved_pictures(tmp_path):
        expected = probabilities(own, [picture])[0]
        with torch.inference_mode():
            of_timm = with_timm(transform(picture)[None]).softmax(1)[0, 1].item()
        assert calibrated(of_timm) == pytest.approx(expected, abs=1e-5)
        scores = {said["label"]: said["score"] for said in pipeline(str(file))}
        assert calibrated(scores["malignant"]) == pytest.approx(expected, abs=1e-5)
        found.append(expected)
    assert max(found) - min(found) > 1e-3


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """What damages a model's config.json."""

    def damage(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        change(values)
        (folder / "config.json").write_text(json.dumps(values))

    return damage


def spoil_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    next(tensor for tensor in weights.values() if tensor.is_floating_point())[0] = float("nan")
    save_file(weights, folder / "model.safetensors")


def other_weights(folder: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds neither a run nor a model"),
        (lambda folder: (folder / "config.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "or is damaged"),
        (other_weights, "does not fit"),
        (spoil_weights, "not finite"),
        (edited(lambda values: values.pop("skindist")), "not of a model that skindist saved"),
        (edited(lambda values: values["skindist"].update(format=99, version="7.0")), "saved by skindist 7.0, newer"),
        (edited(lambda values: values.update(architecture="no_such_net")), "cannot build this model"),
        (edited(lambda values: values["skindist"].update(class_names=["cat", "dog"])), "tells cat, dog, not benign"),
        (edited(lambda values: values["skindist"].update(threshold=1.5)), "out of range"),
        (edited(lambda values: values["skindist"].update(temperature=float("nan"))), "not finite"),
        (edited(lambda values: values["skindist"]["trained_on"]["traits"].pop("red")), "nothing is said of red"),
    ],
)
def test_what_is_not_whole_or_not_ours_is_one_clear_line(
    folder: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(folder)
    with pytest.raises(UserError, match=said) as error:
        load_model(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value) or "no_such_net" in str(error.value) or "cat" in str(error.value)


def test_a_pickle_beside_the_model_is_never_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="other formats are not read"):
        load_model(folder)


def test_a_run_its_model_and_a_copy_of_it_are_told_apart(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {}")
    for given in (tmp_path, folder):
        found = find_model(str(given))
        assert found.run is not None
        assert found.run.path == tmp_path.resolve()
    copy = tmp_path / "elsewhere" / "model"
    shutil.copytree(folder, copy)
    assert find_model(str(copy)).run is None


@pytest.mark.parametrize(("given", "said"), [("a/b/c", "no such folder"), ("none", "no such folder")])
def test_a_model_that_is_nowhere(given: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_model(given)


def test_a_run_without_a_model_yet(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {}")
    with pytest.raises(UserError, match="holds no model: if it is a run"):
        find_model(str(tmp_path))


def test_a_model_on_the_hub_is_fetched_anew_and_then_found_without_a_network(folder: Path, tmp_path: Path) -> None:
    done = commands.run(sys.executable, "-m", "tests.helpers.hub", folder, tmp_path / "cache", "visit")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["first"] == "0.3"
    assert said["changed there"] == "0.4"
    assert said["nobody answers"] == "0.4"
    for what in ("another", "another, nobody answers"):
        assert said[what].startswith("someone/else: no such folder here, and no model on the Hub or in its cache (")
        assert "\n" not in said[what]
    assert said["seconds"] < 60, "nothing is tried again and again"
