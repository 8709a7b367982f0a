"""`launch/slurm.sbatch` on a real Slurm: a run that its limit stops ends with the same bytes, and an array of folds."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Whole
from tests.helpers.commands import ROOT, TINY, run
from tests.helpers.same_bytes import FLAGS, assert_same_bytes
from tests.helpers.slurm import LACKS, PATH, Slurm, slurm_cluster

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(LACKS), reason=f"needs {', '.join(LACKS)}")]
BIN = Path(sys.executable).parent
FAULT = json.dumps(["wait for SIGUSR1", 0, 4])
"""What the first attempt does before step 4: Slurm looks at limits twice a minute only."""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submit(slurm: Slurm, project: Path, *words: str | Path, **env: str) -> str:
    """Submit launch/slurm.sbatch in a project's folder whose launch/train.py may do something on the way."""
    (project / "launch").mkdir()
    (project / "launch/train.py").symlink_to(ROOT / "tests/helpers/faults.py")
    (project / "accelerate_config.yaml").symlink_to(ROOT / "accelerate_config.yaml")
    env = {"PATH": f"{BIN}:{PATH}", "PYTHONPATH": str(ROOT), "FAULT": json.dumps(["raise", 0, 1000])} | env
    said = slurm.run("sbatch", "--parsable", "--output=log.txt", *map(str, words), cwd=project, **env)
    return said.strip()


def test_a_run_on_2_nodes_that_meets_its_limit_ends_with_the_same_bytes(
    slurm: Slurm, demo: Path, tmp_path: Path, whole: Whole
) -> None:
    words = [*TINY, *FLAGS, f"--data.path={demo}", f"--run.dir={tmp_path / 'run'}", "--tracking.wandb=disabled"]
    job = submit(slurm, tmp_path, "--nodes=2", "--time=1", ROOT / "launch/slurm.sbatch", *words, FAULT=FAULT)
    try:
        slurm.wait(job, "PENDING", restarts=1)
        slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
        slurm.wait(job, "COMPLETED")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{(tmp_path / 'log.txt').read_text()}") from None
    said = (tmp_path / "log.txt").read_text()
    assert "error: stopped by SIGUSR1; the same command with the same --run.dir goes on from here" in said
    assert "resumed after epoch 1, " in said
    assert json.loads((tmp_path / "run/results.json").read_text())["world_size"] == 2
    assert_same_bytes(tmp_path / "run", whole(2)[0])


def test_an_array_of_folds_that_is_joined(slurm: Slurm, demo: Path, tmp_path: Path) -> None:
    folds = ["--folds=2", "--out=folds", *TINY, f"--data.path={demo}", "--tracking.wandb=disabled"]
    job = submit(slurm, tmp_path, "--array=0-1", ROOT / "launch/slurm.sbatch", *folds)
    assert len(slurm.wait(job, "COMPLETED")) == 2
    assert not (tmp_path / "folds/folds.json").exists()
    done = run(sys.executable, ROOT / "launch/folds.py", *folds, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "folds/folds.json").read_text())
    assert [run["fold"] for run in summary["runs"]] == [0, 1]
    assert (tmp_path / "folds/ensemble/model").is_dir()
