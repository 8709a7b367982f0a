"""A folder with every bad file and every layout that a scan must get right, and what is expected of it by hand."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from skindist.data.demo import draw_lesion
from skindist.data.inspection import ORIENTATIONS

GOOD = 12  # ordinary images of each class
EXIF_ORIENTATION = 0x0112


def lesion(index: int, malignant: bool = False) -> Image.Image:
    """A picture of its own."""
    return draw_lesion(np.random.default_rng([7, malignant, index]), malignant, size=128)


def saved(picture: Image.Image, file_format: str, **options: object) -> bytes:
    """The bytes of a picture's file."""
    content = io.BytesIO()
    picture.save(content, file_format, **options)
    return content.getvalue()


def write_torture_folder(root: Path) -> None:
    """Write `GOOD` images of each class, and the files that `BAD`, `OTHERS`, `NOTES` and `GROUPS` speak of."""
    files: dict[str, bytes] = {}
    for index in range(GOOD):
        files[f"benign/{index:02}.jpg"] = saved(lesion(index), "JPEG", quality=90)
        files[f"malignant/{index:02}.png"] = saved(lesion(index, malignant=True), "PNG")

    jpeg, png = saved(lesion(100), "JPEG"), saved(lesion(100), "PNG")
    files["benign/zero byte.jpg"] = b""
    files["benign/half.jpg"] = jpeg[: len(jpeg) // 2]
    files["benign/half.png"] = png[: len(png) // 2]
    files["benign/text.png"] = b"not an image"
    files["benign/postscript.jpg"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"
    files["malignant/sixteen bits.png"] = saved(Image.fromarray(np.full((64, 64), 40000, np.uint16)), "PNG")
    files["malignant/tiny.png"] = saved(lesion(101).resize((31, 31)), "PNG")
    files["malignant/bomb.png"] = saved(Image.new("1", (10000, 20000)), "PNG")

    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    files["benign/Ünïcode 🩺 name.JPG"] = saved(lesion(110), "JPEG")
    files["benign/clinic A/patient 1/deep.WebP"] = saved(lesion(111), "WEBP", quality=90)
    files["benign/no suffix"] = saved(lesion(112), "PNG")
    files["benign/really a png.jpg"] = saved(lesion(113), "PNG")
    files["malignant/cmyk.jpg"] = saved(lesion(114, True).convert("CMYK"), "JPEG")
    files["malignant/palette.png"] = saved(lesion(115, True).convert("P"), "PNG")
    files["malignant/alpha.png"] = saved(lesion(116, True).convert("RGBA"), "PNG")
    files["malignant/rotated.jpg"] = saved(lesion(117, True), "JPEG", exif=exif)
    files["malignant/test_9.TIFF"] = saved(lesion(118, True), "TIFF")

    for number, turn in enumerate(ORIENTATIONS):  # one picture in 8 orientations, encoded and sized differently
        turned = lesion(120) if turn is None else lesion(120).transpose(turn)
        files[f"benign/turned {number}.jpg"] = saved(
            turned.resize((100 + 20 * number,) * 2), "JPEG", quality=60 + 5 * number
        )
    files["benign/copy of 00.jpg"] = files["benign/00.jpg"]
    files["benign/01 again.webp"] = saved(lesion(1).resize((200, 200)), "WEBP", quality=80)
    files["benign/conflict.png"] = files["malignant/conflict.png"] = saved(lesion(130), "PNG")
    files["malignant/02 with the other label.jpg"] = saved(lesion(2), "JPEG", quality=75)

    files["benign/notes.txt"] = b"hello"
    files["benign/metadata.csv"] = b"file_name,label\n"
    files["benign/.hidden.jpg"] = b"not looked at"
    files["malignant/Thumbs.db"] = b"\x00\x01"
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    elsewhere = root.with_name(f"{root.name} elsewhere")
    elsewhere.mkdir()
    (elsewhere / "linked.png").write_bytes(saved(lesion(140, True), "PNG"))
    (root / "malignant/other disk").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(elsewhere)
    (root / "malignant/dead link.png").symlink_to(root / "nowhere.png")


BAD = {
    "benign/zero byte.jpg": "empty (0 bytes)",
    "benign/half.jpg": "truncated",
    "benign/half.png": "truncated",
    "benign/text.png": "not an image",
    "benign/postscript.jpg": "not an image",
    "malignant/sixteen bits.png": "16-bit or floating-point pixels (mode I;16); convert it to 8 bits a channel",
    "malignant/tiny.png": "too small (31 x 31 pixels; at least 32 x 32)",
    "malignant/bomb.png": "more than 89478485 pixels (a decompression bomb?)",
    "malignant/dead link.png": "cannot be read (No such file or directory)",
}
CONFLICTING = {
    "benign/conflict.png": "same bytes as malignant/conflict.png, which has the other label",
    "malignant/conflict.png": "same bytes as benign/conflict.png, which has the other label",
}
OTHERS = ["benign/metadata.csv", "benign/notes.txt", "malignant/Thumbs.db"]
NOTES = {
    "benign/no suffix": ("extension",),
    "benign/really a png.jpg": ("extension",),
    "malignant/cmyk.jpg": ("CMYK",),
    "malignant/palette.png": ("palette",),
    "malignant/alpha.png": ("alpha",),
    "malignant/rotated.jpg": ("EXIF rotation",),
}
GROUPS = {  # of more than one image
    frozenset(f"benign/turned {number}.jpg" for number in range(8)),
    frozenset({"benign/00.jpg", "benign/copy of 00.jpg"}),
    frozenset({"benign/01.jpg", "benign/01 again.webp"}),
    frozenset({"benign/02.jpg", "malignant/02 with the other label.jpg"}),
}
BENIGN = GOOD + 4 + 8 + 2  # ordinary, odd but usable, turned, copies
MALIGNANT = GOOD + 5 + 1 + 1  # ordinary, odd but usable, the other label, linked
