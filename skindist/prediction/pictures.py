"""What there is to look at when a model has been tested: stress.jpg and errors/. They stay on the user's disk."""

import logging
import shutil
from collections.abc import Iterator, Sequence

from PIL import Image

from skindist.data.loading import Batch, LesionImages
from skindist.data.prepare import Prepared
from skindist.data.scan import CLASSES
from skindist.data.split import Row
from skindist.errors import UserError
from skindist.evaluation.frozen import Frozen
from skindist.evaluation.mistakes import telling_cases
from skindist.evaluation.predictions import Predictions
from skindist.evaluation.stress import DISTURBANCES, disturb
from skindist.files import whole_folder, write_atomic, write_csv
from skindist.inference.explain import explain
from skindist.prediction.predictor import Predictor
from skindist.report.pictures import Pixels, as_jpeg, beside_heat_map, contact_sheet
from skindist.run.folder import Run

SHOWN = 2  # images of each class in the picture of the stress test
AT_ONCE = 8  # images that are explained together
log = logging.getLogger("skindist")


def show_test(
    run: Run,
    predictor: Predictor,
    images: LesionImages,
    data: Prepared,
    frozen: Frozen,
    test: Predictions,
    stress: bool,
    explain: int,
) -> None:
    """Draw what there is to look at of the test images."""
    calibrated, threshold = frozen.calibration.apply(test), frozen.threshold.value
    if stress:
        draw_stress(run, images, calibrated)
    draw_errors(run, predictor, images, data.rows, calibrated, threshold, explain)


def draw_stress(run: Run, images: LesionImages, test: Predictions) -> None:
    """Draw the first test images of each class under each disturbance."""
    chosen = [int(sample_id) for label in (1, 0) for sample_id in test.ids[test.labels == label][:SHOWN]]
    batch = images.__getitems__([(0, sample_id) for sample_id in chosen])
    rows = [
        [pixels, *(disturb(pixels, name, images.seed, sample_id) for name in DISTURBANCES)]
        for pixels, sample_id in zip(pixels_of(batch), chosen, strict=True)
    ]
    write_atomic(run.stress_picture, contact_sheet(["as it is", *DISTURBANCES], rows))


def draw_errors(
    run: Run,
    predictor: Predictor,
    images: LesionImages,
    rows: Sequence[Row],
    test: Predictions,
    threshold: float,
    most: int,
) -> None:
    """Draw the most telling errors with heat maps, and list them. The run is whole without: a failure is said, and no
    more.

    Args:
        test: calibrated predictions.
        most: pictures of each kind; 0 draws none.
    """
    kinds = telling_cases(test.probabilities, test.labels, threshold, most)
    cases = [(kind, position) for kind, members in kinds.items() for position in members]
    shutil.rmtree(run.errors, ignore_errors=True)
    if not cases:
        return
    try:
        pictures = explained(predictor, images, test.ids[[position for _, position in cases]].tolist())
        lines = []
        with whole_folder(run.errors) as folder:
            for (kind, position), picture in zip(cases, pictures, strict=True):
                row, probability = rows[test.ids[position]], float(test.probabilities[position])
                name = run.error_picture(row.sha256).name
                write_atomic(folder / name, picture)
                lines.append((kind, row.path, CLASSES[row.label], repr(probability), name))
            write_csv(folder / run.error_list.name, ("kind", "path", "label", "probability", "picture"), lines)
    except Exception as error:  # of a driver, a library, a disk
        words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        log.warning(f"errors: no pictures of them are drawn: {words}")


def explained(predictor: Predictor, images: LesionImages, ids: Sequence[int]) -> Iterator[bytes]:
    """The picture of each image beside its heat map."""
    for start in range(0, len(ids), AT_ONCE):
        batch = images.__getitems__([(0, sample_id) for sample_id in ids[start : start + AT_ONCE]])
        yield from map(as_jpeg, beside_heat_maps(predictor, batch))


def beside_heat_maps(predictor: Predictor, batch: Batch) -> Iterator[Image.Image]:
    """Each image of a batch and, at its right, its heat map, (H, 2W, 3)."""
    images_BCHW = predictor.to_device(batch)[0]
    for start in range(0, len(images_BCHW), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        maps = explain(predictor.module, images_BCHW[part]).numpy()
        yield from map(beside_heat_map, pixels_of(batch)[part], maps)


def pixels_of(batch: Batch) -> list[Pixels]:
    """Each image, (H, W, 3)."""
    return list(batch.images_BCHW.permute(0, 2, 3, 1).numpy())
