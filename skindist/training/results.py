"""What a finished run leaves: predictions, the best model, and results.json."""

from typing import Any

from safetensors import SafetensorError

from skindist.config import Config
from skindist.data.loading import LesionImages, sample_ids
from skindist.data.prepare import Prepared
from skindist.data.split import SPLITS, count_rows
from skindist.determinism import repeats, tf32
from skindist.early_stopping import EarlyStopping
from skindist.errors import TrainingError
from skindist.evaluation.differences import summarize
from skindist.evaluation.frozen import freeze
from skindist.evaluation.judgement import judge
from skindist.evaluation.predictions import Predictions
from skindist.evaluation.stress import stress_of
from skindist.files import finite
from skindist.inference.saved_model import save_model
from skindist.prediction.outcome import hardware, known_of, prediction_rows, tell_leaks, versions
from skindist.prediction.pictures import show_test
from skindist.randomness import Stream, derived_seed
from skindist.report.model_card import model_card
from skindist.run.folder import Run
from skindist.training.learner import Learner
from skindist.training.state import TrainState


def write_results(
    run: Run,
    config: Config,
    data: Prepared,
    learner: Learner,
    state: TrainState,
    stopping: EarlyStopping,
    predictions: dict[str, Predictions],
    disturbed: dict[str, Predictions],
    images: LesionImages,
) -> dict[str, Any]:
    """Write predictions-*.csv, model/, pictures and, last, results.json; return what the latter holds.

    Threshold and calibration are fixed from the validation images before a test image is looked at.
    """
    seed, asked = derived_seed(config.run.seed, Stream.BOOTSTRAP), config.evaluation
    known = {split: known_of(data, sample_ids(data.rows, split)) for split in SPLITS}
    frozen = freeze(predictions["val"], known["val"], asked, seed)
    val, test = ((predictions[split], known[split]) for split in ("val", "test"))
    results = judge(frozen, val, test, known["train"], asked, seed)
    tell_leaks(results, data.rows)
    results["stress"] = stress_of(frozen, predictions["test"], disturbed, known["test"], seed)
    for split, found in predictions.items():
        run.write_predictions(split, *prediction_rows(found, frozen.calibration, data))
    results |= {
        "early_stopping": {
            "monitor": config.early_stopping.monitor,
            **stopping.state_dict(),
            "epochs": state.epoch,
            "stopped_early": stopping.should_stop and state.epoch < config.train.epochs,
        },
        "images": count_rows(data.rows),
        "left_out": len(data.quarantine),
        "images_seen": state.images_seen,
        "skipped_steps": state.skipped,
        "overflowed_steps": state.overflowed,
        "train_seconds": state.train_seconds,
        "images_per_second": state.images_per_second,
        "world_size": learner.accelerator.num_processes,
        "mixed_precision": learner.accelerator.mixed_precision,
        "deterministic": repeats(learner.accelerator.device),
        "tf32": tf32(learner.accelerator.device),
        "versions": versions(),
        "hardware": hardware(learner.accelerator.device),
    }
    told: dict[str, Any] = finite(results)  # every process is told what the file holds
    card, trained_on = model_card(config, told), summarize(known["train"])
    show_test(run, learner, images, data, frozen, predictions["test"], bool(disturbed), asked.explain)
    try:
        save_model(run.model, learner.module, config.data.image_size, frozen, trained_on, card, learner.views)
    except SafetensorError as error:  # of a full disk; it is no OSError
        raise TrainingError(f"{run.model}: {error}") from None
    run.write_results(told)
    return told
