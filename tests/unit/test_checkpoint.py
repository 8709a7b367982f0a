"""Checkpoints: whole or absent, checked before use, pruned, and never able to run code."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from skindist.errors import TrainingError
from skindist.files import write_json
from skindist.optim import load_optimizer
from skindist.run import checkpoint as module
from skindist.run.checkpoint import (
    Checkpoint,
    is_intact,
    join_optimizer,
    load_checkpoint,
    newest_intact,
    prune,
    save_checkpoint,
    split_optimizer,
    step_folder,
)


def example(value: float = 1.0) -> Checkpoint:
    weights = {"conv": torch.full((2, 3, 4, 4), value).to(memory_format=torch.channels_last), "n": torch.tensor(3)}
    optimizer = {"state": {0: {"square_avg": torch.ones(2), "step": torch.tensor(5.0)}}, "param_groups": [{"lr": 0.1}]}
    return Checkpoint(weights, optimizer, {"train": {"epoch": 1}}, torch.arange(6.0).view(2, 3))


def test_reads_back_what_was_saved(tmp_path: Path) -> None:
    folder = step_folder(tmp_path / "checkpoints", 63)
    save_checkpoint(folder, example(2.5))
    assert folder.name == "step-00000063"
    assert sorted(path.name for path in folder.iterdir()) == [
        "buffers.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"
    ]  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    read = load_checkpoint(folder)
    assert torch.equal(read.weights["conv"], torch.full((2, 3, 4, 4), 2.5))
    assert read.weights["n"].item() == 3
    assert torch.equal(read.optimizer["state"][0]["square_avg"], torch.ones(2))
    assert read.optimizer["param_groups"] == [{"lr": 0.1}]
    assert read.state == {"train": {"epoch": 1}}
    assert torch.equal(read.rank_buffers, torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))


@pytest.mark.parametrize("name", ["Adadelta", "AdamW", "SGD", "RMSprop"])
def test_an_optimizer_goes_on_bit_for_bit(name: str) -> None:
    """Through JSON and tensors, with parameters in channels-last order."""

    def model() -> torch.nn.Conv2d:
        torch.manual_seed(0)
        return torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)

    def train(module: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            module(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    kind: Any = getattr(torch.optim, name)
    options = {"lr": 0.1} | ({"momentum": 0.9} if name == "SGD" else {})
    whole, cut, resumed = model(), model(), model()
    optimizers = [kind(module.parameters(), **options) for module in (whole, cut, resumed)]
    train(whole, optimizers[0], range(6))
    train(cut, optimizers[1], range(3))
    resumed.load_state_dict(cut.state_dict())
    tensors, values = split_optimizer(optimizers[1].state_dict())
    load_optimizer(optimizers[2], join_optimizer(tensors, json.loads(json.dumps(values))))
    train(resumed, optimizers[2], range(3, 6))
    assert torch.equal(resumed.weight, whole.weight)
    for moment, value in optimizers[2].state[resumed.weight].items():
        assert torch.equal(value, optimizers[0].state[whole.weight][moment])
        assert value.stride() == optimizers[0].state[whole.weight][moment].stride()


def test_others_may_read_the_files(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "step-00000001", example())
    assert (tmp_path / "step-00000001/model.safetensors").stat().st_mode & 0o044 == 0o044


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "buffers.safetensors", "state.json"])
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


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    folders = [step_folder(tmp_path, step) for step in (1, 2, 3, 4)]
    for folder in folders:
        save_checkpoint(folder, example())
    prune(folders[3], folders[0], keep=2)
    names = ["best", "last", "step-00000001", "step-00000003", "step-00000004"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "best").resolve() == folders[0]
    prune(folders[3], folders[3], keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last", "step-00000003", "step-00000004"]


def test_a_disk_without_links_keeps_checkpoints_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As exFAT answers."""

    def refuse(path: Path, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for step in (1, 2, 3):
        save_checkpoint(step_folder(tmp_path, step), example())
    prune(step_folder(tmp_path, 3), step_folder(tmp_path, 3), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_damaged_checkpoints_ahead_are_no_newest_ones(tmp_path: Path) -> None:
    """A run that went on from step 10, as 20 and 30 are damaged, keeps what it saves before step 20."""
    for step in (10, 20, 30):
        save_checkpoint(step_folder(tmp_path, step), example())
    for step in (20, 30):
        (step_folder(tmp_path, step) / "state.json").write_text("")
    for step in (12, 14):
        save_checkpoint(step_folder(tmp_path, step), example())
        prune(step_folder(tmp_path, step), step_folder(tmp_path, 10), keep=2)
    assert newest_intact(tmp_path) == step_folder(tmp_path, 14)
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == [f"step-{step:08}" for step in (10, 12, 14)]


def test_before_the_first_epoch_ends_there_is_no_best(tmp_path: Path) -> None:
    save_checkpoint(step_folder(tmp_path, 1), example())
    prune(step_folder(tmp_path, 1), None, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "step-00000001"]


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


def test_code_beside_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit",))

    folder = tmp_path / "step-00000001"
    save_checkpoint(folder, example())
    for name in ("optimizer.pt", "custom_checkpoint_0.pkl", "random_states_0.pkl"):
        torch.save({"state": Evil()}, folder / name)
    assert load_checkpoint(folder).state == {"train": {"epoch": 1}}
    torch.save({"state": Evil()}, folder / "optimizer.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["optimizer.safetensors"] = sha256((folder / "optimizer.safetensors").read_bytes()).hexdigest()
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(SafetensorError):
        load_checkpoint(folder)
