"""Batches: who gets which images, and that the pixels are a function of (seed, epoch, sample id)."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from skindist.config import DataConfig, TrainConfig
from skindist.data.loading import LesionImages, TrainBatches, eval_batches, global_batches, loader_workers, make_loader
from skindist.data.scan import scan_folder
from skindist.data.split import make_split
from skindist.data.transforms import eval_transform, normalizer, train_transform
from skindist.errors import UserError

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
    config = TrainConfig(batch_size=24, accumulation_steps=accumulation_steps)
    ranks = [TrainBatches(range(50), config, 7, rank, world_size) for rank in range(world_size)]
    for sampler in ranks:
        sampler.epoch = 5
    assert all(len(list(sampler)) == len(sampler) == 3 * accumulation_steps for sampler in ranks)
    parts = [list(sampler) for sampler in ranks]
    for step, expected in enumerate(global_batches(np.arange(50), 24, 7, 5)):
        mine = slice(step * accumulation_steps, (step + 1) * accumulation_steps)
        assert list(chain(*(chain(*part[mine]) for part in parts))) == [(5, sample_id) for sample_id in expected]


def test_an_indivisible_batch_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"--train.batch_size 32 .* = 3 x 1; nearest: 33"):
        TrainBatches(range(100), TrainConfig(batch_size=32), 0, 0, 3)


def test_too_few_images_for_the_processes_are_refused() -> None:
    with pytest.raises(UserError, match="5 training images are too few for 4 processes"):
        TrainBatches(range(5), TrainConfig(batch_size=4), 0, 0, 4)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_deals_out_whole_batches(world_size: int) -> None:
    ids = list(range(3, 25))
    alone = eval_batches(ids, 4, 0, 1)
    dealt = [eval_batches(ids, 4, rank, world_size) for rank in range(world_size)]
    assert sorted(chain(*dealt)) == sorted(alone)
    assert [sample_id for batch in alone for _, sample_id in batch] == ids


@pytest.fixture(scope="module")
def images(demo: Path) -> LesionImages:
    rows = make_split(scan_folder(demo), (0.6, 0.2, 0.2), seed=0)
    return LesionImages(demo, rows, size=24, seed=0, augmented=True)


def test_pixels_depend_on_epoch_and_id_alone(images: LesionImages) -> None:
    first = images[2, 7][1]
    torch.rand(11)
    images[0, 1]
    assert torch.equal(images[2, 7][1], first)
    assert not torch.equal(images[3, 7][1], first)
    assert (first.dtype, first.shape) == (torch.uint8, (3, 24, 24))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a single core
def test_workers_see_what_the_process_sees_in_every_epoch(images: LesionImages) -> None:
    config = TrainConfig(batch_size=12)
    samplers = [TrainBatches(range(36), config, 0, 0, 1) for _ in range(2)]
    loaders = [make_loader(images, sampler, CPU, workers) for sampler, workers in zip(samplers, (0, 2), strict=True)]
    seen = []
    for epoch in (0, 1):
        for sampler in samplers:
            sampler.epoch = epoch
        for mine, theirs in zip(*loaders, strict=True):
            assert torch.equal(mine.ids_B, theirs.ids_B)
            assert torch.equal(mine.images_BCHW, theirs.images_BCHW)
            assert mine.images_BCHW.dtype == torch.uint8
            seen.append(mine.images_BCHW)
    assert not torch.equal(seen[0], seen[3])


def test_labels_and_plain_pixels(demo: Path) -> None:
    rows = make_split(scan_folder(demo), (0.6, 0.2, 0.2), seed=0)
    plain = LesionImages(demo, rows, size=32, seed=0, augmented=False)
    for sample_id in (0, 59):
        found_id, pixels, label = plain[0, sample_id]
        assert (found_id, label) == (sample_id, rows[sample_id].label)
        expected = np.asarray(Image.open(demo / rows[sample_id].path).convert("RGB"))
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    for name in ("benign", "malignant"):
        (tmp_path / name).mkdir()
        for index in range(3):
            image = Image.new("RGB", (16, 16), (0, 0, index + 100 * (name == "benign")))
            image.paste((255, 0, 0), (0, 0, 16, 8))  # the upper half is red
            exif = Image.Exif()
            exif[0x0112] = 3  # shown upside down
            image.save(tmp_path / f"{name}/{index}.png", exif=exif)
    rows = make_split(scan_folder(tmp_path), (0.4, 0.3, 0.3), seed=0)
    pixels = LesionImages(tmp_path, rows, size=16, seed=0, augmented=False)[0, 0][1]
    assert pixels[0, :8].max() == 0
    assert pixels[0, 8:].min() == 255


def test_eval_transform_keeps_the_middle_of_the_short_side() -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste((255, 255, 255), (8, 0, 32, 20))
    assert torch.equal(eval_transform(10)(image), torch.full((3, 10, 10), 255, dtype=torch.uint8))


def test_train_transform_gives_squares_of_the_size_asked() -> None:
    assert train_transform(48)(Image.new("RGB", (60, 30))).shape == (3, 48, 48)


def test_normalizer_by_hand() -> None:
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    result = normalizer((0.5, 0.4, 0.1), (0.5, 0.2, 0.1), CPU)(pixels)
    assert result.dtype == torch.float32
    assert result.flatten().tolist() == pytest.approx([-1.0, 3.0, 1.0], abs=1e-5)


def test_workers_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skindist.data.loading.available_cores", lambda: 24)
    cuda = torch.device("cuda")
    assert loader_workers(DataConfig(), CPU, 1) == 0
    assert [loader_workers(DataConfig(), cuda, n) for n in (1, 4, 8, 48)] == [8, 6, 3, 1]
    assert loader_workers(DataConfig(num_workers=5), CPU, 1) == 5
