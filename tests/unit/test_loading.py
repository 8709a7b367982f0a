"""Batches: who gets which images, and that what they look like is a function of (seed, epoch, sample id)."""

import os
import signal
import subprocess
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from skindist.data.loading import (
    LesionImages,
    TrainBatches,
    equal_parts,
    eval_batches,
    global_batches,
    loader_workers,
    make_loader,
    workers_that_fit,
)
from skindist.data.prepare import Prepared, prepare
from skindist.data.split import Row
from skindist.data.store import PixelStore, Source, ensure_store
from skindist.data.transforms import IDENTITY
from skindist.distributed.group import join_group
from skindist.errors import UserError
from skindist.launcher import Launch
from skindist.prediction import loaders as module
from skindist.recipe import DataConfig, TrainConfig
from skindist.training.trainer import build_learner, build_loaders
from tests.helpers import jobs
from tests.helpers.jobs import tiny_config
from tests.helpers.ranks import end_ranks, start_ranks

CPU = torch.device("cpu")


def test_each_id_once_in_equal_parts() -> None:
    batches = global_batches(np.arange(100, 146), batch_size=32, seed=0, epoch=0)
    assert [len(batch) for batch in batches] == [23, 23]
    assert sorted(np.concatenate(batches)) == list(range(100, 146))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return list(np.concatenate(global_batches(np.arange(50), 16, seed, epoch)))

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_the_ranks_parts_make_up_the_global_batch(world_size: int, accumulation_steps: int) -> None:
    part = -(-24 // world_size)
    config = TrainConfig(batch_size=24, micro_batch_size=-(-part // accumulation_steps))
    ranks = [TrainBatches(range(50), config, 7, rank, world_size) for rank in range(world_size)]
    for sampler in ranks:
        sampler.epoch = 5
    assert all(len(list(sampler)) == len(sampler) == 3 * accumulation_steps for sampler in ranks)
    parts = [list(sampler) for sampler in ranks]
    for step, expected in enumerate(global_batches(np.arange(50), 24, 7, 5)):
        mine = slice(step * accumulation_steps, (step + 1) * accumulation_steps)
        assert list(chain(*(chain(*part[mine]) for part in parts))) == [(5, sample_id) for sample_id in expected]


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size", "expected"),
    [(1, None, [32]), (3, None, [11]), (3, 11, [11]), (3, 10, [6, 6]), (2, 5, [4, 4, 4, 4]), (1, 1, [1] * 32)],
)
def test_a_part_is_made_of_as_many_micro_batches_as_it_takes(
    world_size: int, micro_batch_size: int | None, expected: list[int]
) -> None:
    config = TrainConfig(batch_size=32, micro_batch_size=micro_batch_size)
    sampler = TrainBatches(range(32), config, 0, 0, world_size)
    assert sampler.accumulation_steps == len(expected)
    assert [len(keys) for keys in sampler] == expected


def test_too_few_images_for_the_processes_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"a global batch of 2 images \(5 training images, --train.batch_size 4\) .* 4 proc"
    ):
        TrainBatches(range(5), TrainConfig(batch_size=4), 0, 0, 4)
    with pytest.raises(UserError, match="too small for 2 processes x 3 micro-batches"):
        TrainBatches(range(5), TrainConfig(batch_size=8, micro_batch_size=1, sync_batchnorm=True), 0, 0, 2)


@pytest.mark.parametrize(("world_size", "passes"), [(1, [[5, 4]]), (2, [[3, 2], [2, 2]]), (4, [[2, 1]] + [[1, 1]] * 3)])
def test_a_batch_with_fewer_images_than_passes_has_none_that_is_empty(world_size: int, passes: list[list[int]]) -> None:
    """9 images in batches of 5 and 4, one at a time; then the second batch alone, as a run goes on in mid-epoch."""
    config = TrainConfig(batch_size=5, micro_batch_size=1)
    ranks = [TrainBatches(range(9), config, 0, rank, world_size) for rank in range(world_size)]
    assert [[sampler.passes(size)[sampler.rank] for size in (5, 4)] for sampler in ranks] == passes
    for first, batch in enumerate(global_batches(np.arange(9), 5, 0, 0)):
        for sampler in ranks:
            sampler.first_step = first
        parts = [list(sampler) for sampler in ranks]
        assert [len(part) for part in parts] == [sum(mine[first:]) for mine in passes] == [len(mine) for mine in ranks]
        now = [part[: mine[first]] for part, mine in zip(parts, passes, strict=True)]
        assert list(chain(*now)) == [[(0, sample_id)] for sample_id in batch]


@pytest.mark.parametrize(
    ("images", "batch_size", "micro_batch_size", "passes"),
    [(65, 64, 4, 9), (48, 32, 1, 24), (64, 64, 4, 16), (10, 64, 4, 3)],
)
def test_a_batch_is_accumulated_from_as_few_passes_as_it_takes(
    images: int, batch_size: int, micro_batch_size: int, passes: int
) -> None:
    """65 images make batches of 33 and 32, not of 64."""
    batches = TrainBatches(
        range(images), TrainConfig(batch_size=batch_size, micro_batch_size=micro_batch_size), 0, 0, 1
    )
    assert batches.accumulation_steps == passes
    assert max(len(keys) for keys in batches) <= micro_batch_size
    assert sum(len(keys) for keys in batches) == images


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_deals_out_whole_batches(world_size: int) -> None:
    ids = list(range(3, 25))
    alone = eval_batches(ids, 4, 0, 1)
    dealt = [eval_batches(ids, 4, rank, world_size) for rank in range(world_size)]
    assert sorted(batch for batches in dealt for batch in batches if batch) == alone
    assert len({len(batches) for batches in dealt}) == 1, "all take as many turns"
    assert [sample_id for batch in alone for _, sample_id in batch] == ids


@pytest.fixture(scope="module")
def prepared(demo: Path) -> Prepared:
    return prepare(DataConfig(path=str(demo), fractions=(0.6, 0.2, 0.2)), seed=0)


@pytest.fixture(scope="module")
def store(demo: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> PixelStore:
    sources = [
        Source(demo / row.path, row.sha256, *size) for row, size in zip(prepared.rows, prepared.sizes, strict=True)
    ]
    return PixelStore(ensure_store(tmp_path_factory.mktemp("cache"), sources, 24, "bicubic"))


@pytest.fixture(scope="module")
def images(store: PixelStore, prepared: Prepared) -> LesionImages:
    return LesionImages(store, prepared.rows, size=24, seed=0, augmented=True)


def test_views_depend_on_epoch_and_id_alone(images: LesionImages) -> None:
    first = images.__getitems__([(2, 7), (2, 8)])
    torch.rand(11)
    again = images.__getitems__([(0, 1), (2, 8), (2, 7)])
    assert torch.equal(again.images_BCHW[[2, 1]], first.images_BCHW)
    assert torch.equal(again.colours_B2C[[2, 1]], first.colours_B2C)
    other = images.__getitems__([(3, 7)])
    assert not torch.equal(other.images_BCHW[0], first.images_BCHW[0])
    assert not torch.equal(other.colours_B2C[0], first.colours_B2C[0])
    assert (first.images_BCHW.dtype, first.images_BCHW.shape) == (torch.uint8, (2, 3, 24, 24))
    assert first.images_BCHW.is_contiguous(memory_format=torch.channels_last)


def test_labels_ids_and_plain_pixels(demo: Path, store: PixelStore, prepared: Prepared) -> None:
    plain = LesionImages(store, prepared.rows, size=24, seed=0, augmented=False)
    batch = plain.__getitems__([(0, 0), (5, 59), (1, 30)])
    assert batch.ids_B.tolist() == [0, 59, 30]
    assert batch.labels_B.tolist() == [prepared.rows[sample_id].label for sample_id in (0, 59, 30)]
    assert torch.equal(batch.colours_B2C, IDENTITY.repeat(3, 1, 1))
    with Image.open(demo / prepared.rows[59].path) as image:
        expected = np.asarray(image.convert("RGB").resize((24, 24), Image.Resampling.BICUBIC))
    assert np.array_equal(batch.images_BCHW[1].permute(1, 2, 0).numpy(), expected)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a single core
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_see_what_the_process_sees_in_every_epoch(images: LesionImages, start_method: str) -> None:
    config = TrainConfig(batch_size=12)
    samplers = [TrainBatches(range(36), config, 0, 0, 1) for _ in range(2)]
    loaders = [make_loader(images, sampler, CPU, workers) for sampler, workers in zip(samplers, (0, 2), strict=True)]
    loaders[1].multiprocessing_context = start_method
    seen = []
    for epoch in (0, 1):
        for sampler in samplers:
            sampler.epoch = epoch
        for mine, theirs in zip(*loaders, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
            assert theirs.images_BCHW.is_contiguous(memory_format=torch.channels_last)
            seen.append(mine.images_BCHW)
    assert not torch.equal(seen[0], seen[3])


def test_workers_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skindist.data.loading.available_cores", lambda: 24)
    cuda = torch.device("cuda")
    assert loader_workers(DataConfig(), CPU, 1) == 0
    assert [loader_workers(DataConfig(), cuda, n) for n in (1, 4, 8, 48)] == [8, 6, 3, 1]
    assert loader_workers(DataConfig(num_workers=5), CPU, 1) == 5


def test_only_as_many_workers_as_shared_memory_has_room_for(caplog: pytest.LogCaptureFixture) -> None:
    """8 workers with 4 batches of 64 images of 224 pixels: 294 MiB, of which docker's 64 MiB hold one worker's."""
    assert [workers_that_fit(8, 64, 224, 1, free) for free in (None, 400 << 20)] == [8, 8]
    assert workers_that_fit(0, 64, 224, 1, 0) == 0
    assert caplog.text == ""
    assert workers_that_fit(8, 64, 224, 1, 64 << 20) == 1
    assert "64 MiB are free in /dev/shm, enough for 1 loader worker of 8 for each process" in caplog.text
    assert "docker run --shm-size 1g" in caplog.text
    assert [workers_that_fit(8, 64, 224, local, 400 << 20) for local in (2, 8, 9)] == [4, 1, 0]


def test_runs_side_by_side_share_the_cores_and_the_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator: Any = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr("skindist.distributed.group.processes_on_my_cores", lambda _: 2)
    monkeypatch.setattr("skindist.data.loading.available_cores", lambda: 24)
    found = []
    for at_once, free in ((1, None), (4, None), (1, 400 << 20), (4, 400 << 20)):
        monkeypatch.setattr(module, "free_shared_memory", lambda free=free: free)
        monkeypatch.setattr(module, "this_launch", lambda n=at_once: Launch(local_world_size=2, at_once=n))
        found.append(module.choose_workers(accelerator, DataConfig(image_size=224), 64))
    assert found == [8, 3, 4, 1]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a single core
def test_a_run_asks_how_much_shared_memory_is_free(
    demo: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--data.num_workers=2", "--train.batch_size=12", "--train.eval_batch_size=4", "--data.image_size=32"]
    config = tiny_config(demo, Path("unused"), *flags)
    learner = build_learner(join_group(), config)
    for free, workers in ((2**30, 2), (4 * 12 * 3 * 32**2 * 2, 1), (4 * 12 * 3 * 32**2, 0)):
        monkeypatch.setattr(module, "free_shared_memory", lambda free=free: free)
        loaders = build_loaders(learner, config, prepared)
        assert [loader.num_workers for loader in (loaders.train.loader, loaders.val.loader)] == [workers] * 2
    assert caplog.text.count("--shm-size 1g") == 2


@pytest.mark.parametrize(
    ("count", "parts", "sizes"), [(8, 2, [4, 4]), (7, 2, [4, 3]), (5, 3, [2, 2, 1]), (1, 2, [1, 0])]
)
def test_parts_are_those_that_processes_get(count: int, parts: int, sizes: list[int]) -> None:
    """A GPU captures steps over as many images as its process will have."""
    assert equal_parts(count, parts) == sizes
    if count >= parts:
        batches = [
            TrainBatches(range(count), TrainConfig(batch_size=count), seed=0, rank=rank, world_size=parts)
            for rank in range(parts)
        ]
        assert [len(part) for mine in batches for part in mine] == sizes


@pytest.mark.parametrize(("batches", "workers"), [(0, 0), (1, 1), (2, 2), (3, 2)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a single core
def test_no_worker_is_started_for_nothing(images: LesionImages, batches: int, workers: int) -> None:
    keys = [[(0, number)] for number in range(batches)]
    loader = make_loader(images, keys, CPU, num_workers=2)
    assert loader.num_workers == workers
    assert [batch.ids_B.item() for batch in loader] == list(range(batches))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a single core
def test_a_launchers_signals_do_not_take_the_loader_workers(images: LesionImages) -> None:
    """SIGTERM, SIGUSR1 and SIGINT from another process; the training process itself ends them."""
    keys = [[(0, number)] for number in range(12)]
    loader = make_loader(images, keys, CPU, num_workers=2)
    batches: Any = iter(loader)
    seen = [next(batches).ids_B.item() for _ in range(2)]  # one of each worker: both have begun
    workers = list(batches._workers)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        for worker in workers:
            subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
    seen += [batch.ids_B.item() for batch in batches]
    assert seen == list(range(12))
    assert all(worker.is_alive() for worker in workers)
    del batches, loader
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0


def test_a_worker_whose_parent_was_killed_as_it_began_ends_too(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (process,) = start_ranks(1, tmp_path, jobs.leave_an_orphan, pipe)
    assert pipe.read_text() == ""
    assert end_ranks([process]) == [-signal.SIGKILL]


def leave_a_loader_behind(store: Path, rows: list[Row]) -> None:
    images = LesionImages(PixelStore(store), rows, size=24, seed=0, augmented=True)
    batches = iter(make_loader(images, [[(0, number)] for number in range(12)], CPU, num_workers=1))
    next(batches)
    LEFT.append(batches)


LEFT: list[Any] = []


def test_a_process_ends_although_its_loader_is_alive(store: PixelStore, prepared: Prepared, tmp_path: Path) -> None:
    assert end_ranks(start_ranks(1, tmp_path, leave_a_loader_behind, store.folder, prepared.rows), 60) == [0]
