from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from skindist.data.demo import draw_lesion, write_demo_data
from skindist.data.scan import CLASSES
from skindist.errors import UserError
from tests.helpers.disks import room_for

Floats = NDArray[np.float64]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.png")}


@pytest.fixture(scope="module")
def pictures() -> Floats:
    """200 pictures of each class, (2, 200, 64, 64, 3) in [0, 255]."""
    return np.array(
        [
            [np.asarray(draw_lesion(np.random.default_rng([0, label, index]), bool(label), 64)) for index in range(200)]
            for label in (0, 1)
        ],
        dtype=np.float64,
    )


def separation(feature: Floats) -> float:
    """Area under the ROC curve, whichever way round, of one number per picture, (2, n): 0.5 is chance."""
    benign, malignant = feature
    above = (malignant[:, None] > benign).mean()
    return float(max(above, 1 - above))


def nearest_centroid_accuracy(features: Floats) -> float:
    """Centroids from the first half of each class, (2, n, k), accuracy on the second."""
    half = features.shape[1] // 2
    centroids = features[:, :half].mean(1)
    distances = np.linalg.norm(features[:, half:, None] - centroids, axis=-1)
    return float((distances.argmin(-1) == np.array([[0], [1]])).mean())


def lesion_masks(pictures: Floats) -> NDArray[np.bool_]:
    """The largest dark blob near the middle, hair closed away: a crude segmentation, (2, n, side, side)."""

    def segment(picture: Floats) -> NDArray[np.bool_]:
        green = ndimage.grey_closing(picture[..., 1], (5, 5))
        skin, lesion = np.percentile(green[8:-8, 8:-8], 75), np.percentile(green[24:40, 24:40], 25)
        blobs, _ = ndimage.label(green < (skin + lesion) / 2)
        sizes = np.bincount(blobs[16:48, 16:48].ravel(), minlength=2)
        largest: NDArray[np.bool_] = blobs == 1 + sizes[1:].argmax()
        return largest

    return np.array([[segment(picture) for picture in group] for group in pictures])


def test_same_seed_gives_the_same_bytes_and_another_seed_other_pictures(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        write_demo_data(tmp_path / name, count=6, size=48, seed=seed)
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)
    assert len(set(one.values())) == 6


def test_larger_count_keeps_the_earlier_pictures(tmp_path: Path) -> None:
    write_demo_data(tmp_path / "few", count=4, size=32)
    write_demo_data(tmp_path / "many", count=10, size=32)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    assert few.items() < many.items()


def test_half_of_the_pictures_go_to_each_class(tmp_path: Path) -> None:
    write_demo_data(tmp_path / "new" / "folder", count=8, size=40)
    names = [f"{index:04d}.png" for index in range(4)]
    assert sorted(contents(tmp_path / "new" / "folder")) == [f"{label}/{name}" for label in CLASSES for name in names]
    with Image.open(tmp_path / "new" / "folder" / "benign" / "0000.png") as picture:
        assert (picture.size, picture.mode) == ((40, 40), "RGB")


@pytest.mark.parametrize("size", [32, 33, 96, 200])
def test_picture_has_the_asked_size(size: int) -> None:
    picture = draw_lesion(np.random.default_rng(0), malignant=True, size=size)
    assert (picture.size, picture.mode) == ((size, size), "RGB")


def test_mean_colour_does_not_give_the_class(pictures: Floats) -> None:
    assert nearest_centroid_accuracy(pictures.mean((2, 3))) < 0.75


@pytest.mark.parametrize(
    "nuisance",
    [
        lambda pictures: pictures.mean((2, 3, 4)),  # exposure, skin tone and lesion size
        lambda pictures: pictures[:, :, :6, :6].mean((2, 3, 4)),  # vignette and dark corners
        lambda pictures: pictures[:, :, :6].min(axis=(2, 3, 4)),  # hair at the rim
        lambda pictures: lesion_masks(pictures).mean((2, 3)),  # lesion size
    ],
    ids=["darkness", "corner", "rim", "area"],
)
def test_nuisances_do_not_give_the_class(pictures: Floats, nuisance: Callable[[Floats], Floats]) -> None:
    assert separation(nuisance(pictures)) < 0.65


def test_shape_and_colour_do_separate_the_classes(pictures: Floats) -> None:
    masks = lesion_masks(pictures)
    filled = masks.sum((2, 3)) / np.array(
        [[np.prod([np.ptp(axis) + 1 for axis in np.nonzero(mask)]) for mask in group] for group in masks]
    )
    hue = (pictures[..., 0] - pictures[..., 2]) / (1 + pictures.sum(-1))
    spread = np.array([[h[m].std() for h, m in zip(*pair, strict=True)] for pair in zip(hue, masks, strict=True)])
    assert separation(filled) > 0.8
    assert separation(spread) > 0.8
    scores = np.stack([filled / filled.std(), spread / spread.std()], axis=-1)
    assert nearest_centroid_accuracy(scores) > 0.8


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": 7}, {"size": 31}, {"size": 2049}, {"seed": -1}])
def test_impossible_wish_is_refused_before_anything_is_written(tmp_path: Path, wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(UserError, match=f"^{name} is {wrong[name]}.*: give"):
        write_demo_data(tmp_path / "demo", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty directory"):
        write_demo_data(tmp_path, count=2, size=32)
    with pytest.raises(UserError, match="not an empty directory"):
        write_demo_data(tmp_path / "keep.txt", count=2, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]
    assert (tmp_path / "keep.txt").read_text() == "mine"


def test_a_full_disk_leaves_no_half_of_it(tmp_path: Path) -> None:
    with room_for(100), pytest.raises(UserError, match="demo is not written"):
        write_demo_data(tmp_path / "demo", count=4, size=32)
    assert list(tmp_path.iterdir()) == []
