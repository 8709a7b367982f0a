"""A finished run without the training: the code of the end of a run, fed with invented predictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from skindist.config import Config, EvaluationConfig
from skindist.data.inspection import Facts
from skindist.data.loading import sample_ids
from skindist.data.prepare import Prepared, prepare
from skindist.data.split import Row, count_rows
from skindist.evaluation.frozen import freeze
from skindist.evaluation.judgement import judge
from skindist.evaluation.predictions import Predictions
from skindist.files import finite
from skindist.prediction.outcome import known_of, prediction_rows
from skindist.recipe import DataConfig
from skindist.run.folder import Run


def made_run(folder: Path, config: Config, data: Prepared, seed: int = 0, skill: float = 1.5) -> Run:
    """A run whose model tells the classes apart by `skill` standard deviations of its logits, too sure of itself."""
    folder.mkdir(parents=True)
    run, rng = Run(folder), np.random.default_rng(seed)
    run.write_beginning(config, data.rows, data.quarantine)
    predictions = {}
    for split in ("val", "test"):
        ids = np.array(sample_ids(data.rows, split))
        labels = np.array([data.rows[sample_id].label for sample_id in ids])
        logits = 2 * (rng.normal(size=ids.size) + skill * labels - 1)
        predictions[split] = Predictions(ids, logits, labels)
    known = {split: known_of(data, sample_ids(data.rows, split)) for split in ("train", "val", "test")}
    frozen = freeze(predictions["val"], known["val"], config.evaluation, seed)
    val, test = ((predictions[split], known[split]) for split in ("val", "test"))
    results = judge(frozen, val, test, known["train"], config.evaluation, seed)
    for split, found in predictions.items():
        run.write_predictions(split, *prediction_rows(found, frozen.calibration, data))
    run.record.write_text("".join(f"{json.dumps(event)}\n" for event in events()))
    run.write_results(
        finite({**results, **ending(), "images": count_rows(data.rows), "left_out": len(data.quarantine)})
    )
    return run


def events() -> list[dict[str, float]]:
    """Curves of three epochs, the second the best one."""
    steps = [{"epoch": step / 4, "global_step": step, "train/loss": 0.7 - 0.04 * step} for step in range(1, 13)]
    values = ((0.6, 0.7), (0.5, 0.8), (0.55, 0.78))
    ends = [
        {"epoch": epoch, "global_step": 4 * epoch, "val/loss": loss, "val/auroc": auroc, "val/accuracy": auroc}
        for epoch, (loss, auroc) in enumerate(values, start=1)
    ]
    return [*steps, *ends]


def ending() -> dict[str, Any]:
    """What results.json says beside the judgement."""
    return {
        "early_stopping": {
            "monitor": "val/loss", "best": 0.5, "best_epoch": 2, "bad_epochs": 1, "epochs": 3, "stopped_early": True,
        },
        "images_seen": 120, "skipped_steps": [], "train_seconds": 60.0, "images_per_second": 2.0, "world_size": 2,
        "mixed_precision": "no", "versions": {"skindist": "0.1.0"}, "hardware": {"device": "cpu", "cpu_cores": 2},
    }  # fmt: skip


def prepared(images: Path, table: Path) -> tuple[Config, Prepared]:
    """The split of a folder of drawn lesions, with a table that knows the sex of each; half of them to test on."""
    paths = sorted(images.glob("*/*.png"))
    lines = [f"{path.relative_to(images)},{('female', 'male')[i % 2]}" for i, path in enumerate(paths)]
    table.write_text("\n".join(["path,sex", *lines]))
    data = DataConfig(path=str(images), metadata=str(table), fractions=(0.25, 0.2, 0.55), image_size=32)
    return Config(data=data), prepare(data, seed=0)


def invented(count: int) -> tuple[Config, Prepared]:
    """As many test images as asked for, one in five malignant, and a few to validate on; none of them exists."""
    sizes = {"train": 60, "val": 200, "test": count}
    rows = [
        Row(
            f"{('benign', 'malignant')[n % 5 == 0]}/{split}{n}.jpg",
            int(n % 5 == 0),
            split,
            f"{split}{n}",
            f"{split}{n}",
        )
        for split, size in sizes.items()
        for n in range(size)
    ]
    facts = [Facts("", file_size=9, format="JPEG", width=9, height=9, colours=(1.0,) * 9)] * len(rows)
    return Config(evaluation=EvaluationConfig(prevalence=0.02)), Prepared(rows, facts)
