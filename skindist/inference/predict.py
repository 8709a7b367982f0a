"""`skindist predict`: one row a file, with its calibrated probability and the decision at the frozen threshold.

The files are cut into batches by their order alone, and one thread computes a batch from beginning to end. So the
numbers are the same, bit for bit, on any number of processes and threads of one kind of device. Rows are kept as they
come: an interrupted command goes on where it was.
"""

import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from importlib.metadata import version
from itertools import islice, zip_longest
from pathlib import Path

import torch

from skindist.data.listing import list_files
from skindist.determinism import float32_of
from skindist.distributed import group, host
from skindist.distributed.group import Accelerator, decide, on_all, on_main
from skindist.errors import UserError
from skindist.evaluation.frozen import Frozen
from skindist.files import expanded, refuse_bad_file
from skindist.inference.batches import in_order, readers
from skindist.inference.explain import explain
from skindist.inference.saved_model import SavedModel
from skindist.inference.seeing import BatchReader
from skindist.inference.sources import load_model
from skindist.inference.table import WRITERS, GrowingTable, part_of
from skindist.prediction.evaluate import progress
from skindist.prediction.memory import images_at_a_time, memory_explained
from skindist.prediction.outcome import hardware
from skindist.prediction.predictor import Predictor, build_predictor
from skindist.report.words import figure_text, origin_of_threshold
from skindist.wording import plural

BATCH, BATCH_ON_CPU = 64, 8  # images of one batch, at most; on a CPU each thread has one
LIBRARIES = ("skindist", "torch", "timm", "numpy", "pillow")
log = logging.getLogger("skindist")


def predict(
    model: str,
    given: str,
    out: Path,
    overwrite: bool = False,
    maps: Path | None = None,
    views: int | None = None,
) -> dict[str, int]:
    """Predict every file that is meant once, on all processes, and write one row for each.

    Args:
        model: as `load_model` takes it.
        given: a folder, an image, a pattern, or a CSV file with a column `path`, as `list_files` takes it.
        out: new .csv, .jsonl or .parquet file.
        overwrite: whether `out` may be there already, and `maps` hold something.
        maps: folder for a heat map of each image; None: none are drawn.
        views: positions in which each image is seen; None: those that the model was judged with.

    Returns:
        On the main process how many rows there are of each decision and, under "error", without one; else nothing.

    Raises:
        UserError: a mistake in the model, the files or the places to write to; raised on every process.
        TrainingError: the disk is full; raised on every process. What is done so far is kept.
        OutOfMemory: raised on the process that it happened to.
    """
    accelerator = group.join_group()
    total = decide(accelerator, look, given, out, overwrite, maps, may_take_hours=True)
    saved = fetch(accelerator, model, views)
    description, device = saved.description, accelerator.device
    on_cpu = device.type == "cpu"
    with memory_explained():
        predictor = build_predictor(accelerator, saved.module, description.preprocessing, description.views)
    seen = f"each image is seen in {plural(views, 'position')}; the threshold stays as it is\n" if views else ""
    log.info(f"{describe_frozen(description.frozen)}\n{seen}{group.describe(accelerator)}, {float32_of(device)}")
    if maps:
        on_all(accelerator, make_place_for_maps, maps, predictor, description.image_size)
    batch = images_at_a_time(predictor, description.image_size, BATCH_ON_CPU if on_cpu else BATCH)
    depends_on = what_rows_depend_on(saved, accelerator, batch, given, maps)
    reader = BatchReader(predictor, description, maps)
    threads = torch.get_num_threads() if on_cpu else readers(accelerator)
    with ExitStack() as stack:
        table = on_main(accelerator, open_table, out, overwrite, depends_on, batch)
        if table:
            stack.enter_context(table)
        kept = decide(accelerator, take_up, table, given, out, maps, may_take_hours=True)
        log.info(
            f"{total - kept:,} of {plural(total, 'file')} to predict; rows are kept in {part_of(out)} until the end"
        )
        started, files = time.perf_counter(), islice(list_files(given, own_files(out, maps)), kept, None)
        bar = stack.enter_context(progress(None, "predicting", "image", accelerator, total=total, initial=kept))
        for rows in stack.enter_context(closing(in_order(accelerator, reader, files, kept, batch, threads))):
            on_main(accelerator, GrowingTable.append, table, rows)
            bar.update(len(rows))
        bar.close()
        counts = on_main(accelerator, finish, table, reader.columns, may_take_hours=True) or {}
    speed = (total - kept) / (time.perf_counter() - started)
    log.info(f"{describe_counts(counts, total)} ({speed:.1f} images/s)\nrows: {out}")
    group.leave_group(accelerator)
    return counts


def own_files(out: Path, maps: Path | None) -> set[Path]:
    """What is written while files are looked for, maybe in the same folder."""
    return {Path(os.path.realpath(place)) for place in (out, part_of(out), maps) if place}


