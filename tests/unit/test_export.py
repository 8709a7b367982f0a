"""A saved model as one file: the same probabilities as skindist's own, from pictures of any size."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from skindist import cli
from skindist.data.resizing import stored_size
from skindist.data.transforms import central_square
from skindist.errors import UserError
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.differences import UNITS, TrainingSet
from skindist.evaluation.frozen import Frozen
from skindist.evaluation.operating_point import Threshold
from skindist.inference import export
from skindist.inference.export import drawn, export_model
from skindist.inference.graph import Classifier, Resize
from skindist.inference.saved_model import SavedModel, save_ensemble, save_model
from skindist.inference.single import probabilities
from skindist.inference.sources import load_model
from tests.helpers.commands import ROOT
from tests.helpers.disks import room_for

TRAINED_ON = TrainingSet(30, 10, dict.fromkeys(UNITS, (1.0, 2.0, 3.0)))
SHAPES = [(32, 32), (20, 27), (33, 32), (200, 131), (97, 300)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose probabilities of drawn lesions lie on both sides of its threshold."""
    folder = tmp_path_factory.mktemp("export") / "model"
    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=2)
    frozen = Frozen(Calibration(0.05, -0.25), Threshold(0.3, "validation", 0.95))
    save_model(folder, module, 32, frozen, TRAINED_ON, "# A card", views=3)
    seen = np.concatenate([own_answer(load_model(folder), pictures(*shape)) for shape in SHAPES])
    threshold = float(np.median(seen))
    save_model(
        folder, module, 32, replace(frozen, threshold=Threshold(threshold, "validation", 0.95)), TRAINED_ON, "", 3
    )
    return folder


def pictures(height: int, width: int) -> export.Pixels:
    return np.stack([drawn(number, height, width) for number in (100, 101, 102)])


def own_answer(model: SavedModel, images: export.Pixels) -> Any:
    return probabilities(model, [Image.fromarray(image) for image in images])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (64, 67), (69, 64), (65, 70), (40, 50), (300, 200), (199, 301), (64, 1000)]
)
def test_the_graph_resizes_and_crops_as_the_data_path(height: int, width: int, interpolation: str) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resized = Image.fromarray(pixels).resize(stored_size(width, height, 64), Image.Resampling[interpolation.upper()])
    expected = central_square(torch.from_numpy(np.array(resized)), 64)
    found = Resize(64, interpolation)(torch.from_numpy(pixels)[None])[0].permute(1, 2, 0)
    differences = (found - expected).abs()
    assert differences.max() <= 1
    assert differences.mean() < (0.03 if interpolation == "bilinear" else 0.0002)  # halves are rounded either way
    if min(height, width) == 64:
        assert torch.equal(found, expected.float())


