"""What one reading of an image file tells: whether it can be used, and its size, hashes and colours.

Each file is decoded once, a JPEG at down to an eighth of its size: every byte is parsed, at a fraction of the work.
"""

import errno
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}
FORMATS = tuple(SUFFIXES)  # a closed list: PIL would hand an EPS called .jpg to Ghostscript
UNREAD_SUFFIXES = {
    ".heic", ".heif", ".hif", ".gif", ".avif", ".jxl", ".jp2", ".j2k", ".jpf", ".jpx", ".dcm", ".dicom",
}  # fmt: skip
NOT_AN_IMAGE = "not an image"
EMPTY = "empty (0 bytes)"
CANNOT_BE_READ = "cannot be read"
NOWHERE = f"{CANNOT_BE_READ} ({os.strerror(errno.ENOENT)})"  # a link to nothing
NO_MEMORY = "not enough memory to read it"
PASSING = (CANNOT_BE_READ, NO_MEMORY)  # how reasons begin that are none of the file's own
UNREAD = "a kind of image that is not read; convert it to JPEG or PNG"
CONVERTED = {"CMYK": "CMYK", "P": "palette", "PA": "palette", "LA": "alpha", "RGBA": "alpha"}
MODES_8_BIT = {"1", "L", "RGB", "YCbCr", *CONVERTED}
MIN_SIDE = 32  # pixels
MAX_RATIO = 20  # of the sides: a longer strip shows no lesion, and its square takes memory without end to cut out
LARGEST = 2**30  # bytes of a file: an image below PIL's limit of pixels has fewer
THUMBNAIL = 128  # pixels that hashes and colours are computed from, at least
HASH_SIDE = 16  # 256 bits
LAYOUT_SIDE = 8
BLANK = 2.0  # standard deviation in grey levels under which a hash is noise
ORIENTATIONS = (None, *Image.Transpose)  # the 8 symmetries of a picture; the first is the picture as it is
UPRIGHT = {  # what turns a picture upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}

T = TypeVar("T")


class Facts(NamedTuple):
    """One file, of `file_size` bytes. `width` and `height` are those of the upright picture, in pixels; `notes` say how
    it is converted.

    `hashes` are the perceptual hashes of the 8 orientations, 32 bytes each, and empty for a picture without structure;
    `layout` is the picture in 8 x 8 RGB pixels. `colours` are the means of R, G and B, their standard deviations, and
    their means in the outermost tenth, in grey levels from 0 to 255.
    """

    reason: str  # why it cannot be used; "" if it can
    notes: tuple[str, ...] = ()
    sha256: str = ""
    file_size: int = 0
    format: str = ""
    width: int = 0
    height: int = 0
    hashes: bytes = b""
    layout: bytes = b""
    colours: tuple[float, ...] = ()


@contextmanager
def reading_images() -> Iterator[None]:
    """Around the threads that read images: a bomb is an error, and what else PIL warns of is ours to tell."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def inspect(path: Path) -> Facts:
    """What a file tells, within `reading_images`. Nothing that it contains makes this raise."""
    found = open_image(path, lambda content, image: _facts(path, content, image))
    return Facts(found) if isinstance(found, str) else found


def open_image(path: Path, use: Callable[[bytes, Image.Image], T]) -> T | str:
    """What `use` makes of the bytes of a file and of its opened image, or why the file cannot be used, within
    `reading_images`. Nothing that a file contains makes this raise."""
    try:
        status = path.stat()
        if stat.S_ISFIFO(status.st_mode) or status.st_size > LARGEST:
            return "not a file" if stat.S_ISFIFO(status.st_mode) else f"larger than {LARGEST >> 30} GiB"
        content = path.read_bytes()
    except OSError as error:
        return f"{CANNOT_BE_READ} ({error.strerror})"
    except ValueError as error:  # no name of a file: it holds a zero byte
        return f"{CANNOT_BE_READ} ({error})"
    except MemoryError:
        return NO_MEMORY
    if not content:
        return EMPTY
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _refusal(image) or use(content, image)
    except UnidentifiedImageError:
        return UNREAD if path.suffix.lower() in UNREAD_SUFFIXES else NOT_AN_IMAGE
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels (a decompression bomb?)"
    except MemoryError:
        return NO_MEMORY
    except Exception as error:  # a damaged file can make a decoder raise nearly anything
        words = str(error).strip() or type(error).__name__
        return "truncated" if "truncated" in words else f"damaged ({words})"


def _refusal(image: Image.Image) -> str:
    """Why pixels like these are not used; "" if they are."""
    if image.mode not in MODES_8_BIT and image.mode[0] not in "IF":
        return f"pixels that are not read (mode {image.mode}); convert it to RGB"
    if image.mode not in MODES_8_BIT:
        return f"16-bit or floating-point pixels (mode {image.mode}); convert it to 8 bits a channel"
    if min(image.size) < MIN_SIDE:
        return f"too small ({image.width} x {image.height} pixels; at least {MIN_SIDE} x {MIN_SIDE})"
    if max(image.size) > MAX_RATIO * min(image.size):
        return f"a strip ({image.width} x {image.height} pixels), too long to show a lesion"
    return ""


def _facts(path: Path, content: bytes, image: Image.Image) -> Facts:
    file_format = "JPEG" if image.format == "MPO" else str(image.format)  # MPO: several JPEGs in one file
    size, turned = upright_size(image)
    notes = [
        *(["extension"] if path.suffix.lower() not in SUFFIXES[file_format] else []),
        *([CONVERTED[image.mode]] if image.mode in CONVERTED else []),
        *(["alpha"] if "transparency" in image.info else []),
        *(["EXIF rotation"] if turned else []),
        *(["several frames"] if getattr(image, "n_frames", 1) > 1 else []),
    ]
    small = decode(image, (THUMBNAIL, THUMBNAIL))
    layout = small.resize((LAYOUT_SIDE, LAYOUT_SIDE), Image.Resampling.BOX).tobytes()
    digest, hashes = hashlib.sha256(content).hexdigest(), perceptual_hashes(small)
    return Facts("", tuple(notes), digest, len(content), file_format, *size, hashes, layout, _colours(small))


def upright_size(image: Image.Image) -> tuple[tuple[int, int], bool]:
    """Width and height as the camera meant them, and whether its EXIF orientation says other than "upright"."""
    turn = _turn(image)
    if image.format == "TIFF":  # which PIL turns itself, no later than it loads the pixels
        image.load()
        return image.size, turn is not None
    return ((image.height, image.width) if turn in SIDEWAYS else image.size), turn is not None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns the picture upright; None where its EXIF block asks for nothing, or cannot be read."""
    if image.format == "PNG":  # its EXIF block may follow the pixels, and a file that ends before is damaged
        image.load()
    with suppress(Exception):  # a strange block can make PIL raise nearly anything
        return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return None


def decode(image: Image.Image, at_least: tuple[int, int]) -> Image.Image:
    """Load an opened file as upright RGB; a JPEG no larger than need be, with sides of `at_least` if it has them.

    Only the pixels are turned: `ImageOps.exif_transpose` writes the EXIF block anew, too, and not every block can be.
    """
    image.draft(None, at_least)
    image.load()
    turn = _turn(image)
    picture = (image if turn is None else image.transpose(turn)).convert("RGB")
    picture.info.clear()  # the orientation is used up, and a comment may name the patient
    return picture


def perceptual_hashes(image: Image.Image) -> bytes:
    """The pHash (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010) of each of the
    8 orientations, 32 bytes each; none for a picture without structure, whose hash would be noise."""
    side = 4 * HASH_SIDE
    grey = image.convert("L").resize((side, side), Image.Resampling.LANCZOS)
    if np.asarray(grey).std() < BLANK:
        return b""
    turned = (grey if turn is None else grey.transpose(turn) for turn in ORIENTATIONS)
    return b"".join(np.packbits(imagehash.phash(picture, HASH_SIDE).hash).tobytes() for picture in turned)


def _colours(image: Image.Image) -> tuple[float, ...]:
    pixels: NDArray[np.float32] = np.asarray(image.resize((20, 20), Image.Resampling.BOX), np.float32)
    inner = np.zeros((20, 20), bool)
    inner[2:-2, 2:-2] = True
    values = (pixels.mean((0, 1)), pixels.std((0, 1)), pixels[~inner].mean(0))
    return tuple(round(float(value), 2) for value in np.concatenate(values))
