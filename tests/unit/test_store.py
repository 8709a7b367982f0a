"""The pixel store: timm's pixels, made once, shared, verified, and refused where there is no room."""

import errno
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data.transforms_factory import create_transform

from skindist.data import store
from skindist.data.inspection import inspect
from skindist.data.resizing import stored_size
from skindist.data.store import PixelStore, Source, clear_cache, ensure_store, store_folder
from skindist.data.transforms import central_square
from skindist.errors import UserError
from skindist.wording import volume

ORIENTATION_TAG = 0x0112


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Smooth structure, edges and grain, as a photograph has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8))
    coarse = coarse.resize((width, height), Image.Resampling.BICUBIC)
    coarse.paste((60, 30, 20), (width // 3, height // 3, width // 2, height // 2))
    grain = np.asarray(coarse, np.float32) + rng.normal(0, 3, (height, width, 1))
    return Image.fromarray(grain.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))


def source(path: Path) -> Source:
    facts = inspect(path)
    assert not facts.reason
    return Source(path, facts.sha256, facts.width, facts.height)


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """Three small pictures, the third a copy of the first."""
    for index, name in enumerate(("a.png", "b.jpg")):
        photograph(60 + 20 * index, 50, index).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    return [source(tmp_path / name) for name in ("a.png", "b.jpg", "c.png")]


def timm_pixels(path: Path, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """What timm's evaluation transform makes of the original file, in grey levels, (3, size, size)."""
    transform = create_transform((3, size, size), interpolation="bicubic", crop_pct=1.0, mean=(0,) * 3, std=(1,) * 3)
    with Image.open(path) as image:
        result: torch.Tensor = transform(ImageOps.exif_transpose(image).convert("RGB"))
    return result.numpy() * 255


EXACT = ("small.jpg", 256, 256, 1), ("wide.jpg", 300, 225, 1), ("tall.png", 150, 301, 1), ("large.png", 1201, 900, 1)
SCALED = ("large.jpg", 1201, 900, 1), ("rotated.jpg", 1500, 1001, 6), ("very large.jpg", 3000, 2000, 1)


@pytest.mark.parametrize(("name", "width", "height", "orientation"), [*EXACT, *SCALED])
def test_pixels_are_those_of_timms_evaluation_transform(
    tmp_path: Path, name: str, width: int, height: int, orientation: int
) -> None:
    """Bit for bit, but for JPEGs with 4 times the image size or more, which are decoded at a half, a quarter or an
    eighth: they differ by 0.5 of 255 grey levels on average, by 10 in one of 1,000 pixels, by 25 at a hard edge."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    photograph(width, height, 0).save(tmp_path / name, exif=exif, quality=92)
    one = source(tmp_path / name)
    store = PixelStore(ensure_store(tmp_path / "cache", [one], 224, "bicubic"))
    (position,) = store.positions([one.sha256])
    ours = central_square(store.read(position), 224).permute(2, 0, 1).numpy().astype(np.float32)
    difference = np.abs(ours - timm_pixels(one.path, 224)).round()
    if name.startswith(("small", "wide", "tall", "large.png")):
        assert difference.max() == 0
    else:
        assert 0 < difference.mean() <= 0.5
        assert np.quantile(difference, 0.999) <= 10
        assert difference.max() <= 25


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(100, 100, (24, 24)), (200, 100, (48, 24)), (100, 250, (24, 60)), (301, 200, (36, 24)), (10, 7, (34, 24))],
)
def test_sizes_are_rounded_as_torchvision_does(width: int, height: int, expected: tuple[int, int]) -> None:
    assert stored_size(width, height, 24) == expected


def test_a_second_look_makes_nothing(sources: list[Source], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "skindist")
    folder = ensure_store(tmp_path / "cache", sources, 24, "bicubic")
    assert folder == store_folder(tmp_path / "cache", sources, 24, "bicubic")
    assert "preparing 2 images at 24 px, once: 4.85 kB in" in caplog.text
    made = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    caplog.clear()
    assert ensure_store(tmp_path / "cache", sources[::-1], 24, "bicubic") == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == made
    assert caplog.text == ""
    assert sorted(file.name for file in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_content_size_and_interpolation_make_the_key(sources: list[Source], tmp_path: Path) -> None:
    keys = {
        store_folder(tmp_path, sources, 24, "bicubic"),
        store_folder(tmp_path, sources, 25, "bicubic"),
        store_folder(tmp_path, sources, 24, "bilinear"),
        store_folder(tmp_path, sources[:1], 24, "bicubic"),
    }
    assert len(keys) == 4
    moved = [one._replace(path=tmp_path / "elsewhere") for one in sources]
    assert store_folder(tmp_path, moved, 24, "bicubic") in keys


@pytest.mark.parametrize("how", ["a byte", "cut", "no manifest", "no pixels", "odd manifest"])
def test_a_damaged_store_is_made_anew(
    sources: list[Source], tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    folder = ensure_store(tmp_path / "cache", sources, 24, "bicubic")
    pixels = (folder / "pixels.arrow").read_bytes()
    if how == "a byte":
        (folder / "pixels.arrow").write_bytes(pixels[:1500] + bytes([pixels[1500] ^ 1]) + pixels[1501:])
    elif how == "cut":
        (folder / "pixels.arrow").write_bytes(pixels[:-8])
    elif how == "odd manifest":
        (folder / "manifest.json").write_text("{}")
    else:
        (folder / ("pixels.arrow" if how == "no pixels" else "manifest.json")).unlink()
    ensure_store(tmp_path / "cache", sources, 24, "bicubic")
    assert "is damaged" in caplog.text
    assert (folder / "pixels.arrow").read_bytes() == pixels


def test_bytes_are_said_in_their_unit() -> None:
    assert [volume(size) for size in (999_994, 1e6, 999_990_000, 1.5e9)] == [
        "999.99 kB", "1.00 MB", "999.99 MB", "1.50 GB"
    ]  # fmt: skip


def test_no_room_is_said_before_anything_is_written(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 4000))
    with pytest.raises(
        UserError, match=r"--data.cache_dir .*: the pixels of 2 images need 4.85 kB and 4.00 kB are free"
    ):
        ensure_store(tmp_path / "cache", sources, 24, "bicubic")
    assert [file.suffix for file in (tmp_path / "cache/pixels").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_named(sources: list[Source], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"--data.cache_dir .*cache: Not a directory; give another folder"):
        ensure_store(tmp_path / "cache", sources, 24, "bicubic")


def test_a_store_that_is_there_serves_from_a_cache_that_cannot_be_written(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One may be prepared once, and then mounted read-only on many machines."""
    folder = ensure_store(tmp_path / "cache", sources, 24, "bicubic")

    def refuse(file: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(file))

    monkeypatch.setattr(store, "_locked", refuse)
    assert ensure_store(tmp_path / "cache", sources, 24, "bicubic") == folder
    (folder / "pixels.arrow").write_bytes(b"")
    with pytest.raises(UserError, match="Read-only file system; give another folder"):
        ensure_store(tmp_path / "cache", sources, 24, "bicubic")


def test_an_image_that_changed_after_the_scan_is_refused(sources: list[Source], tmp_path: Path) -> None:
    photograph(50, 50, 9).save(sources[1].path)
    with pytest.raises(UserError, match=r"b.jpg has changed since it was inspected"):
        ensure_store(tmp_path / "cache", sources, 24, "bicubic")
    sources[1].path.unlink()
    with pytest.raises(UserError, match=r"b.jpg: cannot be read any more \(No such file or directory\)"):
        ensure_store(tmp_path / "cache", sources, 24, "bicubic")
    assert [file.suffix for file in (tmp_path / "cache/pixels").iterdir()] == [".lock"]


CODE = """
import logging, pickle, sys
from skindist.data.store import ensure_store
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
arguments = pickle.load(open(sys.argv[1], "rb"))
input()
ensure_store(*arguments)
"""


@pytest.mark.slow
def test_of_several_processes_one_makes_the_store(tmp_path: Path) -> None:
    sources = []
    for index in range(40):
        photograph(300, 200, index).save(tmp_path / f"{index}.png")
        sources.append(source(tmp_path / f"{index}.png"))
    (tmp_path / "call.pkl").write_bytes(pickle.dumps((tmp_path / "cache", sources, 128, "bicubic")))
    command = [sys.executable, "-c", CODE, str(tmp_path / "call.pkl")]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = "".join(process.communicate()[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert said.count("preparing 40 images") == 1
    store = PixelStore(store_folder(tmp_path / "cache", sources, 128, "bicubic"))
    with Image.open(tmp_path / "7.png") as image:
        expected = np.asarray(image.resize((192, 128), Image.Resampling.BICUBIC))
    assert np.array_equal(store.read(store.positions([sources[7].sha256])[0]).numpy(), expected)


def test_reading_returns_its_memory(tmp_path: Path) -> None:
    """Pages of the mapped file count as resident until they are released."""
    sources = []
    for index in range(30):
        photograph(400, 400, index).save(tmp_path / f"{index}.png")
        sources.append(source(tmp_path / f"{index}.png"))
    store = PixelStore(ensure_store(tmp_path / "cache", sources, 400, "bicubic"))
    store.release()
    before = resident_file_kb()
    total = sum(int(store.read(position).sum()) for position in store.positions([one.sha256 for one in sources]))
    assert total > 0
    assert resident_file_kb() - before > 10_000  # of 14,400
    store.release()
    assert resident_file_kb() - before < 2_000


def resident_file_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))


def test_a_store_can_be_sent_to_another_process(sources: list[Source], tmp_path: Path) -> None:
    store = PixelStore(ensure_store(tmp_path / "cache", sources, 24, "bicubic"))
    again: PixelStore = pickle.loads(pickle.dumps(store))
    for position in store.positions([one.sha256 for one in sources]):
        assert torch.equal(again.read(position), store.read(position))


@pytest.mark.slow
def test_a_store_may_be_larger_than_2_gib(tmp_path: Path) -> None:
    """Written straight into Arrow: 24 chunks of 96 MiB, each image filled with its number."""
    names = ("sha256", "width", "height", "pixels")
    schema = pa.schema(dict(zip(names, (pa.string(), pa.int32(), pa.int32(), pa.binary()), strict=True)))
    with pa.ipc.new_stream(tmp_path / "pixels.arrow", schema) as writer:
        for chunk in range(24):
            images = [bytes([chunk * 4 + index]) * (3 * 4096 * 2048) for index in range(4)]
            columns = [[str(chunk * 4 + index) for index in range(4)], [4096] * 4, [2048] * 4, images]
            writer.write_batch(
                pa.record_batch([pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)], names)
            )
    assert (tmp_path / "pixels.arrow").stat().st_size > 2**31
    store = PixelStore(tmp_path)
    for number in (0, 50, 95):
        (position,) = store.positions([str(number)])
        pixels = store.read(position)
        assert (int(pixels.min()), int(pixels.max())) == (number, number)


def test_clear_cache(sources: list[Source], tmp_path: Path) -> None:
    folder = ensure_store(tmp_path / "cache", sources, 24, "bicubic")
    (tmp_path / "cache/other").write_text("not ours")
    (tmp_path / "cache/scans").mkdir()
    (tmp_path / "cache/scans/0123456789abcdef.jsonl").touch()
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert clear_cache(tmp_path / "cache") == size
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["other"]
    assert clear_cache(tmp_path / "cache") == 0


def test_clear_cache_takes_nothing_of_the_users(tmp_path: Path) -> None:
    """A folder of images may have one that is called pixels."""
    mine = [tmp_path / "pixels/ISIC_0000001.jpg", tmp_path / "pixels/deep/2.jpg", tmp_path / "scans/a.jsonl"]
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    assert clear_cache(tmp_path) == 0
    assert [file.read_text() for file in mine] == ["mine"] * 3
