"""What a saved model says on GPUs is what it says on a CPU."""

import csv
from pathlib import Path

import pytest

from skindist.run.folder import Run
from tests.gpu.conftest import CPU, CPUS, GPU, GPUS, SHARED, Note, Place, need_gpus
from tests.helpers import jobs as any_jobs
from tests.helpers.same_bytes import FLAGS

CLOSE = 1e-3  # of a probability in float32, which GPUs may add up in TF32

ON_GPUS = [pytest.param(place, marks=pytest.mark.gpu) for place in (GPU, GPUS, SHARED)]


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.parametrize("place", [pytest.param(CPUS, marks=pytest.mark.slow), *ON_GPUS], ids=str)
def test_a_saved_model_says_the_same(demo: Path, tmp_path: Path, place: Place, note: Note) -> None:
    need_gpus(place.gpus)
    run = Run(tmp_path / "run")
    CPU.run(tmp_path / "training", "no", any_jobs.fit, demo, run.path, *FLAGS)
    said, worth = [], []
    for where, name in ((CPU, "one"), (place, "other")):
        out, maps = tmp_path / f"{name}.csv", tmp_path / f"maps {name}"
        predicting = (any_jobs.predict_files, run.path, demo, out, None, f"--explain={maps}")
        assert set(where.run(tmp_path / f"predicting {name}", "no", *predicting)) == {0}
        said.append(rows_of(out))
        assert len(list(maps.iterdir())) == len(said[-1])
        evaluating = (any_jobs.evaluate_elsewhere, run.path, demo, tmp_path / name)
        assert set(where.run(tmp_path / f"evaluating {name}", "no", *evaluating)) == {0}
        worth.append(Run(tmp_path / name).results()["test"]["auroc"]["value"])
    assert [row["path"] for row in said[0]] == [row["path"] for row in said[1]]
    pairs = [[float(row["probability"]) for row in rows] for rows in said]
    largest = max(abs(one - other) for one, other in zip(*pairs, strict=True))
    assert largest < CLOSE
    assert worth[0] == pytest.approx(worth[1], abs=0.01)
    note("predict and evaluate", place, f"a CPU's probabilities to {CLOSE:g}", f"they differ by {largest:.1g} at most")