def look(given: str, out: Path, overwrite: bool, maps: Path | None) -> int:
    """How many files are meant, once it is clear that there is a place for what is found.

    Raises:
        UserError: there is none, or no file.
    """
    refuse_bad_file(out, WRITERS, overwrite)
    if maps and expanded(given).is_dir() and maps.resolve().is_relative_to(expanded(given).resolve()):
        raise UserError(f"--explain {maps}: lies in {given}, so that its pictures would be predicted; give another")
    if maps and maps.exists() and not maps.is_dir():
        raise UserError(f"--explain {maps}: is not a folder; give another")
    if maps and maps.is_dir() and any(maps.iterdir()) and not (overwrite or part_of(out).exists()):
        raise UserError(f"--explain {maps}: is not empty; give a new folder, or --overwrite")
    total, found, missing = 0, False, ""
    for item in list_files(given, own_files(out, maps)):
        total, found = total + 1, found or Path(item.path).is_file()
        missing = missing or item.name
    if not total:
        raise UserError(f"{given}: no file is there that is not hidden; give another")
    if not found:
        raise UserError(
            f"{given}: none of its {plural(total, 'path')} is a file, such as {missing}; they start in the folder that "
            "the table is in"
        )
    return total


def fetch(accelerator: Accelerator, model: str, views: int | None) -> SavedModel:
    """The model on every process: the main process reads it first, and fetches it, if it is on the Hub.

    Raises:
        UserError: there is none, or another one on another machine; raised on every process.
    """
    first = on_main(accelerator, load_model, model, views, may_take_hours=True)
    saved: SavedModel = on_all(accelerator, lambda: first or load_model(model, views), may_take_hours=True)
    if len(set(host.gather(digest(saved)))) > 1:
        raise UserError(f"{model}: another model is there on another machine; copy one to all of them")
    return saved


def digest(saved: SavedModel) -> str:
    """SHA-256 of all that decides on a row, beside the image."""
    found = hashlib.sha256(repr(saved.description).encode())
    for name, tensor in sorted(saved.module.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def what_rows_depend_on(
    saved: SavedModel, accelerator: Accelerator, batch: int, given: str, maps: Path | None
) -> Mapping[str, str | None]:
    """What must be the same where an unfinished table is continued, in the words of a message."""
    return {
        "--views": str(saved.description.most_views),
        "model": digest(saved),
        "INPUT": str(Path(given).absolute()),
        "--explain": str(maps.absolute()) if maps else None,
        "device": f"{hardware(accelerator.device)['device']}, {float32_of(accelerator.device)}",
        "number of images at a time": str(batch),
        "version of skindist or its libraries": " ".join(map(version, LIBRARIES)),
    }


def make_place_for_maps(maps: Path, predictor: Predictor, size: int) -> None:
    """Create the folder, once it is clear that the model can be explained.

    Raises:
        UserError: it cannot, or the folder cannot be created.
    """
    with memory_explained():
        explain(predictor.module, torch.zeros(1, 3, size, size, device=predictor.accelerator.device))
    try:
        maps.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--explain {maps}: cannot be created ({error.strerror})") from None


def open_table(out: Path, overwrite: bool, depends_on: Mapping[str, str | None], batch: int) -> GrowingTable:
    """The table, once nobody else writes it. Raises UserError where it cannot be, or has come to be meanwhile."""
    with ExitStack() as stack:
        table = stack.enter_context(GrowingTable(out, depends_on, batch))
        refuse_bad_file(out, WRITERS, overwrite)
        stack.pop_all()
    return table


def take_up(table: GrowingTable, given: str, out: Path, maps: Path | None) -> int:
    """How many rows of an earlier process are kept.

    Raises:
        UserError: they are not of the first files that there are now.
    """
    for row, item in zip_longest(table.rows(), islice(list_files(given, own_files(out, maps)), table.kept)):
        if row is None or item is None or row[0] != item.name:
            name = row[0] if row else item.name if item else "?"
            raise UserError(
                f"{table.part}: the files are not those that it was begun with (such as {name}); bring them back, or "
                "delete it to begin anew"
            )
    return table.kept


def finish(table: GrowingTable, columns: Sequence[str]) -> dict[str, int]:
    """Write the whole table; return how many rows there are of each decision and, under "error", without one."""
    counts = Counter(str(row[2] or "error") for row in table.rows())
    table.finish(columns)
    return dict(counts)


def describe_frozen(frozen: Frozen) -> str:
    """What decides, for the console."""
    threshold, calibration = frozen.threshold, frozen.calibration
    plain, value = calibration.changes_nothing, figure_text(threshold.value, "threshold")
    return (
        f"decision: malignant from a {'' if plain else 'calibrated '}probability of {value} on, "
        f"{origin_of_threshold(vars(threshold))}"
        + (f"; its probabilities are {calibration.note or 'not calibrated'}" if plain else "")
    )


def describe_counts(counts: Mapping[str, int], total: int) -> str:
    """What was found, for the console."""
    parts = [f"{counts.get(name, 0):,} {name}" for name in ("malignant", "benign")]
    bad = f", {counts['error']:,} that cannot be used (the column error says why)" if counts.get("error") else ""
    return f"{plural(total, 'file')}: {', '.join(parts)}{bad}"
