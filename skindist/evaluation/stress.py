"""The stress test: the same images as they are in practice, with ink, hair, blur and so on. How much changes?

After Maron et al., "A benchmark for neural network robustness in skin cancer classification", Eur J Cancer 155, 2021,
and Young et al., "Stress testing reveals gaps in clinic readiness of image-based diagnostic artificial intelligence
models", npj Digital Medicine 4, 2021. Each disturbance is a pure function of pixels (H, W, 3) uint8 and a generator, at
a strength with which a physician would still judge the lesion.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from skindist.evaluation.counts import called_malignant
from skindist.evaluation.frozen import Frozen
from skindist.evaluation.intervals import auroc_of, difference
from skindist.evaluation.known import Known
from skindist.evaluation.metrics import METRICS
from skindist.evaluation.predictions import Predictions
from skindist.randomness import Stream, generator

Pixels = NDArray[np.uint8]
Disturbance = Callable[[Pixels, np.random.Generator], Pixels]
Point = tuple[float, float]
FINE = 4  # lines are drawn at so many times the size, and then reduced: else they have steps
WATCHED = ("sensitivity", "specificity")


def ink(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Strokes of a surgeon's violet marker about the middle."""
    side = min(pixels.shape[:2])
    strokes = []
    for start in rng.uniform(0, 2 * math.pi, int(rng.integers(2, 5))):
        radius, sweep = rng.uniform(0.36, 0.46) * side, rng.uniform(0.25, 0.6)
        angles = np.linspace(start, start + sweep, 12)
        strokes.append([(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles])
    middle = (pixels.shape[1] / 2, pixels.shape[0] / 2)
    lines = [[(middle[0] + x, middle[1] + y) for x, y in stroke] for stroke in strokes]
    return painted(pixels, lines, side / 45, (75, 45, 125), 0.8)


def ruler(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The millimetre marks of a ruler along one edge."""
    side, step = pixels.shape[0], pixels.shape[0] / 28
    offset, edge = rng.uniform(0, step), int(rng.integers(4))
    turned = np.rot90(pixels, edge)
    lines = []
    for number in range(int(turned.shape[1] / step) + 1):
        x, length = offset + number * step, side * (0.11 if number % 5 == 0 else 0.06)
        lines.append([(x, 0.0), (x, length)])
    return np.ascontiguousarray(np.rot90(painted(turned, lines, side / 150, (20, 20, 20), 0.9), -edge))


def dark_corners(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The round field of view of a dermatoscope: black outside."""
    height, width, _ = pixels.shape
    y, x = np.mgrid[:height, :width] + 0.5
    distance = np.hypot((x - width / 2) / width, (y - height / 2) / height) * 2
    radius = rng.uniform(0.98, 1.08)
    light = np.clip((radius + 0.04 - distance) / 0.04, 0, 1)
    return _rounded(pixels * light[..., None])


def hair(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A dozen dark hairs across the picture."""
    height, width, _ = pixels.shape
    lines = []
    for _ in range(int(rng.integers(9, 16))):
        angle = rng.uniform(0, math.pi)
        along, across = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
        middle = rng.uniform(0.15, 0.85, 2)
        length, bend = rng.uniform(0.3, 0.7), rng.uniform(-0.12, 0.12)
        at = np.linspace(-1, 1, 16)
        path = middle + np.outer(at, along) * length / 2 + np.outer(1 - at**2, across) * bend
        lines.append([(float(x) * width, float(y) * height) for x, y in path])
    return painted(pixels, lines, min(height, width) / 110, (45, 30, 22), 0.85)


def blur(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Out of focus: a Gaussian with a standard deviation of 0.7 % of the side."""
    radius = 0.007 * min(pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def jpeg(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Saved as JPEG of quality 20, as messengers do, at 224 pixels or more: its blocks have a fixed size."""
    height, width, _ = pixels.shape
    scale = max(1.0, 224 / min(height, width))
    content = io.BytesIO()
    large = Image.fromarray(pixels).resize((round(scale * width), round(scale * height)), Image.Resampling.BICUBIC)
    large.save(content, "JPEG", quality=20)
    with Image.open(content) as saved:
        return np.asarray(saved.resize((width, height), Image.Resampling.BICUBIC))


def colour_cast(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Warmer or colder light: red and blue 10 % apart from green, in opposite directions."""
    warm = 0.1 if rng.random() < 0.5 else -0.1
    return _rounded(pixels * np.array([1 + warm, 1, 1 - warm]))


def darker_light(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """60 % of the light."""
    return _rounded(pixels * 0.6)


def shifted_crop(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """85 % of the side, anywhere, enlarged to the whole."""
    height, width, _ = pixels.shape
    rows, columns = round(0.85 * height), round(0.85 * width)
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    part = Image.fromarray(pixels[top : top + rows, left : left + columns])
    return np.asarray(part.resize((width, height), Image.Resampling.BICUBIC))


DISTURBANCES: Mapping[str, Disturbance] = {
    "ink": ink,
    "ruler": ruler,
    "dark corners": dark_corners,
    "hair": hair,
    "blur": blur,
    "JPEG": jpeg,
    "colour cast": colour_cast,
    "darker light": darker_light,
    "shifted crop": shifted_crop,
}
"""Every disturbance by name, in the order of all records; a new one comes last, as its place seeds its generator."""


def disturb(pixels: Pixels, name: str, seed: int, sample_id: int) -> Pixels:
    """One image disturbed: a pure function of (seed, name, sample id), on any process and worker."""
    number = list(DISTURBANCES).index(name)
    return DISTURBANCES[name](pixels, generator(seed, Stream.STRESS, number, sample_id))


def painted(
    pixels: Pixels, lines: Iterable[list[Point]], width: float, colour: tuple[int, int, int], strength: float
) -> Pixels:
    """Lines of a width in pixels over a picture, smooth at their edges; `strength` 1 hides what is below."""
    height, across, _ = pixels.shape
    mask = Image.new("L", (across * FINE, height * FINE))
    draw = ImageDraw.Draw(mask)
    for line in lines:
        draw.line([(x * FINE, y * FINE) for x, y in line], 255, max(1, round(width * FINE)), joint="curve")
    cover = np.asarray(mask.reduce(FINE), np.float64)[..., None] / 255 * strength
    return _rounded(pixels * (1 - cover) + np.array(colour) * cover)


def _rounded(values: NDArray[np.floating[Any]]) -> Pixels:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def stress_of(
    frozen: Frozen, test: Predictions, disturbed: Mapping[str, Predictions], known: Known, seed: int
) -> list[dict[str, Any]]:
    """What results.json says: for each disturbance its name, the estimate of the AUROC, that of its change (on the same
    resamples), the share of images whose decision is another one, the sensitivity and specificity that are left, and n.

    Args:
        test: predictions of the images as they are, as the model gives them.
        disturbed: those of the same images, by the name of the disturbance; empty: there was no stress test.
    """
    plain, threshold = frozen.calibration.apply(test).probabilities, frozen.threshold.value
    before = called_malignant(plain, threshold)
    rows = []
    for name, found in disturbed.items():
        p, y = frozen.calibration.apply(found).probabilities, found.labels
        rows.append(
            {
                "name": name,
                "auroc": asdict(auroc_of(p, y, seed, known.groups)),
                "change": asdict(difference(p, plain, y, seed, known.groups)),
                "flipped": float((called_malignant(p, threshold) != before).mean()),
                **{watched: METRICS[watched](p, y, threshold) for watched in WATCHED},
                "n": int(y.size),
            }
        )
    return rows
