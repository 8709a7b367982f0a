"""One file: every way in which it can be bad, and what is noted of the good ones."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from skindist.data.demo import draw_lesion
from skindist.data.inspection import ORIENTATIONS, Facts, decode, inspect, reading_images, upright_size


@pytest.fixture(scope="module")
def lesion() -> Image.Image:
    return draw_lesion(np.random.default_rng(0), malignant=True, size=160)


def saved(picture: Image.Image, file_format: str, **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, file_format, **options)
    return content.getvalue()


def grey_16_bit(lesion: Image.Image) -> bytes:
    return saved(Image.fromarray(np.asarray(lesion.convert("L")).astype(np.uint16) * 257), "PNG")


def half_a_jpeg(lesion: Image.Image) -> bytes:
    content = saved(lesion, "JPEG")
    return content[: len(content) // 2]


def half_a_png(lesion: Image.Image) -> bytes:
    content = saved(lesion, "PNG")
    return content[: len(content) // 2]


def lab(lesion: Image.Image) -> Image.Image:
    return Image.merge("LAB", lesion.split())


DEEP = "16-bit or floating-point pixels"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"
BAD: list[tuple[str, Callable[[Image.Image], bytes], str]] = [
    ("a.jpg", lambda lesion: b"", "empty (0 bytes)"),
    ("a.png", lambda lesion: b"not an image", "not an image"),
    ("a.jpg", lambda lesion: EPS, "not an image"),
    ("a.jpg", lambda lesion: saved(lesion, "GIF"), "not an image"),
    ("a.GIF", lambda lesion: saved(lesion, "GIF"), "a kind of image that is not read; convert it to JPEG or PNG"),
    ("a.jpg", half_a_jpeg, "truncated"),
    ("a.png", half_a_png, "truncated"),
    (
        "a.png",
        lambda lesion: saved(lesion.resize((700, 33)), "PNG"),
        "a strip (700 x 33 pixels), too long to show a lesion",
    ),
    ("a.png", grey_16_bit, f"{DEEP} (mode I;16); convert it to 8 bits a channel"),
    ("a.tif", lambda lesion: saved(lesion.convert("F"), "TIFF"), f"{DEEP} (mode F); convert it to 8 bits a channel"),
    ("a.tif", lambda lesion: saved(lab(lesion), "TIFF"), "pixels that are not read (mode LAB); convert it to RGB"),
    ("a.png", lambda lesion: saved(lesion.resize((31, 90)), "PNG"), "too small (31 x 90 pixels; at least 32 x 32)"),
]


@pytest.mark.parametrize(("name", "make", "reason"), BAD, ids=[reason[:12] for _, _, reason in BAD])
def test_a_bad_file_has_a_reason(
    tmp_path: Path, lesion: Image.Image, name: str, make: Callable[[Image.Image], bytes], reason: str
) -> None:
    (tmp_path / name).write_bytes(make(lesion))
    assert inspect(tmp_path / name) == Facts(reason)


@pytest.mark.parametrize("pixels", [100, 60])
def test_a_decompression_bomb_is_not_decoded(
    tmp_path: Path, lesion: Image.Image, monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    """PIL warns above its limit and refuses above twice the limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels**2)
    (tmp_path / "a.png").write_bytes(saved(lesion, "PNG"))
    with reading_images():
        assert inspect(tmp_path / "a.png").reason == f"more than {pixels**2} pixels (a decompression bomb?)"


def test_a_file_that_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    assert inspect(tmp_path / "gone.png").reason == "cannot be read (No such file or directory)"
    words = inspect(tmp_path / "a\0b.png").reason or ""
    assert words.startswith("cannot be read (")
    assert "embedded null" in words


def test_what_a_good_file_tells(tmp_path: Path) -> None:
    pixels = np.full((40, 60, 3), (200, 100, 50), np.uint8)
    pixels[4:-4, 6:-6] = (0, 0, 0)  # the outermost tenth keeps its colour
    Image.fromarray(pixels).save(tmp_path / "a.PNG")
    content = (tmp_path / "a.PNG").read_bytes()
    facts = inspect(tmp_path / "a.PNG")
    assert facts[:7] == ("", (), hashlib.sha256(content).hexdigest(), len(content), "PNG", 60, 40)
    assert facts.colours[:3] == pytest.approx((72, 36, 18), abs=0.01)  # 36 % of the area
    assert facts.colours[3:6] == pytest.approx((96, 48, 24), abs=0.01)  # sqrt(0.36 * 0.64) of the value
    assert facts.colours[6:] == (200, 100, 50)
    assert len(facts.hashes) == 8 * 32
    assert facts.layout[3 * 27 : 3 * 28] == bytes((0, 0, 0))
    assert len(facts.layout) == 8 * 8 * 3


ORIENTATION_TAG = 0x0112


