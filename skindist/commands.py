"""The commands of `skindist`, beside `train`: each function is one, its arguments the command's, and its docstring the
command's help. What they need is imported when they run: --help must not wait for torch."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from skindist.config import EvaluationConfig
from skindist.distributed.ending import together
from skindist.errors import UserError
from skindist.machine import cache_folder
from skindist.recipe import DataConfig, Word


def demo_data(directory: Path, count: int = 800, size: int = 96, seed: int = 0) -> None:
    """Draw a labelled folder of lesion-like pictures, to try the trainer without data.

    Args:
        directory: New or empty folder; gets benign/ and malignant/.
        count: Pictures, half of each class.
        size: Side in pixels.
        seed: Another seed draws other pictures.
    """
    from skindist.data.demo import write_demo_data

    write_demo_data(directory, count, size, seed)
    print(f"{count} pictures in {directory}; to train on them, in the project's folder:")
    print(f"  python launch/train.py --config launch/demo.yaml --data.path {directory}")
    print("elsewhere, from random weights:")
    print(f"  skindist train --data.path {directory} --data.image_size 64 --model.pretrained false --optim.lr 1.0")


def unpack(source: str, out: Path | None = None, image_column: str | None = None) -> None:
    """Write a data set of Parquet files, WebDataset archives or the Hub as a folder of images with a table.

    Args:
        source: A .parquet or .tar file, a folder of such, or OWNER/NAME on the Hugging Face Hub.
        out: New folder for images/ and metadata.csv.
        image_column: Column of the images; null: the only one there is.
    """
    if out is None:
        raise UserError("--out is missing: give a new folder for the images and their table")
    from skindist.data.unpack import IMAGES, TABLE, unpack

    unpack(source, out, image_column)
    print("look at the table, then train with the words that it has for the labels, for example:")
    print(
        f"  skindist train --data.path {out / IMAGES} --data.metadata {out / TABLE} --data.label_column label"
        " --data.malignant '[mel]' --data.benign '[nv]'"
    )


def audit(
    directory: Path,
    metadata: Path | None = None,
    page: Path = Path("audit.html"),
    label_column: str | None = None,
    malignant: tuple[Word, ...] = DataConfig.malignant,
    benign: tuple[Word, ...] = DataConfig.benign,
    other: Literal["error", "drop"] = "error",
    split_column: str | None = None,
) -> None:
    """Say what a folder of images holds before any training: bad files, copies, leaks, shortcuts.

    Args:
        directory: Folder with the class folders, split or not; with a column of labels, of any layout.
        metadata: CSV file with patient_id, lesion_id and more, as for --data.metadata.
        page: Where to write the same with pictures, as one HTML page.
        label_column: As for --data.label_column.
        malignant: As for --data.malignant.
        benign: As for --data.benign.
        other: As for --data.other.
        split_column: As for --data.split_column.
    """
    from skindist.report.audit import audit

    labels = {"label_column": label_column, "malignant": malignant, "benign": benign, "other": other}
    table = {"metadata": str(metadata) if metadata else None, "split_column": split_column}
    with own_flags():
        print(audit(DataConfig(path=str(directory), **table, **labels), page))  # type: ignore[arg-type]


def evaluate_elsewhere(  # the parser would look for `skindist.evaluate`, another thing, and import torch
    model: str,
    data: Path,
    out: Path | None = None,
    metadata: Path | None = None,
    recalibrate: bool = False,
    stress: bool = False,
    views: int | None = None,
    prevalence: float | None = None,
    max_bad: float = 0.05,
    cache_dir: Path | None = None,
    label_column: str | None = None,
    malignant: tuple[Word, ...] = DataConfig.malignant,
    benign: tuple[Word, ...] = DataConfig.benign,
    other: Literal["error", "drop"] = "error",
    split_column: str | None = None,
) -> int:
    """Say what a saved model is worth on other images, its threshold and calibration frozen.

    On several processes: accelerate launch --config_file accelerate_config.yaml --num_processes 4 -m skindist evaluate
    MODEL DATA --out DIR

    Args:
        model: Run folder, its model/ folder, or the id of a repository on the Hugging Face Hub.
        data: Folder with the class folders, or of any layout with a column of labels; of a folder or a table that is
            split into train, val and test, test alone is used.
        out: New folder for figures, predictions and report.
        metadata: CSV file with patient_id, lesion_id and more, as for --data.metadata.
        recalibrate: Fit threshold and calibration on half of the images, too, and show them on the other half.
        stress: Disturb the images, too (ink, hair, blur, ...), and say what that changes.
        views: Positions in which each image is seen, from 1 to 8; null: as many as the model was judged with.
        prevalence: Share of malignant images at which PPV, NPV and biopsies are stated; null: that of these images.
        max_bad: Share of images that cannot be used above which nothing is evaluated.
        cache_dir: As for --data.cache_dir.
        label_column: As for --data.label_column.
        malignant: As for --data.malignant.
        benign: As for --data.benign.
        other: As for --data.other.
        split_column: As for --data.split_column.
    """
    if out is None:
        raise UserError("--out is missing: give a new folder for what is found")
    table, cache = (str(path) if path else None for path in (metadata, cache_dir))
    labels = {"label_column": label_column, "malignant": malignant, "benign": benign, "other": other}
    config = DataConfig(
        path=str(data), metadata=table, max_bad=max_bad, cache_dir=cache, split_column=split_column,
        **labels,  # type: ignore[arg-type]
    )  # fmt: skip
    from skindist.inference.evaluation import Asked, evaluate_model

    asked = Asked(recalibrate, stress, prevalence, views)

    def run() -> None:
        with own_flags():
            EvaluationConfig(prevalence=prevalence)  # out of range, it is refused now
            evaluate_model(model, config, out, asked)

    return together(run)


@contextmanager
def own_flags() -> Iterator[None]:
    """What is read as in a training speaks of its flags: say them as `audit` and `evaluate` have them."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"--data\.path |(?<=--)(data|evaluation)\.", "", str(error))) from None


