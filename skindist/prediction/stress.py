"""The stress test on all processes: every disturbed image is predicted once, like the images as they are."""

from collections.abc import Callable

from torch.utils.data import Dataset

from skindist.data.loading import Batch, Key, LesionImages
from skindist.data.prepare import Prepared
from skindist.evaluation.predictions import Predictions
from skindist.evaluation.stress import DISTURBANCES, disturb
from skindist.prediction.evaluate import evaluate
from skindist.prediction.loaders import choose_workers, eval_loader
from skindist.prediction.predictor import Predictor
from skindist.recipe import DataConfig


class DisturbedImages(Dataset[Batch]):
    """Images under one disturbance: a list of (epoch, sample id) gives their `Batch`."""

    def __init__(self, images: LesionImages, disturbance: str) -> None:
        self.images, self.disturbance = images, disturbance

    def __getitems__(self, keys: list[Key]) -> Batch:
        batch = self.images.__getitems__(keys)
        images_BHWC = batch.images_BCHW.permute(0, 2, 3, 1).numpy()  # its memory: what is changed is the batch
        for image_HWC, (_, sample_id) in zip(images_BHWC, keys, strict=True):
            image_HWC[:] = disturb(image_HWC, self.disturbance, self.images.seed, sample_id)
        return batch


def stress_test(
    predictor: Predictor,
    config: DataConfig,
    data: Prepared,
    images: LesionImages,
    batch_size: int,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, Predictions]:
    """The predictions of the test images under each disturbance, by its name; on any number of processes the same."""
    found, workers = {}, choose_workers(predictor.accelerator, config, batch_size)
    for name in DISTURBANCES:
        disturbed = DisturbedImages(images, name)
        loader = eval_loader(predictor.accelerator, data, disturbed, "test", batch_size, workers)
        found[name] = evaluate(predictor, loader, after_batch)
    return found