def with_orientation(lesion: Image.Image, orientation: int, file_format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return saved(lesion, file_format, exif=exif, quality=95)


NOTED: list[tuple[str, Callable[[Image.Image], bytes], tuple[str, ...]]] = [
    ("a.jpg", lambda lesion: saved(lesion, "JPEG"), ()),
    ("a.JPEG", lambda lesion: saved(lesion.convert("L"), "JPEG"), ()),
    ("a.jpg", lambda lesion: saved(lesion, "PNG"), ("extension",)),
    ("a", lambda lesion: saved(lesion, "WEBP"), ("extension",)),
    ("a.jpg", lambda lesion: saved(lesion.convert("CMYK"), "JPEG"), ("CMYK",)),
    ("a.png", lambda lesion: saved(lesion.convert("P"), "PNG"), ("palette",)),
    ("a.png", lambda lesion: saved(lesion.convert("P"), "PNG", transparency=0), ("palette", "alpha")),
    ("a.png", lambda lesion: saved(lesion.convert("RGBA"), "PNG"), ("alpha",)),
    ("a.jpg", lambda lesion: with_orientation(lesion, 1), ()),
    ("a.jpg", lambda lesion: with_orientation(lesion, 6), ("EXIF rotation",)),
    ("a.tif", lambda lesion: saved(lesion, "TIFF", save_all=True, append_images=[lesion]), ("several frames",)),
]


@pytest.mark.parametrize(("name", "make", "notes"), NOTED)
def test_an_unusual_file_is_used_and_noted(
    tmp_path: Path, lesion: Image.Image, name: str, make: Callable[[Image.Image], bytes], notes: tuple[str, ...]
) -> None:
    (tmp_path / name).write_bytes(make(lesion))
    facts = inspect(tmp_path / name)
    assert (facts.reason, facts.notes) == ("", notes)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path: Path, lesion: Image.Image, orientation: int) -> None:
    """What a camera stores turned, it shows upright; sizes are those of the upright picture."""
    upright = lesion.resize((160, 120))
    ways = [None, 0, 3, 1, 5, 4, 6, 2]  # the transposition that undoes each EXIF orientation, by PIL's numbers
    undo = ways[orientation - 1]
    back = {None: None, 0: 0, 3: 3, 1: 1, 5: 5, 4: 2, 6: 6, 2: 4}[undo]
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    (tmp_path / "a.jpg").write_bytes(with_orientation(stored, orientation))
    facts = inspect(tmp_path / "a.jpg")
    assert (facts.width, facts.height) == (160, 120)
    with Image.open(tmp_path / "a.jpg") as image:
        pixels = np.asarray(decode(image, (160, 120)), float)
    assert np.abs(pixels - np.asarray(upright, float)).mean() < 3


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_as_pil_turns_them(lesion: Image.Image, file_format: str, orientation: int) -> None:
    content = with_orientation(lesion.resize((60, 40)), orientation, file_format)
    with Image.open(io.BytesIO(content)) as image, Image.open(io.BytesIO(content)) as again:
        told = upright_size(image)
        picture, expected = decode(image, (60, 40)), ImageOps.exif_transpose(again).convert("RGB")
    assert (picture.size, picture.tobytes()) == (expected.size, expected.tobytes())
    assert told == (expected.size, orientation > 1)
    assert (decode(picture, (60, 40)).tobytes(), picture.info) == (expected.tobytes(), {}), "it is not turned twice"


ORIENTATION_6 = b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
RESOLUTION_IN_WORDS = b"\x1a\x01\x02\0\x02\0\0\x006\0\0\0"  # ASCII, where EXIF wants a fraction


@pytest.mark.parametrize(
    ("block", "size"),
    [
        (b"II*\0\x08\0\0\0\x02\0" + ORIENTATION_6 + RESOLUTION_IN_WORDS + bytes(4), (120, 160)),
        (b"no TIFF header", (160, 120)),
    ],
)
def test_a_strange_exif_block_spoils_no_picture(
    tmp_path: Path, lesion: Image.Image, block: bytes, size: tuple[int, int]
) -> None:
    content = saved(lesion.resize((160, 120)), "JPEG", exif=b"Exif\0\0" + block)
    (tmp_path / "a.jpg").write_bytes(content)
    facts = inspect(tmp_path / "a.jpg")
    assert (facts.reason, facts.width, facts.height) == ("", *size)
    with Image.open(io.BytesIO(content)) as image:
        assert decode(image, (160, 120)).size == size


def distance(a: bytes, b: bytes) -> int:
    return (int.from_bytes(a) ^ int.from_bytes(b)).bit_count()


def test_hashes_of_the_8_orientations_are_those_of_the_turned_pictures(tmp_path: Path, lesion: Image.Image) -> None:
    lesion.save(tmp_path / "a.png")
    hashes = inspect(tmp_path / "a.png").hashes
    for number, turn in enumerate(ORIENTATIONS):
        (lesion if turn is None else lesion.transpose(turn)).save(tmp_path / "b.png")
        first = inspect(tmp_path / "b.png").hashes[:32]
        assert distance(first, hashes[32 * number : 32 * (number + 1)]) <= 6


@pytest.mark.parametrize(
    "again",
    [
        lambda lesion: saved(lesion, "JPEG", quality=40),
        lambda lesion: saved(lesion.resize((330, 330)), "PNG"),
        lambda lesion: saved(lesion.resize((90, 90)), "WEBP", quality=70),
    ],
)
def test_encoding_again_and_resizing_hardly_change_the_hash(
    tmp_path: Path, lesion: Image.Image, again: Callable[[Image.Image], bytes]
) -> None:
    lesion.save(tmp_path / "a.png")
    (tmp_path / "b").write_bytes(again(lesion))
    assert distance(inspect(tmp_path / "a.png").hashes[:32], inspect(tmp_path / "b").hashes[:32]) <= 16


def test_a_picture_without_structure_has_no_hash(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (120, 90, 80)).save(tmp_path / "a.png")
    assert inspect(tmp_path / "a.png").hashes == b""


def test_a_large_jpeg_is_decoded_small_and_still_read_to_its_end(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1600, 3), dtype=np.uint8)
    content = saved(Image.fromarray(noise), "JPEG")
    (tmp_path / "a.jpg").write_bytes(content[:-5000])
    assert inspect(tmp_path / "a.jpg").reason == "truncated"
    with Image.open(io.BytesIO(content)) as image:
        assert decode(image, (128, 128)).size == (200, 150)
