"""Which images belong together: copies, near-duplicates, one ISIC id, one lesion, one patient.

A near-duplicate is the same picture turned, mirrored, encoded again, resized, recoloured or slightly cropped. Two
pictures are taken for that when their perceptual hashes are nearer than unrelated pictures of this very set come, and
their colours are laid out alike. How near is near is calibrated: each picture's distances to a sample of the others
say what is usual for it (a picture with little structure is near to many), and the tail of that distribution how
improbable a distance is.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skindist.data.inspection import HASH_SIDE, LAYOUT_SIDE, ORIENTATIONS
from skindist.data.metadata import isic_id
from skindist.data.scan import ImageFile
from skindist.files import write_cache

BITS = HASH_SIDE**2
CERTAIN = 24  # bits: encoding again or resizing changes fewer; ISIC 2017's nearest unrelated pair differs in 40
REACH = 64  # bits: a cropped or zoomed copy may be this far, and so may many unrelated pairs
REFERENCES = 1000  # images that stand for the unrelated ones
FEWEST = 200  # images below which there is no tail to read: only certain pairs count then
CHANCE = 0.01  # unrelated pairs for each image of the set whose hashes may pass by chance
ALIKE = 0.96  # correlation of colours: of unrelated pictures, only those in one camera's frame have as much
QUERIES = 4096  # images looked up at a time
FORMAT = 1  # of what is remembered: raise it when the same images would give other pairs

Kind = Literal["same bytes", "near-duplicate", "ISIC id", "lesion", "patient"]
Hashes = NDArray[np.uint8]  # (N, 8 orientations, BITS / 8)


class Link(NamedTuple):
    """Images (by their index) that belong together and why; `distance` is that of two near-duplicates, in bits."""

    kind: Kind
    members: tuple[int, ...]
    distance: int = 0


class _Pair(NamedTuple):
    """Two images, a < b, the distance of their hashes in bits, and the orientation of a that brings it nearest to b."""

    a: int
    b: int
    distance: float
    turn: int


def find_links(images: Sequence[ImageFile], metadata: Mapping[str, Mapping[str, str]], memory: Path) -> list[Link]:
    """Everything that ties two or more of the images together; near-duplicates as pairs, nearest first.

    Args:
        memory: a folder in which near-duplicates are remembered.
    """
    links = [Link("same bytes", members) for members in _alike(image.sha256 for image in images)]
    links += near_duplicates(images, memory)
    of_id = _alike(isic_id(image.path) for image in images)  # crops, masks and other sizes of one picture
    links += [Link("ISIC id", members) for members in of_id if len({images[m].sha256 for m in members}) > 1]
    for kind in ("lesion", "patient"):
        ids = (metadata.get(image.path, {}).get(f"{kind}_id", "") for image in images)
        links += [Link(kind, members) for members in _alike(ids)]
    return links


def group_images(images: Sequence[ImageFile], links: Iterable[Link]) -> list[str]:
    """The group of each image: those that links connect, directly or through others, have one; its name is the first
    of their hashes."""
    pairs = [(link.members[0], other) for link in links for other in link.members[1:]]
    component = connected(np.array(pairs, dtype=np.int64).reshape(-1, 2), len(images))
    names: dict[int, str] = {}
    for image, number in zip(images, component.tolist(), strict=True):
        names[number] = min(image.sha256[:16], names.get(number, "~"))
    return [names[number] for number in component.tolist()]


def connected(pairs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The number of the component that each of some things is in, (count,), where pairs (P, 2) of them are tied."""
    from scipy.sparse import coo_array  # a second of import, for the process that needs it
    from scipy.sparse.csgraph import connected_components

    ties = coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(count, count))
    return np.asarray(connected_components(ties, directed=False)[1], np.int64)


def straddling(links: Iterable[Link], sides: Sequence[object]) -> list[Link]:
    """The links whose images are not all on one side (of a split: leaks; of the labels: conflicts)."""
    return [link for link in links if len({sides[member] for member in link.members}) > 1]


def near_duplicates(images: Sequence[ImageFile], memory: Path) -> list[Link]:
    """Pairs of images with different bytes that show the same picture, nearest first.

    Args:
        memory: a folder in which the pairs are remembered, as a search among many images takes its time.
    """
    content = hashlib.sha256(bytes([FORMAT]))
    for image in images:
        content.update(image.sha256.encode() + image.facts.hashes + image.facts.layout)
    file = memory / f"{content.hexdigest()[:20]}.json"
    with suppress(OSError, ValueError, TypeError):
        return [Link("near-duplicate", (a, b), distance) for a, b, distance in json.loads(file.read_bytes())]
    links = _near_duplicates(images)
    write_cache(file, json.dumps([(*link.members, link.distance) for link in links]))
    return links


