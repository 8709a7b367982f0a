"""One batch of files: read, predicted, decided and explained, all by the thread that asks for its rows."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skindist.data.listing import Item
from skindist.data.loading import Batch
from skindist.data.resizing import seen_pixels
from skindist.data.scan import CLASSES
from skindist.data.transforms import IDENTITY
from skindist.errors import OutOfMemory
from skindist.evaluation.predictions import sigmoid
from skindist.files import write_atomic
from skindist.folding import for_prediction
from skindist.inference.description import Description
from skindist.inference.table import Row
from skindist.prediction.memory import is_out_of_memory
from skindist.prediction.pictures import beside_heat_maps
from skindist.prediction.predictor import Predictor
from skindist.report.pictures import as_png
from skindist.wording import plural

BYTES = 180  # of 255 that a file's name may have
NO_PATH = "this row of the table has no path"
NOT_FINITE = "the model's output is not finite"


class BatchReader:
    """Gives the rows of a batch of files. Threads may share it: where the model cannot serve several at a time, on a
    GPU and for heat maps, they take turns."""

    def __init__(self, predictor: Predictor, description: Description, maps: Path | None) -> None:
        self.predictor, self.description, self.maps = predictor, description, maps
        self.module = for_prediction(predictor.judged)
        alone = maps is not None or predictor.accelerator.device.type != "cpu"
        self.turn: AbstractContextManager[Any] = Lock() if alone else nullcontext()
        self.columns = ("path", "probability", "decision", "error", "logit", *(["heat_map"] if maps else []))

    def __call__(self, first: int, items: Sequence[Item]) -> list[Row]:
        """The rows of some files, in their order.

        Args:
            first: the number of the first one among all files, from 0.

        Raises:
            OutOfMemory: on the process that it happened to.
        """
        size, interpolation = self.description.image_size, self.description.preprocessing.interpolation
        seen = [seen_pixels(Path(item.path), size, interpolation) if item.path else NO_PATH for item in items]
        pixels = {index: pixels for index, pixels in enumerate(seen) if isinstance(pixels, Tensor)}
        names = [f"{first + index + 1:07d}-{plain(Path(items[index].name).stem)}.png" for index in pixels]
        told = dict(zip(pixels, self._told(list(pixels.values()), names), strict=True)) if pixels else {}
        nothing = (None,) * (len(self.columns) - 4)
        return [
            (item.name, *(told[index] if index in told else (None, None, seen[index], *nothing)))
            for index, item in enumerate(items)
        ]

    def _told(self, images: Sequence[Tensor], names: Sequence[str]) -> list[Row]:
        """What follows the path in the row of each image (S, S, 3), whose heat map may have this name."""
        frozen, count = self.description.frozen, len(images)
        pixels_BHWC = torch.stack(list(images))
        zeros_B = torch.zeros(count, dtype=torch.int64)
        batch = Batch(zeros_B, pixels_BHWC.permute(0, 3, 1, 2), zeros_B, IDENTITY.repeat(count, 1, 1))
        with self.turn:
            logits = self._seen(batch, names)
        finite = np.isfinite(logits)
        probabilities = sigmoid(frozen.calibration.of(np.where(finite, logits, 0.0))).tolist()
        more = [(name,) if self.maps else () for name in names]
        return [
            (probability, CLASSES[probability >= frozen.threshold.value], None, logit, *drawn)
            if sure
            else (None, None, NOT_FINITE, None, *drawn)
            for probability, logit, sure, drawn in zip(probabilities, logits.tolist(), finite, more, strict=True)
        ]

    def _seen(self, batch: Batch, names: Sequence[str]) -> NDArray[np.float64]:
        """Malignant minus benign, of each image, whose heat map is drawn if it is asked for."""
        try:
            with torch.inference_mode():
                logits_BK = self.predictor.logits(batch, self.module)
            benign_B, malignant_B = logits_BK.cpu().double().unbind(dim=1)
            if self.maps:
                for name, picture in zip(names, beside_heat_maps(self.predictor, batch), strict=True):
                    write_atomic(self.maps / name, as_png(picture))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            held = plural(len(batch.ids_B), "image")
            raise OutOfMemory(
                f"out of memory with {held} at a time: use a GPU or a machine with more memory"
            ) from error
        difference: NDArray[np.float64] = (malignant_B - benign_B).numpy()
        return difference


def plain(name: str) -> str:
    """As much of a file's name as another one may hold, without what no screen shows."""
    shown = "".join(letter if letter.isprintable() else "_" for letter in name)
    return shown.encode()[:BYTES].decode(errors="ignore")
