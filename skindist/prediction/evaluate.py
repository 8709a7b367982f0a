"""The loop that predicts a split on all processes: in training, after it, and of a saved model elsewhere."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from skindist.data.loading import EvalLoader
from skindist.distributed import host
from skindist.distributed.group import Accelerator
from skindist.errors import TrainingError
from skindist.evaluation.predictions import Predictions
from skindist.folding import for_prediction
from skindist.prediction.memory import advised
from skindist.prediction.predictor import Predictor


@torch.inference_mode()
def evaluate(predictor: Predictor, split: EvalLoader, after_batch: Callable[[], None] = lambda: None) -> Predictions:
    """Predict every image of a split exactly once, whatever the number of processes; every rank gets all of them.

    It is done in float32, whatever the precision of training, as everyone will who loads the saved model.

    Args:
        after_batch: called after each batch, as often on every rank.

    Raises:
        RuntimeError: an image is missing or came twice.
        OutOfMemory: on the process that it happened to.
    """
    predictor.module.eval()  # and so it stays, for what the caller does with it
    module = for_prediction(predictor.judged)
    known, logits = [torch.empty(0, 2)], [torch.empty(0, 2, device=predictor.accelerator.device)]
    for batch in progress(split.loader, f"evaluating {split.name}", "batch", predictor.accelerator):
        if len(batch.ids_B):
            with advised(len(batch.ids_B), evaluating=True):
                logits.append(predictor.logits(batch, module))
            known.append(torch.stack([batch.ids_B, batch.labels_B], dim=1))
        after_batch()
    benign_N, malignant_N = host.to_host(torch.cat(logits)).double().unbind(dim=1)
    ids_N, labels_N = torch.cat([part.double() for part in known]).unbind(dim=1)
    table = host.gather_rows(torch.stack([ids_N, malignant_N - benign_N, labels_N], dim=1)).numpy()
    table = table[table[:, 0].argsort()]
    ids = table[:, 0].astype(np.int64)
    if not np.array_equal(ids, np.sort(split.ids)):
        raise RuntimeError(
            f"{split.name}: {len(ids)} predictions of {len(set(ids.tolist()))} images, not {len(split.ids)}"
        )
    if not np.isfinite(table).all():
        raise TrainingError(f"{split.name}: the model's output is not finite; train it with a lower --optim.lr")
    return Predictions(ids, table[:, 1], table[:, 2].astype(np.int64))


def progress(steps: Any, title: str, unit: str, accelerator: Accelerator, **options: Any) -> Any:
    """A progress bar on the main process, where a terminal shows it."""
    hidden = None if accelerator.is_main_process else True
    return tqdm(steps, title, unit=unit, leave=False, disable=hidden, **options)
