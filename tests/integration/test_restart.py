"""Launchers that restart their workers when one dies: the run goes on as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from skindist.errors import UserError
from skindist.parsing import parse_config
from skindist.run.opening import choose_folder
from tests.conftest import Observe
from tests.helpers import jobs
from tests.helpers.commands import LAUNCH, PATIENCE, ROOT, TINY
from tests.helpers.ranks import run_ranks
from tests.helpers.same_bytes import assert_same_bytes, newest

SCRIPT = """
import os, shutil, sys
from pathlib import Path
from skindist.cli import train
from tests.helpers.faults import at_step, die, do

dies_at, record, *flags = sys.argv[1:]
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    at_step(int(dies_at) - 1, 1, do(die))
elif os.environ["RANK"] == "0":
    (run,) = Path.cwd().glob("runs/*")
    shutil.copy(run / "metrics.jsonl", record)
sys.exit(train(flags))
"""
"""Rank 1 dies as it begins a step, in the first attempt; the second keeps what the first one had logged."""


@pytest.fixture(scope="module")
def whole(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, on two processes."""
    folder = tmp_path_factory.mktemp("whole")
    run_ranks(2, folder / "ranks", jobs.fit, demo, folder / "run")
    return folder / "run"


def restarted(launcher: list[str], dies_at: int, demo: Path, folder: Path, *flags: str) -> tuple[Path, str]:
    """Launch a run in `folder` that dies once; its folder and its output."""
    (folder / "script.py").write_text(SCRIPT)
    words = [str(folder / "script.py"), str(dies_at), str(folder / "before.jsonl"), f"--data.path={demo}"]
    done = subprocess.run(
        [*launcher, *words, *TINY, *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (folder / "runs").iterdir()
    return run, done.stdout


def steps(file: Path) -> list[int]:
    return [json.loads(line)["global_step"] for line in file.read_text().splitlines()]


def test_never_spares_only_what_this_launch_began(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher restarts after a refusal, too: its second attempt must not go on with somebody's older run."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    config = parse_config([*TINY, f"--data.path={demo}", f"--run.dir={tmp_path}", "--run.resume=never"])
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump(config.to_dict()))
    launched = psutil.Process(os.getppid()).create_time()
    os.utime(saved, (launched + 1, launched + 1))
    assert choose_folder(config).path == tmp_path
    os.utime(saved, (launched - 1, launched - 1))
    with pytest.raises(UserError, match="already holds a run"):
        choose_folder(config)


@pytest.mark.slow
def test_accelerate_restarts_a_run(demo: Path, tmp_path: Path, whole: Path, observe: Observe) -> None:
    """`never` does not refuse what the first attempt began."""
    launcher = [*LAUNCH, "--num_processes=2", "--max_restarts=1"]
    folder = f"--run.dir={tmp_path / 'runs/one'}"
    run, said = restarted(launcher, 5, demo, tmp_path, folder, "--checkpoint.every_steps=1", "--run.resume=never")
    assert "resumed after epoch 1, 1 step into the next, step 4" in said
    assert steps(tmp_path / "before.jsonl") == [2, 3, 3]
    same = assert_same_bytes(run, whole)
    state = json.loads((newest(run) / "state.json").read_text())
    assert (state["train"]["global_step"], state["train"]["images_seen"]) == (6, 72)
    wandb_id = (run / ".id").read_text()
    attempts = [folder.name for folder in (run / "wandb").glob("offline-run-*")]
    assert len(attempts) == 2
    assert all(name.endswith(f"-{wandb_id}") for name in attempts)
    assert (run / ".lock").read_bytes() == b""
    points = steps(run / "metrics.jsonl")
    assert points == [2, 3, 3, 5, 6, 6]
    words = (
        "{attempts} attempts under one W&B id, {points} points of the curve, none twice, the same bytes in {same} files"
    )
    figures = {"attempts": len(attempts), "points": len(points), "same": same}
    observe("kill -9 of one rank, --max_restarts 1", words, **figures)


@pytest.mark.slow
def test_torchrun_restarts_a_run_in_the_folder_that_it_began(demo: Path, tmp_path: Path, whole: Path) -> None:
    """No folder is given; and what was logged after the last checkpoint is not logged twice."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=1"]
    run, said = restarted(launcher, 6, demo, tmp_path, "--tracking.wandb=disabled")
    assert "resumed after epoch 1, step 3" in said
    assert steps(tmp_path / "before.jsonl") == [2, 3, 3, 5]
    assert steps(run / "metrics.jsonl") == [2, 3, 3, 5, 6, 6]
    assert_same_bytes(run, whole)