def _near_duplicates(images: Sequence[ImageFile]) -> list[Link]:
    first_of: dict[str, int] = {}
    for index, image in enumerate(images):
        if image.facts.hashes:
            first_of.setdefault(image.sha256, index)
    indices = list(first_of.values())  # one of each set of copies
    if len(indices) < 2:
        return []
    joined = b"".join(images[index].facts.hashes for index in indices)
    hashes = np.frombuffer(joined, np.uint8).reshape(len(indices), len(ORIENTATIONS), BITS // 8)
    near = _pairs_within(hashes, REACH)
    is_near = _calibrated(hashes, near)
    layouts = [images[index].facts.layout for index in indices]
    found = [
        Link("near-duplicate", (indices[pair.a], indices[pair.b]), int(pair.distance))
        for pair in near
        if pair.distance <= CERTAIN
        or (is_near(pair) and _correlation(_turned(layouts[pair.a], pair.turn), _turned(layouts[pair.b], 0)) >= ALIKE)
    ]
    return sorted(found, key=lambda link: (link.distance, link.members))


def _pairs_within(hashes: Hashes, reach: int) -> list[_Pair]:
    """All pairs with at most `reach` different bits in their best orientation.

    An exhaustive search: quadratic, but at a billion comparisons a second; 100,000 images take half a minute. It goes
    from the last image to the first, so that each is compared with the later ones alone.
    """
    import faiss  # as above

    index = faiss.IndexBinaryFlat(BITS)
    backwards, last = hashes[::-1], len(hashes) - 1
    best: dict[tuple[int, int], _Pair] = {}
    for start in range(0, len(hashes), QUERIES):
        block = backwards[start : start + QUERIES]
        index.add(np.ascontiguousarray(block[:, 0]))
        queries = np.ascontiguousarray(block.reshape(-1, BITS // 8))
        ends, distances, found = index.range_search(queries, reach + 1)
        query = np.repeat(np.arange(len(queries)), np.diff(ends).astype(np.int64))
        ones, others, turns = last - start - query // len(ORIENTATIONS), last - found, query % len(ORIENTATIONS)
        chosen = ones < others
        for pair in map(_Pair, *(column[chosen].tolist() for column in (ones, others, distances, turns))):
            if pair.distance < best.get(pair[:2], pair._replace(distance=BITS)).distance:
                best[pair[:2]] = pair
    return sorted(best.values())


def _calibrated(hashes: Hashes, near: Sequence[_Pair]) -> Callable[[_Pair], bool]:
    """The rule that tells whether a pair is nearer than unrelated pairs of this set come by chance.

    The distances of each image to a sample of the others are scaled to that image's own median and spread. How the
    lower tail of all these falls off from its 1 % to its 0.1 % point is taken on, as an exponential, to the point
    beyond which chance brings `CHANCE` pairs for each image. A pair must pass it for both of its images.
    """
    copies = {pair.b for pair in near if pair.distance <= CERTAIN}
    originals = np.array([index for index in range(len(hashes)) if index not in copies])
    if len(originals) < FEWEST:
        return lambda pair: False
    references = originals[np.linspace(0, len(originals) - 1, min(REFERENCES, len(originals))).astype(int)]
    signs = _signs(hashes[references].reshape(-1, BITS // 8))
    median, spread = np.empty(len(hashes)), np.empty(len(hashes))
    tail = []
    for start in range(0, len(hashes), QUERIES):
        rows = slice(start, start + QUERIES)
        distances = (BITS - _signs(hashes[rows, 0]) @ signs.T) / 2
        distances = distances.reshape(len(distances), len(references), len(ORIENTATIONS)).min(axis=2)
        distances[references[None] == np.arange(start, start + len(distances))[:, None]] = BITS  # not to itself
        low, middle = np.quantile(distances, (0.01, 0.5), axis=1)
        median[rows], spread[rows] = middle, np.maximum((middle - low) / 2.33, 1)  # 2.33: a normal distribution's 1 %
        scaled = (distances - median[rows, None]) / spread[rows, None]
        tail.append(np.quantile(scaled, (0.001, 0.01)))
    deep, shallow = np.mean(tail, axis=0)
    others = (len(originals) - 1) / 2  # pairs for each image
    limit = deep - (shallow - deep) * max(0.0, np.log10(0.001 * others / CHANCE))
    return lambda pair: max((pair.distance - median[i]) / spread[i] for i in pair[:2]) < limit


def _turned(layout: bytes, turn: int) -> NDArray[np.float64]:
    """The colours of a picture in one of the 8 orientations, (64, 3), each channel about its mean."""
    picture = Image.frombytes("RGB", (LAYOUT_SIDE, LAYOUT_SIDE), layout)
    way = ORIENTATIONS[turn]
    colours = np.asarray(picture if way is None else picture.transpose(way), np.float64).reshape(-1, 3)
    centred: NDArray[np.float64] = colours - colours.mean(axis=0)
    return centred


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Pearson's correlation of two centred arrays of one shape; 0 where one is constant."""
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else 0.0


def _signs(packed: Hashes) -> NDArray[np.float32]:
    """Bits as -1 and 1, (N, BITS): the product of two rows is BITS minus twice their distance."""
    return np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1


def _alike(keys: Iterable[str]) -> list[tuple[int, ...]]:
    """The indices that share a key, for each key (not empty) that more than one has."""
    members = defaultdict(list)
    for index, key in enumerate(keys):
        if key:
            members[key].append(index)
    return [tuple(indices) for indices in members.values() if len(indices) > 1]
