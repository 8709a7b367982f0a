"""What belongs together: links, groups, and near-duplicates told from pictures that are merely alike."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from skindist.data import duplicates
from skindist.data.demo import draw_lesion
from skindist.data.duplicates import Link, find_links, group_images, near_duplicates, straddling
from skindist.data.inspection import Facts, inspect
from skindist.data.scan import ImageFile
from skindist.data.store import clear_cache


def image(path: str, sha256: str, label: int = 0) -> ImageFile:
    return ImageFile(path, label, "", Facts("", sha256=sha256))


def test_links_by_content_and_metadata(tmp_path: Path) -> None:
    images = [image("a", "1"), image("b", "2"), image("c", "1"), image("d", "3"), image("e", "4")]
    metadata = {
        "a": {"lesion_id": "L1", "patient_id": "P1"},
        "b": {"lesion_id": "", "patient_id": "P2"},
        "d": {"lesion_id": "L1", "patient_id": ""},
        "e": {"patient_id": "P2"},
    }
    links = find_links(images, metadata, tmp_path)
    assert links == [Link("same bytes", (0, 2)), Link("lesion", (0, 3)), Link("patient", (1, 4))]
    groups = group_images(images, links)
    assert groups == ["1", "2", "1", "1", "2"]
    assert straddling(links, [0, 0, 0, 1, 0]) == [Link("lesion", (0, 3))]


def test_files_of_one_isic_id_belong_together_and_plain_copies_are_said_once(tmp_path: Path) -> None:
    names = ["a/ISIC_0000001_crop1.jpg", "b/isic_0000001_crop2.jpg", "b/ISIC_00000011.jpg", "x.jpg"]
    images = [image(name, str(index)) for index, name in enumerate(names)]
    links = find_links(images, {}, tmp_path)
    assert links == [Link("ISIC id", (0, 1))]
    assert group_images(images, links) == ["0", "0", "2", "3"]
    copies = [image("a/ISIC_0000002.jpg", "1"), image("b/ISIC_0000002.jpg", "1")]
    assert find_links(copies, {}, tmp_path) == [Link("same bytes", (0, 1))]


def test_chains_make_one_group_whatever_the_order() -> None:
    images = [image(str(index), f"{index:02}") for index in range(20)]
    chain = [Link("near-duplicate", (index, index + 1)) for index in range(0, 18, 2)]
    chain += [Link("lesion", (index, index + 1)) for index in range(1, 18, 2)]
    assert group_images(images, chain) == ["00"] * 19 + ["19"]
    assert group_images(images, chain[::-1]) == ["00"] * 19 + ["19"]
    assert group_images(images, []) == [each.sha256 for each in images]


def draw(index: int) -> Image.Image:
    return draw_lesion(np.random.default_rng([11, index]), malignant=bool(index % 2), size=96)


Change = Callable[[Image.Image], Image.Image]
CHANGES: dict[str, Change] = {
    "turned": lambda picture: picture.transpose(Image.Transpose.ROTATE_270),
    "mirrored": lambda picture: picture.transpose(Image.Transpose.TRANSVERSE),
    "enlarged": lambda picture: picture.resize((250, 250), Image.Resampling.BICUBIC),
    "squashed": lambda picture: picture.resize((150, 110)),
    "darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.8),
    "recoloured": lambda picture: ImageEnhance.Color(picture).enhance(0.6),
    "slightly cropped": lambda picture: picture.crop((2, 2, 94, 94)),
}


@pytest.fixture(scope="module")
def large_set(tmp_path_factory: pytest.TempPathFactory) -> list[ImageFile]:
    """300 unrelated pictures, then picture i changed in the i-th way and encoded as JPEG."""
    folder = tmp_path_factory.mktemp("pictures")
    pictures = [draw(index) for index in range(300)]
    pictures += [change(pictures[index]) for index, change in enumerate(CHANGES.values())]
    return write(folder, pictures)


def write(folder: Path, pictures: Sequence[Image.Image]) -> list[ImageFile]:
    images = []
    for index, picture in enumerate(pictures):
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=80)
        (folder / f"{index}.jpg").write_bytes(content.getvalue())
        images.append(ImageFile(f"{index}.jpg", 0, "", inspect(folder / f"{index}.jpg")))
    return images


def test_changed_pictures_are_found_and_unrelated_ones_are_not(large_set: list[ImageFile], tmp_path: Path) -> None:
    found = {link.members for link in near_duplicates(large_set, tmp_path)}
    assert found == {(index, 300 + index) for index in range(len(CHANGES))}


def test_a_small_set_has_certain_pairs_only(large_set: list[ImageFile], tmp_path: Path) -> None:
    few = [*large_set[:20], *large_set[300:303]]
    links = near_duplicates(few, tmp_path)
    assert {link.members for link in links} == {(0, 20), (1, 21), (2, 22)}
    assert all(link.distance <= 24 for link in links)


def test_near_duplicates_are_searched_once(
    large_set: list[ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "cache" / "scans"
    links = near_duplicates(large_set, memory)
    assert len(links) == len(CHANGES)
    with monkeypatch.context() as patched:
        patched.setattr(duplicates, "_pairs_within", None)
        assert near_duplicates(large_set, memory) == links
        with pytest.raises(TypeError):
            near_duplicates(large_set[1:], memory)
    (file,) = memory.iterdir()
    file.write_text("{")
    assert near_duplicates(large_set, memory) == links
    assert clear_cache(tmp_path / "cache") > 0
    assert not memory.exists()


def test_a_memory_that_cannot_be_written_is_no_fault(large_set: list[ImageFile], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert len(near_duplicates(large_set, tmp_path / "file")) == len(CHANGES)


def test_copies_and_pictures_without_structure_are_no_near_duplicates(tmp_path: Path) -> None:
    plain = [Image.new("RGB", (64, 64), (200, value, 150)) for value in (100, 110, 120)]
    images = write(tmp_path, [*plain, draw(0), draw(0)])
    assert near_duplicates(images, tmp_path) == []
    assert find_links(images, {}, tmp_path) == [Link("same bytes", (3, 4))]


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(large_set: list[ImageFile], count: int, tmp_path: Path) -> None:
    assert find_links(large_set[:count], {}, tmp_path) == []
    assert len(group_images(large_set[:count], [])) == count
