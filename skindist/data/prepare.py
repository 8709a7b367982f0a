"""From a folder to rows that can be trusted: survey it, leave out what cannot be used, split, and say what was done."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from skindist.data.duplicates import Link
from skindist.data.inspection import Facts
from skindist.data.metadata import Metadata
from skindist.data.scan import ImageFile, Scan
from skindist.data.split import Row, count_rows, cut_into_folds, make_split, refuse_changed_images
from skindist.data.survey import Survey, describe_links, look_into, metadata_of, survey
from skindist.errors import UserError
from skindist.recipe import DataConfig
from skindist.wording import percent, plural, printable

LISTED = 5  # files named in one message
BESIDE = 4  # files named in one line of it
FEWEST = 5  # images of a class in a test set: with fewer, no interval says anything
log = logging.getLogger("skindist")


@dataclass(frozen=True)
class Prepared:
    """What a run uses: its rows (sample ids are their positions), what the file of each row told (without hashes and
    layout), the images left out and why, and the metadata by path."""

    rows: list[Row]
    facts: list[Facts]
    quarantine: list[tuple[str, str]] = field(default_factory=list)
    metadata: Metadata = field(default_factory=dict)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height in pixels of each row's image."""
        return [(facts.width, facts.height) for facts in self.facts]


def prepare(config: DataConfig, seed: int) -> Prepared:
    """Survey the folder, apply the policies for bad files and leaks, and split.

    Raises:
        UserError: as `survey`; too many bad images; a leak under `data.leaks: error`; a split that cannot be drawn.
    """
    found = survey(config)
    refuse_bad(config, found)
    say_what_was_found(found)
    left_out = found.bad | dict(found.scan.left_out) | dropped_for_leaks(config, found)
    kept = [index for index, image in enumerate(found.images) if image.path not in left_out]
    images, groups = [found.images[index] for index in kept], [found.groups[index] for index in kept]
    rows = make_split(images, groups, config.fractions, seed if config.fold is None else 0)
    if config.fold is not None:
        rows = cut_into_folds(rows, config.folds, config.fold)
    elif {image.split for image in images} == {"train", "test"}:
        validation = sum(row.split == "val" for row in rows)
        log.info(f"data: no val/ folder: {validation} images of train/ serve as validation")
    return Prepared(rows, _facts(rows, images), sorted(left_out.items()), found.metadata)


def prepare_test(config: DataConfig) -> Prepared:
    """One test set for a model that is there already: all images, or of a split folder those of its test part alone.

    Raises:
        UserError: as `survey`; too many bad images; too few images of a class to say anything.
    """
    found = survey(config, "test")
    refuse_bad(config, found)
    say_what_was_found(found)
    bad = found.bad
    kept = [(image, group) for image, group in zip(found.images, found.groups, strict=True) if image.path not in bad]
    rows = sorted((Row(i.path, i.label, "test", group, i.sha256) for i, group in kept), key=lambda row: row.path)
    for name, count in count_rows(rows)["test"].items():
        if count < FEWEST:
            raise UserError(
                f"--data.path {config.path}: {plural(count, f'{name} image')} to test on; with fewer than {FEWEST} of "
                f"a class nothing can be said: add {name} images"
            )
    left_out = sorted((bad | dict(found.scan.left_out)).items())
    return Prepared(rows, _facts(rows, found.images), left_out, found.metadata)


def prepare_again(config: DataConfig, rows: list[Row]) -> Prepared:
    """Look again at the images of a split that was made before; raises as `prepared_of`."""
    return prepared_of(config, rows, look_into(config))


def prepared_of(config: DataConfig, rows: list[Row], scan: Scan, quiet: bool = False) -> Prepared:
    """The images of a split that was made before, as they lie in their folder now.

    Args:
        quiet: say nothing of the table.

    Raises:
        UserError: an image is gone, cannot be used any more, or has other bytes.
    """
    refuse_changed_images(rows, scan.images)
    told = metadata_of(config, scan, quiet)
    metadata = {row.path: told[row.path] for row in rows if row.path in told}
    return Prepared(rows, _facts(rows, scan.images), metadata=metadata)


def _facts(rows: Iterable[Row], images: Iterable[ImageFile]) -> list[Facts]:
    """What the file of each row told, in little: every process of a run holds it."""
    facts = {image.path: image.facts._replace(hashes=b"", layout=b"") for image in images}
    return [facts[row.path] for row in rows]


