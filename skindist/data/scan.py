"""Find the images of a folder, read each of them once, and refuse with a reason whatever is ambiguous.

The layout is either DIR/{benign,malignant}/... or DIR/{train,val,test}/{benign,malignant}/... ("validation" for
"val" is fine; without val/, validation images are drawn from train/). Class folders may hold folders. Nothing is
guessed from file names.
"""

import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from skindist.errors import UserError

CLASSES = ("benign", "malignant")  # the index is the label
SPLIT_FOLDERS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")  # a closed list: PIL would hand an EPS called .jpg to Ghostscript
MODES_8_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
LISTED = 5  # bad files named in one message


@dataclass(frozen=True)
class ImageFile:
    """One readable image: path relative to the data folder, label (index into CLASSES), split ("" where the folder
    has none), SHA-256 of its bytes."""

    path: str
    label: int
    split: str
    sha256: str


def scan_folder(root: Path, progress: bool = False) -> list[ImageFile]:
    """List and verify every image below `root`, sorted by path.

    Raises:
        UserError: the folder is missing, empty, laid out ambiguously, or holds an image that cannot be decoded.
    """
    found = sorted(_find(root))
    if not found:
        raise UserError(
            f"--data.path {root}: no images in its class folders (looked for {', '.join(sorted(SUFFIXES))})"
        )
    with ThreadPoolExecutor() as pool:
        checked = pool.map(lambda entry: _verify(root / entry[0]), found)
        outcomes = list(
            tqdm(checked, "verifying images", len(found), unit="image", leave=False, disable=None if progress else True)
        )
    bad = [f"{path}: {reason}" for (path, _, _), (_, reason) in zip(found, outcomes, strict=True) if reason]
    if bad:
        raise UserError(
            f"--data.path {root}: {len(bad)} of {len(found)} images cannot be used; repair or remove them:\n  "
            + "\n  ".join(bad[:LISTED] + ([f"... and {len(bad) - LISTED} more"] if len(bad) > LISTED else []))
        )
    return [
        ImageFile(path, label, split, sha256) for (path, label, split), (sha256, _) in zip(found, outcomes, strict=True)
    ]


def _find(root: Path) -> Iterator[tuple[str, int, str]]:
    """Yield (relative path, label, split) of every image file, having checked the layout."""
    if not root.is_dir():
        raise UserError(f"--data.path {root}: {'is not a folder' if root.exists() else 'no such folder'}")
    folders = _folders(root)
    splits = {SPLIT_FOLDERS[name.lower()]: folder for name, folder in folders.items() if name.lower() in SPLIT_FOLDERS}
    if not splits:
        yield from _find_classes(root, root, "")
        return
    others = sorted(name for name in folders if name.lower() not in SPLIT_FOLDERS)
    if others or len(splits) != len(folders):
        raise UserError(
            f"--data.path {root}: it is split into {', '.join(sorted(folders))}, which is ambiguous; "
            "keep train/, val/ and test/ only"
        )
    if missing := {"train", "test"} - set(splits):
        raise UserError(
            f"--data.path {root}: it has {', '.join(f'{name}/' for name in sorted(folders))} but no "
            f"{' or '.join(f'{name}/' for name in sorted(missing))}; give train/, val/ and test/, or none of them"
        )
    _refuse_loose_images(root, root)
    for split, folder in splits.items():
        yield from _find_classes(root, folder, split)


def _find_classes(root: Path, folder: Path, split: str) -> Iterator[tuple[str, int, str]]:
    found = {name.lower(): path for name, path in _folders(folder).items()}
    if set(found) != set(CLASSES):
        raise UserError(
            f"--data.path {root}: {folder} must hold exactly the class folders benign/ and malignant/, "
            f"but it holds {', '.join(f'{name}/' for name in sorted(found)) or 'no folder'}"
        )
    _refuse_loose_images(root, folder)
    for label, name in enumerate(CLASSES):
        for path in _images_below(found[name]):
            yield path.relative_to(root).as_posix(), label, split


def _folders(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def _refuse_loose_images(root: Path, folder: Path) -> None:
    if loose := sorted(path.name for path in folder.iterdir() if path.is_file() and _is_image(path.name)):
        raise UserError(
            f"--data.path {root}: {len(loose)} images lie in {folder} beside the class folders "
            f"(such as {loose[0]}), so they have no label; move or remove them"
        )


def _images_below(folder: Path) -> Iterator[Path]:
    """Walk through links too, each real folder once."""
    seen: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = Path(parent).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent) / name for name in names if _is_image(name))


def _verify(path: Path) -> tuple[str, str]:
    """SHA-256 of a file and why it cannot be used ("" if it can)."""
    try:
        content = path.read_bytes()
        if not content:
            return "", "is empty (0 bytes)"
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.mode not in MODES_8_BIT:
                return "", f"has mode {image.mode}; convert it to 8 bits a channel"
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):
                return "", f"has {image.width} x {image.height} pixels; make it smaller"
            image.draft(
                "RGB", (image.width // 8, image.height // 8)
            )  # JPEG: parse every byte, at an eighth of the work
            image.load()
    except UnidentifiedImageError:
        return "", f"is not a {', '.join(FORMATS)} image"
    except Exception as error:  # a damaged file can make a decoder raise nearly anything
        return "", f"cannot be decoded ({error})"
    return hashlib.sha256(content).hexdigest(), ""