@pytest.mark.extra
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_an_exported_model_says_what_skindist_says(
    model: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if suffix == ".onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package)
    file = tmp_path / f"model{suffix}"
    assert cli.main(["export", str(model), f"--out={file}"]) == 0
    content, own = file.read_bytes(), load_model(model)
    answer, threshold, decided = export.READERS[suffix](content), own.description.frozen.threshold.value, set()
    for shape in SHAPES:
        images = pictures(*shape)
        expected = own_answer(own, images)
        probability, decision = answer(images)
        assert (str(probability.dtype), probability.shape, str(decision.dtype)) == ("float32", (3,), "int64")
        assert np.abs(probability - expected).max() < (1e-6 if shape == (32, 32) else 1e-3)
        assert decision.tolist() == (probability >= np.float32(threshold)).astype(int).tolist()
        assert answer(images[:1])[0] == pytest.approx(probability[:1], abs=1e-6), "any number of pictures"
        decided |= set(decision.tolist())
    assert decided == {0, 1}
    assert str(ROOT).encode() not in content
    assert str(Path.home()).encode() + b"/" not in content
    known = {name: json.loads(value) for name, value in metadata(file).items()}
    assert known["class_names"] == ["benign", "malignant"]
    assert (known["threshold"], known["temperature"], known["bias"]) == (threshold, [0.05], [-0.25])
    assert known["skindist"] == own.description.version


@pytest.mark.extra
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_decision_at_a_tiny_threshold_is_the_models(model: Path, tmp_path: Path, suffix: str) -> None:
    """Of probabilities near 1e-17, which a runtime takes for 0."""
    if suffix == ".onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package)
    own, images = load_model(model), pictures(32, 32)
    sure = Calibration(own.description.frozen.calibration.temperature, -39.0)
    save_model(tmp_path / "sure", own.module, 32, Frozen(sure, Threshold(0.5, "validation", 0.95)), TRAINED_ON, "", 3)
    expected = np.sort(own_answer(load_model(tmp_path / "sure"), images))
    assert expected[-1] < 1e-9
    frozen = Frozen(sure, Threshold(float(expected[:2].mean()), "validation", 0.95))
    save_model(tmp_path / "sure", own.module, 32, frozen, TRAINED_ON, "", 3)
    export_model(str(tmp_path / "sure"), tmp_path / f"model{suffix}")
    _, decision = export.READERS[suffix]((tmp_path / f"model{suffix}").read_bytes())(images)
    assert sorted(decision.tolist()) == [0, 1, 1]


def metadata(file: Path) -> dict[str, str]:
    """What stands in the file beside the graph."""
    if file.suffix == ".pt2":
        extra: dict[str, Any] = dict.fromkeys(("skindist", "class_names", "threshold", "temperature", "bias"), "")
        torch.export.load(file, extra_files=extra)
        return extra
    import onnx

    graph = onnx.load(file)
    assert [axis.dim_param for axis in graph.graph.input[0].type.tensor_type.shape.dim] == ["N", "H", "W", ""]
    return {item.key: item.value for item in graph.metadata_props}


def test_an_ensemble_is_one_graph_with_the_mean_of_the_members_probabilities(model: Path, tmp_path: Path) -> None:
    own = load_model(model).description.frozen
    torch.manual_seed(1)
    module = timm.create_model("test_resnet", num_classes=2)
    save_model(tmp_path / "other", module, 32, Frozen(Calibration(2.0, 0.1), own.threshold), TRAINED_ON, "")
    frozen = Frozen(Calibration(), replace(own.threshold, value=0.4))
    save_ensemble(tmp_path / "both", [model, tmp_path / "other"], frozen, TRAINED_ON, "# A card")
    images = pictures(40, 50)
    probability, decision = Classifier(load_model(tmp_path / "both"))(torch.from_numpy(images))
    expected = (own_answer(load_model(model), images) + own_answer(load_model(tmp_path / "other"), images)) / 2
    assert probability.detach().numpy() == pytest.approx(expected, abs=1e-3)
    assert decision.tolist() == (expected >= 0.4).astype(int).tolist()


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing takes seconds: a file with nothing in it instead."""
    monkeypatch.setattr(export, "trace", lambda classifier: None)
    monkeypatch.setitem(export.WRITERS, ".pt2", lambda program, metadata: b"0123456789")


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    ("error", "flipped", "said"),
    [
        (2e-4, 0, "nothing is written: at 32 x 32 pixels the exported probabilities are up to 0.0002 off, and 0.0001"),
        (float("nan"), 0, "probabilities are up to nan off"),
        (0.0, 1, "nothing is written: the exported decisions are not those of the model"),
    ],
)
def test_a_file_that_says_otherwise_is_never_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float, flipped: int, said: str
) -> None:
    classifier = Classifier(load_model(model))

    def answer(images: export.Pixels) -> tuple[Any, Any]:
        with torch.no_grad():
            probability, decision = classifier(torch.from_numpy(images))
        return probability.numpy() + np.float32(error), decision.numpy() ^ flipped

    monkeypatch.setitem(export.READERS, ".pt2", lambda content: answer)
    with pytest.raises(UserError, match=said):
        export_model(str(model), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.pth", "must end in .onnx or .pt2"),
        ("there.pt2", "exists; give another, or --overwrite"),
        ("folder.pt2", "is a folder"),
        ("none/model.pt2", "there is no folder"),
    ],
)
def test_a_mistake_is_one_line(model: Path, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "there.pt2").write_text("kept")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(UserError, match=said) as error:
        export_model(str(model), tmp_path / name)
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"there.pt2", "folder.pt2"}
    assert (tmp_path / "there.pt2").read_text() == "kept"


def test_a_missing_package_is_named_before_torch_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("skindist.extras.find_spec", lambda package: None)
    monkeypatch.setitem(sys.modules, "skindist.inference.export", None)  # an import of it fails
    assert cli.main(["export", "RUN", "--out=model.onnx"]) == 2
    said = "error: onnx, onnxruntime, onnxscript not installed: pip install 'skindist[export]'\n"
    assert capsys.readouterr().err == said


@pytest.mark.usefixtures("untraced")
def test_a_full_disk_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "compare", lambda *_: "")
    monkeypatch.setitem(export.READERS, ".pt2", lambda content: None)
    with room_for(0), pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
        export_model(str(model), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_an_interpolation_without_a_graph_is_refused(model: Path) -> None:
    found = load_model(model)
    pixels = replace(found.description.preprocessing, interpolation="lanczos")
    with pytest.raises(UserError, match="test_resnet: its pixels are resized lanczos"):
        Classifier(SavedModel(found.module, replace(found.description, preprocessing=pixels)))


def test_without_the_file_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "RUN"]) == 2
    assert "--out is missing: give FILE.onnx or FILE.pt2" in capsys.readouterr().err
