"""What a run says to people, in a line or a few."""

from collections.abc import Mapping
from typing import Any

from skindist.wording import plural


def describe_epoch(epoch: int, metrics: Mapping[str, float], images_per_second: float | None, is_best: bool) -> str:
    """The validation metrics of a finished epoch."""
    speed = f", {images_per_second:.1f} images/s" if images_per_second else ""
    return (
        f"epoch {epoch}: val loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.1%}, "
        f"AUROC {metrics['auroc']:.3f}{speed}{' (best so far)' if is_best else ''}"
    )


def describe_results(results: Mapping[str, Any]) -> str:
    """How a run ended, and what its best epoch scores on the test set."""
    stop, test = results["early_stopping"], results["test"]
    reason = f"{'stopped early after ' if stop['stopped_early'] else ''}{plural(stop['epochs'], 'epoch')}"
    accuracy, auroc = test["accuracy"], test["auroc"]
    return (
        f"{reason}; best {stop['monitor']} {stop['best']:.4f} in epoch {stop['best_epoch']}\n"
        f"test: accuracy {accuracy['value']:.1%} (95 % interval {accuracy['low']:.1%} to {accuracy['high']:.1%}), "
        f"sensitivity {test['sensitivity']['value']:.1%}, specificity {test['specificity']['value']:.1%}, "
        f"AUROC {auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f}), {accuracy['n']} images"
    )
