"""One config on 1, 2, 3 and 4 processes: same images, same pixels, same figures, same weights."""

import shutil
import signal
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skindist.data.store import clear_cache
from tests.helpers import jobs
from tests.helpers.ranks import run_ranks, said, said_by
from tests.helpers.torture import BAD, BENIGN, CONFLICTING, MALIGNANT, write_torture_folder

WORLD_SIZES = (1, 2, 3)
EXACT = ("--train.freeze_batchnorm=true",)  # BatchNorm sees one rank's images only: the one thing that differs
Observed = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def observed(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    """What each rank of each group saw and learnt."""
    folder = tmp_path_factory.mktemp("observe")
    return {n: run_ranks(n, folder / str(n), jobs.observe, demo, folder / "run", *EXACT) for n in WORLD_SIZES}


def global_batches(ranks: list[dict[str, Any]], epoch: int) -> list[list[tuple[int, str]]]:
    """The (id, pixels) of each global batch: the ranks' parts in rank order."""
    return [list(chain(*parts)) for parts in zip(*(rank["loaded"][epoch] for rank in ranks), strict=True)]


def test_cpu_processes_form_a_real_group(observed: Observed) -> None:
    assert [observed[n][0]["backend"].rpartition(".")[2] for n in WORLD_SIZES] == ["NO", "MULTI_CPU", "MULTI_CPU"]


@pytest.mark.parametrize("epoch", [0, 1])
def test_global_batches_and_augmented_pixels_are_the_same(observed: Observed, epoch: int) -> None:
    expected = global_batches(observed[1], epoch)
    assert sorted(sample_id for batch in expected for sample_id, _ in batch) == observed[1][0]["train_ids"]
    for n in WORLD_SIZES[1:]:
        assert global_batches(observed[n], epoch) == expected


def test_epochs_differ_in_order_and_pixels(observed: Observed) -> None:
    first, second = (list(chain(*global_batches(observed[1], epoch))) for epoch in (0, 1))
    assert [sample_id for sample_id, _ in first] != [sample_id for sample_id, _ in second]
    pixels = dict(first)
    assert sum(pixels[sample_id] != image for sample_id, image in second) > len(second) * 0.9


def test_every_rank_gets_the_same_predictions_bit_for_bit(observed: Observed) -> None:
    expected = observed[1][0]["first_logits"]
    assert len(set(expected)) == 12
    for rank in chain(*observed.values()):
        assert rank["first_logits"] == expected


def test_losses_agree(observed: Observed) -> None:
    for rank in chain(*observed.values()):
        assert rank["losses"] == pytest.approx(observed[1][0]["losses"], abs=1e-5)


def test_weights_agree_within_1e_5_after_5_steps(observed: Observed) -> None:
    expected = observed[1][0]["weights"]
    for rank in chain(*observed.values()):
        for name, value in expected.items():
            np.testing.assert_allclose(rank["weights"][name], value, rtol=0, atol=1e-5, err_msg=name)
        assert rank["probabilities"] == pytest.approx(observed[1][0]["probabilities"], abs=1e-5)


def test_ranks_of_a_group_have_the_same_bits(observed: Observed) -> None:
    for ranks in observed.values():
        for rank in ranks[1:]:
            assert all(np.array_equal(value, ranks[0]["weights"][name]) for name, value in rank["weights"].items())


@pytest.mark.parametrize(("world_size", "batch_size", "micro_batch_size"), [(4, 16, 2), (3, 8, 1)])
def test_accumulation_and_uneven_batches(
    demo: Path, tmp_path: Path, world_size: int, batch_size: int, micro_batch_size: int
) -> None:
    """36 training images in batches of 16 make 3 of 12: 4 ranks x 2 micro-batches get 1 or 2 images each. In batches of
    8 and 7, ranks take 2 or 3 passes of one image."""
    flags = (*EXACT, f"--train.batch_size={batch_size}")
    alone = run_ranks(1, tmp_path / "1", jobs.observe, demo, tmp_path / "run", *flags)[0]
    micro = f"--train.micro_batch_size={micro_batch_size}"
    ranks = run_ranks(world_size, tmp_path / "n", jobs.observe, demo, tmp_path / "run", *flags, micro)
    for rank in ranks:
        assert {len(micro_batch) for micro_batch in rank["loaded"][0]} <= {1, micro_batch_size}
        assert rank["losses"] == pytest.approx(alone["losses"], abs=1e-5)
        for name, value in alone["weights"].items():
            np.testing.assert_allclose(rank["weights"][name], value, rtol=0, atol=1e-5, err_msg=name)


def test_weights_of_classes_are_those_of_all_ranks(demo: Path, tmp_path: Path) -> None:
    """30 benign images and 9 malignant ones: each rank's part of a batch has other shares."""
    shutil.copytree(demo, data := tmp_path / "data")
    for image in sorted((data / "malignant").iterdir())[9:]:
        image.unlink()
    found = {}
    for power in (0, 1):
        flags = (*EXACT, f"--train.class_weights={power}")
        for n in (1, 3):
            ranks = run_ranks(n, tmp_path / f"{power}-{n}", jobs.observe, data, tmp_path / f"run{power}", *flags)
            found[power, n] = ranks[0]
    for power in (0, 1):
        assert found[power, 3]["losses"] == pytest.approx(found[power, 1]["losses"], abs=1e-5)
        assert found[power, 3]["probabilities"] == pytest.approx(found[power, 1]["probabilities"], abs=1e-5)
    assert abs(found[1, 1]["losses"][0] - found[0, 1]["losses"][0]) > 0.05


def test_all_ranks_take_the_micro_batch_that_fits_the_smallest(demo: Path, tmp_path: Path) -> None:
    """12 images a batch on 3 ranks: 4 do not fit on rank 1, so all take 2 at a time and the batch stays the same; the
    run remembers it."""
    flags = (*EXACT, "--train.epochs=1", "--train.micro_batch_size=auto")
    ranks = run_ranks(3, tmp_path / "a", jobs.fit_in_little_memory, demo, tmp_path / "run", *flags)
    assert [rank["largest"] for rank in ranks] == [4, 2, 4], "4 were tried where they fit, before training"
    assert ranks[0]["saved"] == 2
    (alone,) = run_ranks(1, tmp_path / "b", jobs.fit, demo, tmp_path / "alone", *EXACT, "--train.epochs=1")
    for rank in ranks:
        loss = rank["results"]["val"]["loss"]["value"]
        assert loss == pytest.approx(alone["val"]["loss"]["value"], abs=1e-5)
    again = run_ranks(3, tmp_path / "c", jobs.fit, demo, tmp_path / "run", *flags)
    assert again[0]["val"]["loss"] == ranks[0]["results"]["val"]["loss"]


def test_memory_that_runs_out_before_training_ends_all_ranks(demo: Path, tmp_path: Path) -> None:
    statuses = run_ranks(2, tmp_path / "ranks", jobs.warm_up_without_memory, demo, tmp_path / "run")
    assert statuses == [1, 1]
    words = said(tmp_path / "ranks", 2)
    assert "error: rank 1 of 2: out of memory with 2 images at a time: choose a smaller" in words
    assert words.count("error: ") == 1
    assert "Traceback" not in words


@pytest.mark.parametrize("killer", [signal.SIGBUS, signal.SIGKILL], ids=str)
def test_a_killed_loader_worker_is_explained(demo: Path, tmp_path: Path, killer: signal.Signals) -> None:
    """SIGBUS comes when shared memory is full, SIGKILL when the machine's memory is."""
    folder = tmp_path / "ranks"
    job = jobs.status_when_a_loader_worker_dies
    assert run_ranks(1, folder, job, int(killer), demo, tmp_path / "run") == [1]
    words = said(folder, 1)
    assert "error: a loader worker was killed: " in words
    assert "--shm-size 2g" in words
    assert "Traceback" not in words


def test_the_benchmark_of_training_runs_on_several_processes(demo: Path, tmp_path: Path) -> None:
    run_ranks(2, tmp_path, jobs.benchmark_training, demo)
    assert "| training EfficientNet-B0 on 2 x cpu, mixed precision no, images/s | " in said_by(0, tmp_path)
    assert said_by(1, tmp_path) == ""


def test_the_torture_folder_is_the_same_on_1_and_3_processes(tmp_path: Path) -> None:
    root = tmp_path / "torture"
    write_torture_folder(root)
    flags = ("--data.max_bad=0.5", f"--data.cache_dir={tmp_path / 'cache'}")
    (alone,) = run_ranks(1, tmp_path / "1", jobs.prepare, root, tmp_path / "run", *flags)
    assert dict(alone["quarantine"]) == BAD | CONFLICTING
    assert len(alone["rows"]) == BENIGN + MALIGNANT
    clear_cache(tmp_path / "cache")
    for rank in run_ranks(3, tmp_path / "3", jobs.prepare, root, tmp_path / "run", *flags):
        assert rank == alone


def test_one_decision_for_all(tmp_path: Path) -> None:
    results = run_ranks(3, tmp_path, jobs.one_decision, [0.25, 0.5, 0.75])
    assert [decided for decided, *_ in results] == [0.25] * 3
    assert [kept for _, kept, *_ in results] == [0.25, None, None], "only the main process has it"
    assert [refusals for _, _, *refusals in results] == [["no such folder"] * 2] * 3


@pytest.mark.slow
def test_runs_stop_at_the_same_epoch_with_the_same_figures(demo: Path, tmp_path: Path) -> None:
    flags = (*EXACT, "--train.epochs=8", "--early_stopping.patience=1", "--early_stopping.min_delta=0.05")
    runs = {n: run_ranks(n, tmp_path / str(n), jobs.fit, demo, tmp_path / f"run{n}", *flags) for n in WORLD_SIZES}
    alone = runs[1][0]
    assert alone["early_stopping"]["stopped_early"]
    for n, ranks in runs.items():
        assert all(rank == ranks[0] for rank in ranks)
        assert ranks[0]["world_size"] == n
        for key in ("epochs", "best_epoch", "stopped_early"):
            assert ranks[0]["early_stopping"][key] == alone["early_stopping"][key]
        for metric in ("loss", "accuracy", "auroc"):
            assert ranks[0]["test"][metric]["value"] == pytest.approx(alone["test"][metric]["value"], abs=1e-4)
        assert (tmp_path / f"run{n}/split.csv").read_text() == (tmp_path / "run1/split.csv").read_text()
