"""`skindist evaluate`: what a saved model is worth on other images, with its threshold and calibration frozen."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from skindist.config import Config, EvaluationConfig
from skindist.data.loading import LesionImages, sample_ids
from skindist.data.prepare import Prepared, prepare_test
from skindist.data.split import count_rows, describe
from skindist.determinism import float32_of, tf32
from skindist.distributed import buffers, group
from skindist.distributed.group import decide, on_main
from skindist.evaluation.differences import differences
from skindist.evaluation.judgement import judge
from skindist.evaluation.predictions import Predictions
from skindist.evaluation.recalibration import halves, recalibrate
from skindist.evaluation.stress import stress_of
from skindist.files import finite, refuse_occupied, refuse_within, whole_folder
from skindist.inference.description import Description, read_description
from skindist.inference.saved_model import build_module, load_weights
from skindist.inference.seen import COUNTED, baseline_images, seen_in_training, training_data
from skindist.inference.sources import Source, find_model
from skindist.prediction.evaluate import evaluate
from skindist.prediction.loaders import choose_workers, eval_loader, open_store
from skindist.prediction.memory import images_at_a_time, memory_explained
from skindist.prediction.outcome import hardware, known_of, prediction_rows, versions
from skindist.prediction.pictures import show_test
from skindist.prediction.predictor import Predictor, build_predictor
from skindist.prediction.stress import stress_test
from skindist.randomness import Stream, derived_seed
from skindist.recipe import DataConfig, ModelConfig
from skindist.report.run_page import draw_run_page
from skindist.report.words import describe_evaluation, describe_places
from skindist.run.folder import Run

BATCH = 64  # images that a process predicts at a time, at most
SEED = 0  # of the intervals, the halves and the disturbances
log = logging.getLogger("skindist")


@dataclass(frozen=True)
class Asked:
    """What is asked of an evaluation beside its figures.

    `recalibrate`: fit threshold and calibration on half of the images, too, and show them on the other half. `stress`:
    disturb the images, too. `prevalence`: the share of malignant images at which PPV and NPV are stated; None: that of
    the images. `views`: positions in which each image is seen; None: those that the model was judged with.
    """

    recalibrate: bool = False
    stress: bool = False
    prevalence: float | None = None
    views: int | None = None


def evaluate_model(model: str, data: DataConfig, out: Path, asked: Asked = Asked()) -> dict[str, Any]:
    """Predict every image once, on all processes, and leave the figures, the predictions and a report in a new folder.

    Args:
        model: a run folder, its `model/` folder, or the id of a repository on the Hugging Face Hub.
        data: the images: class folders, or a split folder, of which the test part is used. The size is the model's.
        out: new or empty folder.

    Returns:
        What results.json holds, on every process.

    Raises:
        UserError: a mistake in the model, the images or the folder; raised on every process, and nothing is written.
        OutOfMemory: raised on the process that it happened to, or whose loader worker was killed.
    """
    accelerator = group.join_group()
    source, description = decide(accelerator, look_up, model, out, data.path, asked.views, may_take_hours=True)
    absolute, pixels = Config(data=data).with_absolute_paths().data, description.preprocessing
    config = replace(absolute, image_size=description.image_size)
    prepared = decide(accelerator, prepare_images, config, asked, may_take_hours=True)
    log.info(f"{describe(prepared.rows)}\n{group.describe(accelerator)}, {float32_of(accelerator.device)}")
    with memory_explained():
        module = build_module(description)
        on_main(accelerator, load_weights, source.folder, module, may_take_hours=True)
        predictor = build_predictor(accelerator, module, pixels, description.views)
        buffers.broadcast_weights(accelerator, module)  # the other processes have no weights yet
    store = open_store(accelerator, config, prepared, pixels.interpolation)
    images = LesionImages(store, prepared.rows, config.image_size, SEED, augmented=False)
    batch = images_at_a_time(predictor, config.image_size, BATCH)
    workers = choose_workers(accelerator, config, batch)
    with memory_explained():
        found = evaluate(predictor, eval_loader(accelerator, prepared, images, "test", batch, workers))
        disturbed = stress_test(predictor, config, prepared, images, batch) if asked.stress else {}
    write = partial(write_evaluation, out, source, description, config, prepared, predictor, images, found, disturbed)
    results = decide(accelerator, write, asked, may_take_hours=True)
    log.info(f"{describe_evaluation(results)}\n{describe_places(Run(out).results_file, Run(out).report)}")
    group.leave_group(accelerator)
    return results


def look_up(model: str, out: Path, images: str | None, views: int | None) -> tuple[Source, Description]:
    """The model's place and description, once it is clear that there is a place for what is found.

    Raises:
        UserError: there is no such model, or the place for what is found is not a new one outside the images.
    """
    refuse_occupied(out)
    refuse_within(out, "--out", images)
    source = find_model(model)
    return source, read_description(source.folder).seen_in(views)


def prepare_images(config: DataConfig, asked: Asked) -> Prepared:
    """The images, once it is clear that they can be halved, if they must."""
    prepared = prepare_test(config)
    if asked.recalibrate:
        halves(known_of(prepared, sample_ids(prepared.rows, "test")), SEED)
    return prepared


def write_evaluation(
    out: Path,
    source: Source,
    description: Description,
    images_of: DataConfig,
    data: Prepared,
    predictor: Predictor,
    images: LesionImages,
    found: Predictions,
    disturbed: dict[str, Predictions],
    asked: Asked,
) -> dict[str, Any]:
    """Compute the figures, then write all files at once; return what results.json holds."""
    frozen, seed = description.frozen, derived_seed(SEED, Stream.BOOTSTRAP)
    known = known_of(data, sample_ids(data.rows, "test"))
    config = EvaluationConfig(
        frozen.threshold.target_sensitivity,
        asked.prevalence,
        description.most_views,
        stress=bool(disturbed),
    )
    trained = training_data(source.run)
    seen, met = seen_in_training(trained, images_of, data)
    baseline = baseline_images(trained.data if trained else None, met)
    results = judge(frozen, None, (found, known), baseline, config, seed)
    results |= {
        "stress": stress_of(frozen, found, disturbed, known, seed),
        "differences": differences(description.trained_on, known),
        "seen_in_training": seen,
        "recalibrated": recalibrate(frozen, found, known, config, SEED) if asked.recalibrate else None,
        "model": {
            "architecture": description.architecture,
            "image_size": description.image_size,
            "views": asked.views,
            "skindist": description.version,
        },
        "images": {"test": count_rows(data.rows)["test"]},
        "left_out": len(data.quarantine),
        "world_size": predictor.accelerator.num_processes,
        "mixed_precision": "no",
        "tf32": tf32(predictor.accelerator.device),
        "versions": versions(),
        "hardware": hardware(predictor.accelerator.device),
    }
    results["verdict"] = " ".join([results["verdict"], *warnings(results)])
    told: dict[str, Any] = finite(results)
    with whole_folder(out) as folder:
        run = Run(folder)
        sections = Config(data=images_of, model=ModelConfig(description.architecture), evaluation=config).to_dict()
        run.write_settings({name: sections[name] for name in ("data", "model", "evaluation")})
        run.write_images(data.rows, data.quarantine)
        run.write_predictions("test", *prediction_rows(found, frozen.calibration, data))
        show_test(run, predictor, images, data, frozen, found, bool(disturbed), config.explain)
        run.write_results(told)
    draw_run_page(Run(out))
    return told


def warnings(results: Mapping[str, Any]) -> list[str]:
    """Why the figures may say less than they seem to, a sentence each."""
    seen, unlike = results["seen_in_training"], results["differences"]
    differs = unlike["malignant_share"]["differs"] or any(trait["differs"] for trait in unlike["traits"])
    said = [seen["note"]] if any(seen[name] for name in COUNTED) else []
    return [f"{note[0].upper()}{note[1:]}." for note in said + ([unlike["note"]] if differs else [])]