def predict(
    model: str,
    input: str,
    out: Path | None = None,
    overwrite: bool = False,
    explain: Path | None = None,
    views: int | None = None,
) -> int:
    """Say of each image how probably it is malignant, and what that means at the model's own threshold.

    One row a file, in the order of their names. A file that cannot be used has a reason instead of a probability. After
    an interruption, the same command goes on where it was. On several processes: accelerate launch --config_file
    accelerate_config.yaml --num_processes 4 -m skindist predict MODEL INPUT --out FILE

    Args:
        model: Run folder, its model/ folder, or the id of a repository on the Hugging Face Hub.
        input: Folder of images (any layout), one image, a quoted pattern, or a CSV file with a column `path`.
        out: New file for the rows: .csv, .jsonl or .parquet.
        overwrite: Replace the file that is there.
        explain: New folder for a heat map of each image, as PNG.
        views: Positions in which each image is seen, from 1 to 8; null: as many as the model was judged with.
    """
    if out is None:
        raise UserError("--out is missing: give a new .csv, .jsonl or .parquet file for the rows")
    from skindist.inference.predict import predict

    return together(lambda: predict(model, input, out, overwrite, explain, views))


def export(model: str, out: Path | None = None, overwrite: bool = False) -> None:
    """Write a saved model as one file that other programs run: pictures in, probabilities and decisions out.

    The file is tried first, and written only if its probabilities are those of the model.

    Args:
        model: Run folder, its model/ folder, or the id of a repository on the Hugging Face Hub.
        out: FILE.onnx, for onnxruntime and others; or FILE.pt2, for torch.export.load.
        overwrite: Replace the file if it exists.
    """
    if out is None:
        raise UserError("--out is missing: give FILE.onnx or FILE.pt2")
    from skindist.inference.export import export_model

    export_model(model, out, overwrite)


def push(model: str, repository: str, public: bool = False, yes: bool = False) -> None:
    """Send a saved model and its card to the Hugging Face Hub; what would be sent is shown first.

    Three files are sent, and nothing else: config.json, model.safetensors and README.md.

    Args:
        model: Run folder, or its model/ folder.
        repository: OWNER/NAME; it is made if there is none.
        public: Let everybody see it; else it is private.
        yes: Do not ask before sending.
    """
    from skindist.inference.push import push_model

    push_model(model, repository, public, yes)


