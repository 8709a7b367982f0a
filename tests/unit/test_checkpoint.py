"""Checkpoints: whole or absent, checked before use, and never more than two."""

import json
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch

from skindist.errors import TrainingError
from skindist.files import write_json
from skindist.training import checkpoint as module
from skindist.training.checkpoint import (
    Checkpoint,
    is_intact,
    keep_last_and_best,
    load_checkpoint,
    newest_intact,
    save_checkpoint,
    step_folder,
)


def example(value: float = 1.0) -> Checkpoint:
    weights = {"conv": torch.full((2, 3, 4, 4), value).to(memory_format=torch.channels_last), "n": torch.tensor(3)}
    optimizer = {"state": {0: {"square_avg": torch.ones(2), "step": torch.tensor(5.0)}}, "param_groups": [{"lr": 0.1}]}
    return Checkpoint(weights, optimizer, {"train": {"epoch": 1}})


def test_reads_back_what_was_saved(tmp_path: Path) -> None:
    folder = step_folder(tmp_path / "checkpoints", 63)
    save_checkpoint(folder, example(2.5))
    assert folder.name == "step-00000063"
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json", "model.safetensors", "optimizer.pt", "state.json"
    ]  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    read = load_checkpoint(folder)
    assert torch.equal(read.weights["conv"], torch.full((2, 3, 4, 4), 2.5))
    assert read.weights["n"].item() == 3
    assert torch.equal(read.optimizer["state"][0]["square_avg"], torch.ones(2))
    assert read.optimizer["param_groups"] == [{"lr": 0.1}]
    assert read.state == {"train": {"epoch": 1}}


def test_others_may_read_the_files(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "step-00000001", example())
    assert (tmp_path / "step-00000001/model.safetensors").stat().st_mode & 0o044 == 0o044


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
def test_any_damage_is_found(tmp_path: Path, file: str, how: str) -> None:
    folder = tmp_path / "step-00000001"
    save_checkpoint(folder, example())
    assert is_intact(folder)
    content = bytearray((folder / file).read_bytes())
    if how == "delete":
        (folder / file).unlink()
    else:
        content[len(content) // 2] ^= 1
        (folder / file).write_bytes(content if how == "flip" else content[:-1])
    assert not is_intact(folder)
    with pytest.raises(TrainingError, match="is damaged"):
        load_checkpoint(folder)


@pytest.mark.parametrize("manifest", [None, "", "{}", "[]", "{"])
def test_a_checkpoint_without_a_manifest_is_not_intact(tmp_path: Path, manifest: str | None) -> None:
    save_checkpoint(tmp_path / "step-00000001", example())
    path = tmp_path / "step-00000001/manifest.json"
    path.unlink() if manifest is None else path.write_text(manifest)
    assert not is_intact(tmp_path / "step-00000001")


def test_the_newest_intact_one_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert newest_intact(tmp_path) is None
    for step in (9, 10, 200):
        save_checkpoint(step_folder(tmp_path, step), example())
    (tmp_path / ".step-00000300.tmp").mkdir()
    assert newest_intact(tmp_path) == step_folder(tmp_path, 200)
    (step_folder(tmp_path, 200) / "state.json").write_text("{}")
    assert newest_intact(tmp_path) == step_folder(tmp_path, 10)
    assert "step-00000200 is damaged" in caplog.text


def test_last_and_best_are_kept(tmp_path: Path) -> None:
    folders = [step_folder(tmp_path, step) for step in (1, 2, 3)]
    for folder in folders:
        save_checkpoint(folder, example())
    keep_last_and_best(folders[2], folders[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last", "step-00000001", "step-00000003"]
    assert (tmp_path / "best").resolve() == folders[0]
    keep_last_and_best(folders[2], folders[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last", "step-00000003"]
    assert json.loads((tmp_path / "best/state.json").read_text()) == {"train": {"epoch": 1}}


def test_a_crash_while_saving_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(step_folder(tmp_path, 1), example())

    def crash(path: Path, values: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", crash)
    with pytest.raises(TrainingError, match="No space left on device"):
        save_checkpoint(step_folder(tmp_path, 2), example())
    assert newest_intact(tmp_path) == step_folder(tmp_path, 1)
    monkeypatch.undo()
    save_checkpoint(step_folder(tmp_path, 2), example())
    assert newest_intact(tmp_path) == step_folder(tmp_path, 2)


def test_code_in_an_optimizer_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit",))

    save_checkpoint(tmp_path / "step-00000001", example())
    torch.save({"state": Evil()}, tmp_path / "step-00000001/optimizer.pt")
    manifest = json.loads((tmp_path / "step-00000001/manifest.json").read_text())
    manifest["optimizer.pt"] = sha256((tmp_path / "step-00000001/optimizer.pt").read_bytes()).hexdigest()
    write_json(tmp_path / "step-00000001/manifest.json", manifest)
    with pytest.raises(UnpicklingError, match="Weights only load failed"):
        load_checkpoint(tmp_path / "step-00000001")
