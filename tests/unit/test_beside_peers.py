"""Other trainers beside skindist: the table that comes of it, with those that cannot be had."""

import importlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import beside_peers
from benchmarks.beside_peers import Peer, class_folders
from benchmarks.measuring import speed

from tests.helpers.commands import ROOT

SPEEDS = {"defaults": "2.0", "best": "5.0"}


def test_a_line_for_each_trainer_and_variant_with_ratios_or_the_reason(
    monkeypatch: pytest.MonkeyPatch, demo: Path, tmp_path: Path
) -> None:
    (tmp_path / "prints.py").write_text(f"import sys\nprint('speed')\nprint({SPEEDS!r}[sys.argv[-1]])")
    (tmp_path / "fails.py").write_text("import sys\nsys.exit('no such option')")
    (tmp_path / "peers").symlink_to(tmp_path)
    monkeypatch.setattr(beside_peers, "LAUNCH", tmp_path)
    ours = iter([10.0, 20.0, 12.0])
    monkeypatch.setattr(beside_peers, "our_speed", lambda images, run: next(ours))
    here = {"gone": "No matching distribution found"}
    monkeypatch.setattr(beside_peers, "environment", lambda peer, folder: here.get(peer.name, Path(sys.executable)))
    peers = (Peer("a loop", "prints.py"), Peer("broken", "fails.py"), Peer("gone", "prints.py"))
    rows = beside_peers.beside_peers(demo, tmp_path / "work", peers)
    assert [(row.what, row.ours, row.other, row.result) for row in rows] == [
        ("training, images/s: a loop, defaults", "12.0", "2.0", "6.00x (5.00 to 10.00)"),
        ("training, images/s: a loop, best flags", "12.0", "5.0", "2.40x (2.00 to 4.00)"),
        ("training, images/s: broken, defaults", "12.0", "", "not measured: no such option"),
        ("training, images/s: broken, best flags", "12.0", "", "not measured: no such option"),
        ("training, images/s: gone, defaults", "12.0", "", "not measured: No matching distribution found"),
        ("training, images/s: gone, best flags", "12.0", "", "not measured: No matching distribution found"),
    ]


def test_all_train_on_the_same_files_of_both_classes(
    monkeypatch: pytest.MonkeyPatch, demo: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(beside_peers, "IMAGES", 20)
    images = class_folders(demo, tmp_path)
    counts = {
        (split, name): len(list((images / split / name).iterdir()))
        for split in ("train", "val")
        for name in ("benign", "malignant")
    }
    assert counts["train", "benign"] + counts["train", "malignant"] == 20
    assert counts["val", "benign"] + counts["val", "malignant"] == 16
    assert min(counts.values()) >= 5, counts
    assert all(file.resolve().is_relative_to(demo) for file in images.glob("*/*/*"))


def test_a_folder_with_less_than_a_batch_is_refused_before_the_work(demo: Path, tmp_path: Path) -> None:
    benchmark: Any = importlib.import_module("benchmark")
    assert benchmark.why_not(demo) == ""
    assert benchmark.why_not(tmp_path / "none") == f"--data.path {tmp_path / 'none'}: no such folder"
    shutil.copytree(demo / "benign", tmp_path / "few/benign")
    (tmp_path / "few/malignant").mkdir()
    for file in sorted((demo / "malignant").iterdir())[:3]:
        shutil.copy(file, tmp_path / "few/malignant")
    assert benchmark.why_not(tmp_path / "few").endswith("images to train on, fewer than a batch of 32; give more")


def test_every_loop_that_drives_a_trainer_is_there() -> None:
    scripts = {file.name for file in (ROOT / "launch/peers").glob("*.py")}
    assert scripts == {peer.script for peer in beside_peers.PEERS} | {"common.py"}


def test_time_is_taken_when_the_device_has_done_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever device it is, as a Mac's (MPS)."""
    done: list[str] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: done.append("waited"))
    speed(lambda: done.append("worked") or 1)  # type: ignore[func-returns-value]
    assert done == ["waited", "worked", "waited"]
    common: Any = importlib.import_module("peers.common")
    common.Epochs(images=1).end()
    assert done[3:] == ["waited"]


@pytest.mark.parametrize(("visible", "one"), [(None, "0"), ("", "0"), ("2,3", "2"), ("GPU-ab", "GPU-ab")])
def test_all_train_on_the_same_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str | None, one: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    environments: list[dict[str, str]] = []

    def run(command: list[str], env: dict[str, str], **_: Any) -> SimpleNamespace:
        environments.append(env)
        return SimpleNamespace(returncode=0, stdout="3.0")

    monkeypatch.setattr(subprocess, "run", run)
    (tmp_path / "metrics.jsonl").write_text('{"train/images_per_second": 4.0}')
    assert beside_peers.our_speed(tmp_path, tmp_path) == 4
    assert beside_peers.peers_speed(Path("python"), Peer("a loop", "plain.py"), tmp_path, "best") == 3
    assert [env["CUDA_VISIBLE_DEVICES"] for env in environments] == [one, one]
    assert environments[0].keys() >= os.environ.keys()


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        ("False", None),
        ("True", "whether torch finds a GPU: False here, True in its environment"),
        ("", "whether torch finds a GPU: False here, an error in its environment"),
    ],
)
def test_a_trainer_on_another_device_is_a_row_that_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, theirs: str, reason: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(venv, "create", lambda place, with_pip: None)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stdout=f"{theirs}\n"))
    found = beside_peers.environment(Peer("a loop", "plain.py"), tmp_path)
    assert found == (reason or tmp_path / "plain/bin/python")


def test_a_macs_gpu_is_refused_as_some_trainers_leave_it_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--peers"])
    benchmark: Any = importlib.import_module("benchmark")
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "error: --peers: not on a Mac's GPU (MPS)" in capsys.readouterr().err