def folds(
    command: Sequence[str],
    folds: int = 5,
    seeds: int = 1,
    out: Path | None = None,
    at_once: int = 1,
    only: int | None = None,
) -> None:
    """Train on each fold with each seed, and make one ensemble of all: figures that no split and no seed decides.

    Give the flags of a training beside those below: skindist folds --folds 5 --out DIR --data.path lesions. Or give
    your own command after --: skindist folds --folds 5 --out DIR -- accelerate launch --config_file
    accelerate_config.yaml --num_processes 2 launch/train.py --data.path lesions. All images but those of the test part
    are cut into folds. The same command again goes on where it was.

    Args:
        command: Words of the command.
        folds: Folds.
        seeds: Seeds, from 0; each has all folds.
        out: Folder of the runs, the ensemble and folds.json.
        at_once: Runs side by side, each with a GPU or its share of the cores.
        only: Number of one run, from 0, to be run alone: seed times folds plus fold. For a job array; the command
            without it then makes the ensemble.
    """
    if out is None:
        raise UserError("--out is missing: give a folder for the runs and the ensemble")
    from skindist.folds import run_folds

    run_folds(command, folds, seeds, out, at_once, only)


def ensemble(runs: Sequence[Path], out: Path | None = None) -> None:
    """Make one model of several runs on the same images: of other seeds, folds or architectures.

    Its probability is the mean of theirs. Its threshold is chosen on validation images, by the runs that did not train
    on them. It is judged on the test images, which must be the same in all runs.

    Args:
        runs: Run folders.
        out: New folder for the model, its figures and its page.
    """
    if out is None:
        raise UserError("--out is missing: give a new folder for the ensemble")
    from skindist.inference.joining import describe_ensemble, join_runs

    print(f"{describe_ensemble(join_runs(runs, out))}\nmodel: {out}")


def verify_resume(command: Sequence[str], steps: int = 6, kills: int = 2, folder: Path | None = None) -> int:
    """Check that a training command resumes bit for bit: run it, kill it, start it again, compare.

    COMMAND is yours, word for word, with its launcher, all on this machine: skindist verify-resume -- accelerate launch
    --config_file accelerate_config.yaml --num_processes 2 launch/train.py --data.path lesions. It runs for a few steps
    in new run folders, each step saved, W&B off: once whole, and once killed on the way (SIGKILL to all its processes)
    and started again. Exit status: 0 exact, 1 not exact, 2 a mistake.

    Args:
        command: Words of the command.
        steps: Optimizer steps to run; a checkpoint of each is kept until they are compared.
        kills: How often to kill it on the way.
        folder: New folder for both runs and their output; null: a temporary one, removed if all is exact.
    """
    from skindist.verify import verify_resume

    verdict = verify_resume(command, steps, kills, folder)
    print(verdict.message)
    return 0 if verdict.exact else 1


def clear_cache(cache_dir: Path | None = None) -> None:
    """Remove the prepared pixels, and what is remembered of scanned folders.

    Args:
        cache_dir: As for --data.cache_dir.
    """
    from skindist.data.store import clear_cache

    folder = cache_folder(str(cache_dir) if cache_dir else None)
    print(f"{clear_cache(folder) / 1e9:.2f} GB removed from {folder}")


def curves(run: Path) -> None:
    """Draw the curves of a run to RUN/curves.png.

    Args:
        run: Run folder.
    """
    from skindist.report.curves import draw_curves

    print(draw_curves(run))


def report(runs: Sequence[Path], page: Path | None = None, pictures: bool = True) -> None:
    """Write what a run's figures are worth as one HTML page, or put several runs side by side on one.

    Args:
        runs: Run folders.
        page: Where to write it; null: report.html in the run folder, or comparison.html here for several runs.
        pictures: Show pictures of the errors, and name files and folders. Pages without may leave your disk.
    """
    from skindist.report.run_page import write_run_page
    from skindist.report.runs_page import write_runs_page
    from skindist.run.folder import Run

    several = [Run(folder) for folder in runs]
    if len(several) == 1:
        print(write_run_page(several[0], page, pictures))
    else:
        print(write_runs_page(several, page or Path("comparison.html"), pictures))
