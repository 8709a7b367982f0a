"""Drawn dermoscopy: a small labelled folder for trying the trainer without any data.

The two classes differ in three traits of the ABCD rule of dermoscopy (Nachbar et al., "The ABCD rule of
dermatoscopy", J Am Acad Dermatol 30, 1994; Stolz et al., Eur J Dermatol 4, 1994): asymmetry, border irregularity and
the number of colours. What a picture shows of any one of them overlaps between the classes. Everything else (size,
position, skin tone, mean colour, structure, hair, vignette) is drawn from one distribution for both. The pictures are
stylised: a model trained on them knows nothing about skin.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from skindist.data.scan import CLASSES
from skindist.errors import UserError
from skindist.files import is_occupied, whole_folder

SMALLEST_SIZE, LARGEST_SIZE = 32, 2048

Array = NDArray[np.floating]

_OVERSAMPLING = 2
_TRAIT_MEANS = (0.10, 0.90)
_TRAIT_SPREAD = 0.14
_SKIN_TONES = np.array([[0.97, 0.85, 0.79], [0.94, 0.74, 0.67], [0.76, 0.56, 0.44]], np.float32)
_PIGMENTS = np.array([[0.82, 0.64, 0.52], [0.58, 0.43, 0.36]], np.float32)  # light and dark brown, as transmittance
_ACCENTS = np.array(
    [
        [-0.32, -0.26, -0.22],  # black
        [-0.26, -0.09, 0.04],  # blue-grey
        [0.10, -0.12, -0.08],  # red
        [0.16, 0.25, 0.26],  # white
    ],
    np.float32,
)
_HAIR_COLOUR = np.array([0.16, 0.10, 0.07], np.float32)


class Traits(NamedTuple):
    """What tells the classes apart, each in [0, 1]."""

    asymmetry: float
    border: float
    colours: float


def draw_lesion(rng: np.random.Generator, malignant: bool, size: int = 96) -> Image.Image:
    """Draw one lesion: an RGB picture of `size` x `size` pixels, a pure function of the generator's state."""
    traits = Traits(*rng.normal(_TRAIT_MEANS[malignant], _TRAIT_SPREAD, 3).clip(0, 1).tolist())
    side = _OVERSAMPLING * size
    skin = _skin(rng, side)
    lesion = _lesion(rng, traits.asymmetry, traits.border, side)[..., None]
    picture = skin * (1 - lesion + lesion * _pigment(rng, traits, lesion))
    picture += _hair(rng, side)[..., None] * (_HAIR_COLOUR - picture)
    picture *= _light(rng, side)[..., None]
    pixels = picture.reshape(size, _OVERSAMPLING, size, _OVERSAMPLING, 3).mean(axis=(1, 3))
    pixels += rng.normal(0, 0.012, pixels.shape)
    return Image.fromarray((255 * pixels.clip(0, 1)).round().astype(np.uint8))


