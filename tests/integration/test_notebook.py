"""The notebook runs from top to bottom, with its values changed as a user would change them."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from skindist.run.folder import Run
from tests.helpers.commands import PATIENCE, ROOT

NOTEBOOK = ROOT / "launch/quickstart.ipynb"
SMALL = {
    "MODEL": "test_resnet",
    "IMAGE_SIZE": 32,
    "EPOCHS": 2,
    "BATCH_SIZE": 12,
    "LEARNING_RATE": 0.1,
}


def test_no_outputs_are_committed() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)
    assert [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])] == code[:1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_all_cells_run(processes: int, demo: Path, tmp_path: Path) -> None:
    """On a folder as people have it: with other capitals, a file of the system's, and a damaged image."""
    pytest.importorskip("ipykernel")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path / "lesions"
    for name in ("benign", "malignant"):
        shutil.copytree(demo / name, folder / name.title())
    for name in ("Benign/.DS_Store", "Malignant/0.png"):
        (folder / name).write_text("no image")
    values = {**SMALL, "FOLDER": str(folder), "PROCESSES": processes}
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    names = {line.split(" = ")[0] for line in parameters.source.splitlines()}
    assert values.keys() < names
    parameters.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3", resources=resources).execute()

    run = Run(tmp_path / "runs/quickstart")
    results, tested = run.results(), [row.path for row in run.split() if row.split == "test" and row.label]
    assert results["world_size"] == processes
    shown = [outputs_of(cell) for cell in notebook.cells if cell.cell_type == "code"]
    pictures, training, report, prediction, heat_map = shown[1:]
    assert base64.b64decode(pictures["image/png"]).startswith(b"\x89PNG")
    assert base64.b64decode(training["image/png"]).startswith(b"\x89PNG"), "the curves, drawn while it trained"
    assert f"device: {processes} process" in training["stdout"]
    assert training["stdout"].count("epoch 2: ") == 1
    assert "iframe srcdoc" in report["text/html"]
    assert results["verdict"].split(";")[0][:40] in report["text/html"]
    assert f"{tested[0]}: probability of malignant 0." in prediction["stdout"]
    assert base64.b64decode(heat_map["image/jpeg"]).startswith(b"\xff\xd8")


def outputs_of(cell: Any) -> dict[str, str]:
    """What a cell shows, by kind; what it prints."""
    found: dict[str, str] = {"stdout": ""}
    for output in cell.outputs:
        assert output.output_type != "error"
        if output.output_type == "stream":
            found[output.name] = found.get(output.name, "") + output.text
        else:
            found |= output.data
    return found
