"""Commands with a saved model: judge it on other images, use it, export it, send it."""

from pathlib import Path
from typing import Literal

from skindist.commands.data import own_flags
from skindist.config import EvaluationConfig
from skindist.distributed.ending import together
from skindist.errors import UserError
from skindist.extras import require
from skindist.recipe import DataConfig, Word


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
        out: Required: new folder for figures, predictions and report.
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
    with own_flags():
        config = DataConfig(
            path=str(data), metadata=table, max_bad=max_bad, cache_dir=cache, label_column=label_column,
            malignant=malignant, benign=benign, other=other, split_column=split_column,
        )  # fmt: skip
    from skindist.inference.evaluation import Asked, evaluate_model

    asked = Asked(recalibrate, stress, prevalence, views)

    def run() -> None:
        with own_flags():
            EvaluationConfig(prevalence=prevalence)  # out of range, it is refused now
            evaluate_model(model, config, out, asked)

    return together(run)


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
        out: Required: new file for the rows: .csv, .jsonl or .parquet.
        overwrite: Replace the file that is there.
        explain: New folder for a heat map of each image, as PNG.
        views: Positions in which each image is seen, from 1 to 8; null: as many as the model was judged with.
    """
    if out is None:
        raise UserError("--out is missing: give a new .csv, .jsonl or .parquet file for the rows")
    from skindist.inference.predict import predict

    return together(lambda: predict(model, input, out, overwrite, explain, views), "the same command goes on")


def export(model: str, out: Path | None = None, overwrite: bool = False) -> None:
    """Write a saved model as one file that other programs run: pictures in, probabilities and decisions out.

    The file is tried first, and written only if its probabilities are those of the model.

    Args:
        model: Run folder, its model/ folder, or the id of a repository on the Hugging Face Hub.
        out: Required: FILE.onnx, for onnxruntime and others; or FILE.pt2, for torch.export.load.
        overwrite: Replace the file if it exists.
    """
    if out is None:
        raise UserError("--out is missing: give FILE.onnx or FILE.pt2")
    if out.suffix.lower() == ".onnx":
        require("export", "onnx", "onnxruntime", "onnxscript")
    from skindist.inference.export import export_model

    export_model(model, out, overwrite)


def push(model: str, repository: str, public: bool = False, yes: bool = False) -> None:
    """Send a saved model and its card to the Hugging Face Hub; what would be sent is shown first.

    Nothing is sent but config.json, model.safetensors and README.md; of an ensemble, those of each member, and its own
    config.json and README.md.

    Args:
        model: Run folder, or its model/ folder.
        repository: OWNER/NAME; it is made if there is none.
        public: Let everybody see it; else it is private.
        yes: Do not ask before sending.
    """
    from skindist.inference.push import push_model

    push_model(model, repository, public, yes)
