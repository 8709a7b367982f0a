"""`launch/slurm.sbatch` on a real Slurm: a run that its limit stops ends with the same bytes, and an array of folds."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skindist.cli import main
from tests.conftest import Whole
from tests.helpers.commands import ROOT, TINY
from tests.helpers.faults import WAITS
from tests.helpers.same_bytes import FLAGS, assert_same_bytes
from tests.helpers.slurm import LACKS, PATH, Slurm, slurm_cluster, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(LACKS), reason=f"needs {', '.join(LACKS)}")]
LIGHT = ("--tracking.wandb=disabled", "--evaluation.explain=0")
BIN = Path(sys.executable).parent
FAULT = json.dumps(["wait for SIGUSR1", 0, 4])
"""What the first attempt does before step 4, however long that takes: the limit is set once it waits."""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


ACCELERATE = """#!/bin/sh
[ "$1" = launch ] && shift && exec python -m accelerate.commands.launch "$@"
"""
"""The command without what its other subcommands import, which takes five seconds more where transformers is there."""


def submit(slurm: Slurm, project: Path, *words: str | Path, **env: str) -> str:
    """Submit launch/slurm.sbatch in a project's folder whose launch/train.py may do something on the way."""
    (project / "launch").mkdir()
    (project / "launch/train.py").symlink_to(ROOT / "tests/helpers/faulty.py")
    (project / "accelerate_config.yaml").symlink_to(ROOT / "accelerate_config.yaml")
    (project / "bin").mkdir()
    (project / "bin/accelerate").write_text(ACCELERATE)
    (project / "bin/accelerate").chmod(0o755)
    env = {
        "PATH": f"{project / 'bin'}:{BIN}:{PATH}",
        "PYTHONPATH": str(ROOT),
        "FAULT": json.dumps(["raise", 0, 1000]),
    } | env
    said = slurm.run("sbatch", "--parsable", "--output=log.txt", *map(str, words), cwd=project, **env)
    return said.strip()


def test_a_run_on_2_nodes_that_meets_its_limit_ends_with_the_same_bytes(
    slurm: Slurm, demo: Path, tmp_path: Path, whole: Whole
) -> None:
    words = [*TINY, *FLAGS, f"--data.path={demo}", f"--run.dir={tmp_path / 'run'}", *LIGHT]
    early = ["--time=100", "--signal=B:USR1@3000"]  # 50 minutes before the limit: time enough to end on any machine
    job = submit(slurm, tmp_path, "--nodes=2", *early, ROOT / "launch/slurm.sbatch", *words, FAULT=FAULT)
    log = tmp_path / "log.txt"

    def set_limit(minutes: int, after: str) -> None:
        """Once the job has said this."""
        wait_until(lambda: log.exists() and after in log.read_text(), slurm)
        slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")

    try:
        set_limit(40, after=WAITS)
        set_limit(100, after="error: stopped by SIGUSR1; the same command with the same --run.dir goes on from here")
        slurm.wait(job, "COMPLETED", restarts=1)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()}") from None
    said = log.read_text()
    assert "resumed after " in said
    assert json.loads((tmp_path / "run/results.json").read_text())["world_size"] == 2
    assert_same_bytes(tmp_path / "run", whole(2)[0])


def test_an_array_of_folds_that_is_joined(
    slurm: Slurm, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = ["--folds=2", "--out=folds", *TINY, f"--data.path={demo}", *LIGHT]
    job = submit(slurm, tmp_path, "--array=0-1", ROOT / "launch/slurm.sbatch", *folds, PROCESSES="2")
    assert len(slurm.wait(job, "COMPLETED")) == 2
    assert not (tmp_path / "folds/folds.json").exists()
    monkeypatch.chdir(tmp_path)
    assert main(["folds", *folds]) == 0
    summary = json.loads((tmp_path / "folds/folds.json").read_text())
    assert [run["fold"] for run in summary["runs"]] == [0, 1]
    runs = [json.loads(file.read_text()) for file in tmp_path.glob("folds/runs/*/results.json")]
    assert [run["world_size"] for run in runs] == [2, 2]
    assert (tmp_path / "folds/ensemble/model").is_dir()


SKINDIST = """#!/bin/sh
[ -n "$SLURM_RESTART_COUNT" ] || exec srun sh -c 'touch "started$SLURM_ARRAY_TASK_ID" && sleep 600'
"""
"""What an array runs, in a test of the signals alone."""


def test_a_signal_to_one_task_of_an_array_leaves_the_others_alone(slurm: Slurm, tmp_path: Path) -> None:
    """The number of one of the tasks is that of the whole array."""
    (tmp_path / "skindist").write_text(SKINDIST)
    (tmp_path / "skindist").chmod(0o755)
    job = submit(slurm, tmp_path, "--array=0-1", ROOT / "launch/slurm.sbatch", PATH=f"{tmp_path}:{PATH}")
    wait_until(lambda: len(list(tmp_path.glob("started*"))) == 2, slurm)
    (first,) = (task["ArrayTaskId"] for task in slurm.jobs(job) if task["JobId"] == job)
    slurm.run("scancel", "--batch", "--signal=USR1", f"{job}_{first}")
    slurm.wait(f"{job}_{first}", "COMPLETED", restarts=1)
    (other,) = (task for task in slurm.jobs(job) if task["ArrayTaskId"] != first)
    assert (other["JobState"], other["Restarts"]) == ("RUNNING", "0")
