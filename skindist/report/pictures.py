"""Small pictures that a run leaves: images under the stress test, and what a model goes by. Pixels (H, W, 3) uint8."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
TILE = 128  # pixels, at most, of one image's side
HEADING = 20  # pixels
MALIGNANT, BENIGN = (220, 70, 0), (0, 90, 220)  # what speaks for it: told apart by colour-blind readers, too
STRENGTH = 0.6  # of the colour, where the evidence is strongest


def contact_sheet(headings: Sequence[str], rows: Sequence[Sequence[Pixels]]) -> bytes:
    """A JPEG of images in rows, a heading over each column."""
    side = min(TILE, rows[0][0].shape[0])
    sheet = Image.new("RGB", (side * len(headings), HEADING + side * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(min(13, side // 7))
    for column, heading in enumerate(headings):
        draw.text((column * side + side / 2, HEADING / 2), heading, "black", font, anchor="mm")
        for number, row in enumerate(rows):
            picture = Image.fromarray(row[column]).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(picture, (column * side, HEADING + number * side))
    return as_jpeg(sheet)


def beside_heat_map(pixels: Pixels, heat: NDArray[np.float32]) -> Image.Image:
    """An image and, to its right, the same under its heat map (H, W): 1 is all for malignant (orange), -1 all for
    benign (blue)."""
    colour = np.where(heat[..., None] > 0, np.array(MALIGNANT), np.array(BENIGN))
    cover = np.abs(heat)[..., None].clip(0, 1) * STRENGTH
    under = np.rint(pixels * (1 - cover) + colour * cover).astype(np.uint8)
    return Image.fromarray(np.hstack([pixels, under]))


def as_jpeg(picture: Image.Image) -> bytes:
    """The file's content; nothing but pixels is in it."""
    return _saved(picture, "JPEG", quality=85)


def as_png(picture: Image.Image) -> bytes:
    """The same without loss."""
    return _saved(picture, "PNG")


def _saved(picture: Image.Image, kind: str, **options: int) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()