def write_demo_data(directory: Path, count: int = 800, size: int = 96, seed: int = 0) -> None:
    """Write `count` pictures, half to `directory`/benign and half to `directory`/malignant, as 0000.png, 0001.png, ...

    Each picture depends on the seed, its label and its index alone: a larger count keeps the earlier pictures.
    Raises UserError, before anything is written, for a directory that holds something, an odd count or one below 2,
    a negative seed, and a size out of range.
    """
    if count < 2 or count % 2:
        raise UserError(f"count is {count}, but half of the pictures go to each class: give an even number from 2 up")
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise UserError(f"size is {size} pixels: give from {SMALLEST_SIZE} to {LARGEST_SIZE}")
    if seed < 0:
        raise UserError(f"seed is {seed}: give a number from 0 up")
    if is_occupied(directory):
        raise UserError(f"{directory} is not an empty directory; nothing in it was changed: name a new or empty one")
    with whole_folder(directory) as folder, tqdm(total=count, unit="image", leave=False, disable=None) as progress:
        for name in CLASSES:
            (folder / name).mkdir()
        for index in range(count // 2):
            for label, name in enumerate(CLASSES):
                picture = draw_lesion(np.random.default_rng([seed, label, index]), bool(label), size)
                picture.save(folder / name / f"{index:04d}.png")
                progress.update()


def _grid(side: int) -> tuple[Array, Array]:
    """Pixel coordinates x and y, each (side, side), from -0.5 to 0.5."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    x, y = np.meshgrid(axis, axis)
    return x, y


def _clouds(rng: np.random.Generator, cells: int, side: int) -> Array:
    """Smooth noise, (side, side), of about zero mean and unit deviation; one blob spans about 1/`cells` of a side."""
    coarse = Image.fromarray(rng.normal(0, 1.4, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def _skin(rng: np.random.Generator, side: int) -> Array:
    """Bare skin, (side, side, 3) in [0, 1]: a tone between fair and tan, blotched with blood and finely grained."""
    tone = rng.dirichlet(np.ones(3)).astype(np.float32) @ _SKIN_TONES
    blood = _clouds(rng, 5, side)[..., None] * np.array([0.005, 0.014, 0.012], np.float32)
    grain = _clouds(rng, side // 5, side)[..., None] * 0.012
    skin: Array = tone + blood + grain
    return skin


def _lesion(rng: np.random.Generator, asymmetry: float, border: float, side: int) -> Array:
    """How much of each pixel the lesion covers, (side, side) in [0, 1].

    An ellipse, bent out of its two symmetry axes by `asymmetry` and roughened by `border`. The level is cut where
    the wanted area is reached, so that neither trait changes the size.
    """
    x, y = _grid(side)
    x, y = x - rng.normal(0, 0.025), y - rng.normal(0, 0.025)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    ellipse, bend, turn = rng.uniform(0, 2 * np.pi, 3).tolist()
    outline = 1 + rng.uniform(0.0, 0.16) * np.cos(2 * (angle - ellipse))
    outline += 0.30 * asymmetry * np.cos(angle - bend) + 0.16 * asymmetry * np.cos(3 * (angle - turn))
    level = radius / outline
    level += (0.004 + 0.024 * border) * _clouds(rng, 11, side) + 0.012 * border * _clouds(rng, 22, side)
    area = np.pi * rng.uniform(0.22, 0.31) ** 2
    edge = rng.uniform(0.006, 0.016)
    cover: Array = 1 / (1 + np.exp(((level - np.quantile(level, area)) / edge).clip(-30, 30)))
    return cover


def _pigment(rng: np.random.Generator, traits: Traits, lesion: Array) -> Array:
    """The share of light the lesion's pigment lets through, (side, side, 3), its mean drawn alike for both classes."""
    side = len(lesion)
    x, y = _grid(side)
    light, dark = _PIGMENTS
    mean = light + rng.beta(2, 2) * (dark - light) + rng.normal(0, 0.015, 3).astype(np.float32)
    direction = rng.uniform(0, 2 * np.pi)
    shift = 0.14 * traits.asymmetry
    depth = np.hypot(x - shift * math.cos(direction), y - shift * math.sin(direction))  # 0 at the heart of the pigment
    shade = rng.uniform(0.2, 0.9) * depth + 0.02 * _clouds(rng, 7, side) + _structure(rng, side)
    pigment = shade[..., None] * np.array([1.0, 0.9, 0.8], np.float32)
    for accent in rng.permutation(_ACCENTS)[: round(len(_ACCENTS) * traits.colours)]:
        patch = 1 / (1 + np.exp(-4 * (_clouds(rng, 5, side) - 0.6)))
        pigment += patch[..., None] * (rng.uniform(0.7, 1.0) * accent)
    shown: Array = mean + pigment - (pigment * lesion).sum((0, 1)) / lesion.sum()
    return shown.clip(0.08, 1.05)


def _structure(rng: np.random.Generator, side: int) -> Array:
    """Shade of a warped hexagonal lattice, (side, side): dark globules if its strength is negative, else a network."""
    x, y = _grid(side)
    x, y = x + 0.010 * _clouds(rng, 9, side), y + 0.010 * _clouds(rng, 9, side)
    start, frequency = rng.uniform(0, math.pi), 2 * math.pi * rng.uniform(15, 21)
    angles = [start + turn * math.pi / 3 for turn in range(3)]
    waves = [np.cos(frequency * (math.cos(angle) * x + math.sin(angle) * y)) for angle in angles]
    strength = rng.uniform(-0.035, 0.035) * (1 + 0.5 * _clouds(rng, 4, side))
    lattice: Array = strength * np.sum(waves, axis=0)
    return lattice


def _hair(rng: np.random.Generator, side: int) -> Array:
    """How much of each pixel hair covers, (side, side) in [0, 1]: no hair in about half of the pictures."""
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    step = np.linspace(-1, 1, 17)[:, None]
    for _ in range(int(rng.integers(1, 9)) * int(rng.integers(0, 2))):
        angle = rng.uniform(0, np.pi)
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        hair = rng.uniform(0, 1, 2) + rng.uniform(0.2, 0.6) * step * along + rng.normal(0, 0.12) * step**2 * across
        draw.line((hair * side).ravel().tolist(), fill=int(rng.integers(110, 230)), width=max(1, side // 96))
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(side / 300)), np.float32) / 255


def _light(rng: np.random.Generator, side: int) -> Array:
    """Illumination, (side, side) in [0, 1]: exposure, a soft vignette and, in some pictures, dark corners."""
    x, y = _grid(side)
    radius = np.hypot(x - rng.normal(0, 0.03), y - rng.normal(0, 0.03))
    vignette = 1 - rng.uniform(0, 0.5) * radius**2 * 2
    tube = 1 / (1 + np.exp(((radius - rng.uniform(0.58, 1.1)) / 0.012).clip(-30, 30)))
    light: Array = rng.uniform(0.88, 1.0) * vignette * tube
    return light
