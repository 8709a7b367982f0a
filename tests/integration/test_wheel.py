"""skindist from its wheel alone, in a new virtual environment: from no data at all to a model in other programs.

The wheel is built from this checkout, and pip installs it without an index. In place of a download, the packages that
it names, and those that they need, are linked file by file from the environment of the tests. So what the wheel does
not name is not there, and nor is the checkout. That an index has all of them is shown by the first page's own commands.
"""

import csv
import json
import os
import subprocess
import sys
from importlib.metadata import distribution, distributions
from importlib.util import cache_from_source
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from tests.helpers.commands import PATIENCE, ROOT

pytestmark = pytest.mark.slow
TINY = [
    "--model.name=test_resnet", "--model.pretrained=false", "--data.image_size=64", "--train.batch_size=12",
    "--train.epochs=4", "--train.ema=0.9", "--optim.lr=1.0", "--evaluation.views=1",
]  # fmt: skip
OTHERS = """
import json, math, numpy, onnxruntime, skindist, sys, timm, torch, transformers
from pathlib import Path
from PIL import Image

assert Path(skindist.__file__).is_relative_to(sys.prefix), skindist.__file__
paths = sys.argv[1:]
frozen = json.loads(Path("run/model/config.json").read_text())["skindist"]
pictures = [Image.open(path).convert("RGB") for path in paths]
model = timm.create_model("local-dir:run/model", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    of_timm = model(torch.stack([transform(picture) for picture in pictures])).softmax(1)[:, 1].tolist()
scores = transformers.pipeline("image-classification", model="run/model")(paths)
of_transformers = [score["score"] for image in scores for score in image if score["label"] == "malignant"]
session = onnxruntime.InferenceSession("model.onnx")
of_onnx = session.run(["probability"], {"images": numpy.stack([numpy.asarray(picture) for picture in pictures])})[0]

def calibrated(probability):
    logit = math.log(probability / (1 - probability)) / frozen["temperature"] + frozen["bias"]
    return 1 / (1 + math.exp(-logit))

print(json.dumps([[*map(calibrated, of_timm)], [*map(calibrated, of_transformers)], of_onnx.tolist()]))
"""
"""Run in the new environment: what timm, transformers and onnxruntime say, calibrated as the model card tells."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("pip", "hatchling"):
        pytest.importorskip(package, reason=f"needs {package} to build the wheel (pip install -e '.[dev]')")
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run([sys.executable, "-m", "pip", *build], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


def needed(requirements: list[str], extra: str = "") -> set[str]:
    """The packages that pip would install for these lines: theirs, and what those need in turn."""
    found, open_ = set(), [(line, extra) for line in requirements]
    while open_:
        line, extra = open_.pop()
        asked = Requirement(line)
        if asked.marker and not asked.marker.evaluate({"extra": extra}):
            continue
        for its_extra in {"", *asked.extras}:
            if (asked.name, its_extra) not in found:
                found.add((asked.name, its_extra))
                open_ += [(line, its_extra) for line in distribution(asked.name).requires or []]
    return {name for name, _ in found}


class Environment:
    """A new virtual environment, and an empty folder where its commands run."""

    def __init__(self, place: Path) -> None:
        self.folder, self.programs = place / "folder", place / "venv/bin"
        self.folder.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
        (self.packages,) = place.glob("venv/lib/python*/site-packages")

    def link(self, names: set[str]) -> None:
        """Put each file of these packages there, but their commands; and what Python has compiled of it."""
        for file in (file for name in names for file in distribution(name).files or []):
            if ".." in file.parts:
                continue
            source, target = Path(str(file.locate())), self.packages / file
            pairs = [(source, target)]
            if file.suffix == ".py":
                pairs.append((Path(cache_from_source(str(source))), Path(cache_from_source(str(target)))))
            for there, here in pairs:
                if there.exists() and not here.exists():
                    here.parent.mkdir(parents=True, exist_ok=True)
                    here.symlink_to(there)

    def install(self, what: str) -> None:
        """By the pip of the tests, which fails if a package that is needed is not there."""
        pip = [sys.executable, "-m", "pip", f"--python={self.programs / 'python'}", "install", "--no-index", what]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        """A command as typed in that folder, where nothing speaks of the checkout."""
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [self.programs / program, *words], cwd=self.folder, env=env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    def succeed(self, program: str, *words: str) -> str:
        """Its output; it must end with status 0."""
        done = self.run(program, *words)
        assert done.returncode == 0, f"{program} {' '.join(words)}: {done.stderr}"
        return done.stdout


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_holds_the_package_and_nothing_large(wheel: Path) -> None:
    with ZipFile(wheel) as file:
        sizes = {item.filename: item.file_size for item in file.infolist() if ".dist-info/" not in item.filename}
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "skindist").rglob("*") if path.is_file()}
    assert set(sizes) == {path for path in there if "__pycache__" not in path and not path.endswith(".png")}
    assert {".html", ".css", ".js", ".pyi", ".md"} <= {Path(path).suffix for path in sizes}
    assert max(sizes.values()) < 50_000


def test_it_brings_all_from_the_first_command_to_other_programs(wheel: Path, tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript", "transformers"):
        pytest.importorskip(package, reason=f"needs {package} (pip install -e '.[dev]')")
    here = Environment(tmp_path)
    (described,) = distributions(path=[str(wheel)])
    here.link(needed(described.requires or []))
    here.install(str(wheel))

    here.succeed("skindist", "demo-data", "lesions", "--count=60", "--size=64")
    here.succeed("skindist", "demo-data", "others", "--count=20", "--size=64", "--seed=1")
    assert "60 images" in here.succeed("skindist", "audit", "lesions")
    here.succeed("skindist", "train", *TINY, "--data.path=lesions", "--run.dir=run")
    for made in ("run/wandb/offline-run-*/*.wandb", "run/errors/*.jpg"):  # a fault in them ends no run
        assert list(here.folder.glob(made)), made
    here.succeed("skindist", "report", "run", "--page=page.html")
    here.succeed("skindist", "evaluate", "run", "others", "--out=elsewhere")
    here.succeed("skindist", "predict", "run", "others", "--out=rows.csv")
    for page in ("audit.html", "run/report.html", "page.html", "elsewhere/report.html"):
        assert "</html>" in (here.folder / page).read_text(), page

    refused = here.run("skindist", "export", "run", "--out=model.onnx")
    assert refused.returncode == 2
    assert refused.stderr == "error: onnx, onnxruntime, onnxscript not installed: pip install 'skindist[export]'\n"
    here.link(needed(described.requires or [], "export"))
    here.install(f"{wheel}[export]")
    here.succeed("skindist", "export", "run", "--out=model.onnx")

    predicted, evaluated = rows(here.folder / "rows.csv"), rows(here.folder / "elsewhere/predictions-test.csv")
    expected = [float(row["probability"]) for row in predicted]
    assert [row["path"] for row in predicted] == [row["path"] for row in evaluated]
    assert [float(row["probability"]) for row in evaluated] == pytest.approx(expected, abs=1e-6)
    assert max(expected) - min(expected) > 1e-3
    here.link(needed(["transformers"]))
    said = json.loads(here.succeed("python", "-c", OTHERS, *(f"others/{row['path']}" for row in predicted)))
    for found, promised in zip(said, (1e-5, 1e-5, 1e-4), strict=True):  # of timm, transformers, onnxruntime
        assert found == pytest.approx(expected, abs=promised)