def refuse_bad(config: DataConfig, found: Survey) -> None:
    """Raise UserError naming the bad images, where the policy does not let them be left out."""
    bad, total = found.bad, len(found.images) + len(found.scan.bad)
    if not bad or (config.on_bad == "quarantine" and len(bad) <= config.max_bad * total):
        return
    limit = "" if config.on_bad == "error" else f", more than --data.max_bad {percent(config.max_bad)}"
    raise UserError(
        f"--data.path {config.path}: {len(bad)} of {total} images cannot be used{limit}; repair or remove them:\n"
        + listing([printable(f"{path}: {reason}") for path, reason in bad.items()])
    )


def say_what_was_found(found: Survey) -> None:
    """Log what a user should know of the files, in a few lines."""
    if others := found.scan.others:
        log.info(f"data: files that are not images: {len(others)} (such as {printable(others[0])})")
    if bad := found.bad:
        log.warning(f"data: images that cannot be used and are left out: {len(bad)}; quarantine.csv says why")
    if notes := Counter(note for image in found.images for note in image.facts.notes):
        words = ", ".join(f"{count} {note}" for note, count in sorted(notes.items()))
        log.info(f"data: read as upright RGB: {words}")
    if found.links:
        log.info(f"data: belong together: {describe_links(found.links)}")
    if large := describe_large_group(found):
        log.warning(f"data: {large}")
    if conflicts := [link for link in found.conflicts() if link.kind != "same bytes"]:
        labels = [image.label for image in found.images]
        lines = listing([describe_link(found, link, labels) for link in conflicts])
        log.warning(f"data: near-duplicates, ISIC ids or lesions that have both labels: {len(conflicts)}\n{lines}")


def describe_large_group(found: Survey) -> str:
    """The group that holds more than a third of the images, and the lesion or patient that most of it is; "" if none
    does."""
    group, size = next(iter(Counter(found.groups).most_common(1)), ("", 0))
    if size < 2 or 3 * size <= len(found.groups):
        return ""
    said = f"the largest group that a split must not part holds {size:,} of {len(found.groups):,} images"
    link = max((link for link in found.links if found.groups[link.members[0]] == group), key=lambda it: len(it.members))
    if link.kind not in ("lesion", "patient"):
        return said
    name = found.metadata[found.images[link.members[0]].path][f"{link.kind}_id"]
    return f"{said}; {len(link.members):,} are of {link.kind} {name!r}: if that means unknown, leave these cells empty"


def dropped_for_leaks(config: DataConfig, found: Survey) -> dict[str, str]:
    """What crosses a given split: said, refused, or the training images to leave out (path and reason)."""
    leaks = found.leaks()
    if not leaks:
        return {}
    sides: dict[str, set[str]] = defaultdict(set)
    for image, group in zip(found.images, found.groups, strict=True):
        sides[group].add(image.split)
    dropped = {
        image.path: f"leak: belongs together with an image in {' and '.join(sorted(sides[group] - {'train'}))}"
        for image, group in zip(found.images, found.groups, strict=True)
        if image.split == "train" and len(sides[group]) > 1
    }
    splits = [image.split for image in found.images]
    lines = listing([describe_link(found, link, splits) for link in leaks])
    said = f"{plural(len(leaks), 'leak')} over the given split: {describe_links(leaks)}\n{lines}"
    if config.leaks == "error":
        raise UserError(f"--data.leaks error: {said}\nclean {config.path}, or choose warn or drop-from-train")
    if config.leaks == "warn":
        without = f"; --data.leaks drop-from-train trains without {plural(len(dropped), 'image')}" if dropped else ""
        log.warning(f"data: {said}\n  test figures will flatter{without}")
        return {}
    log.warning(f"data: {said}\n  training images that are left out: {len(dropped)}")
    if rest := sum({"val", "test"} <= names for names in sides.values()):
        log.warning(f"data: --data.leaks drop-from-train does not mend groups in both val and test: {rest}")
    return dropped


def describe_link(found: Survey, link: Link, sides: Sequence[object]) -> str:
    """A link's kind and the first few of its images; one of each side comes before a second one of any."""
    first = {sides[member]: member for member in reversed(link.members)}.values()
    shown = sorted(link.members, key=lambda member: member not in first)[:BESIDE]
    more = f" ... and {len(link.members) - BESIDE:,} more" if len(link.members) > BESIDE else ""
    return f"{link.kind}: {', '.join(printable(found.images[member].path) for member in shown)}{more}"


def listing(lines: Sequence[str]) -> str:
    """The first few lines, indented, and how many there are more."""
    more = [f"... and {len(lines) - LISTED} more (skindist audit lists them)"] if len(lines) > LISTED else []
    return "\n".join(f"  {line}" for line in [*lines[:LISTED], *more])
