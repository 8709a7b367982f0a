"""Where the numbers go: metrics.jsonl is the record; Weights & Biases is a sink that may fail without harm.

What leaves the house is the config without its paths, the curves, and plots of labels and probabilities. Image names,
console output, code and machine details do not.
"""

import json
import logging
import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from accelerate import Accelerator

from skindist.config import Config
from skindist.data.scan import CLASSES
from skindist.evaluation.metrics import THRESHOLD
from skindist.files import finite, write_atomic
from skindist.training.engine import Predictions
from skindist.training.state import TrainState

log = logging.getLogger("skindist")
SUMMARY_PARTS = {"": "value", "_low": "low", "_high": "high"}  # of a figure and its 95 % interval
PATHS = (  # local paths may name people: not uploaded
    ("data", "path"), ("data", "metadata"), ("data", "cache_dir"), ("model", "weights"), ("run", "dir")
)  # fmt: skip


class Tracker:
    """Writes each event to metrics.jsonl and offers it to W&B; does nothing on other processes than the main one."""

    def __init__(self, accelerator: Accelerator, run: Path, config: Config, wandb_id: str | None) -> None:
        self.accelerator = accelerator
        self.path = run / "metrics.jsonl"
        self.main = accelerator.is_main_process
        self.wandb: Any = None
        self.mode = wandb_mode(config.tracking.wandb) if self.main else "disabled"
        if self.mode != "disabled":
            self._attempt(lambda: self._start_wandb(run, config, wandb_id))

    def _start_wandb(self, run: Path, config: Config, wandb_id: str | None) -> None:
        import wandb

        values = config.to_dict()
        for section, key in PATHS:
            values[section].pop(key)

        def init(mode: str) -> None:
            settings = wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                finish_timeout=60,
                init_timeout=30,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
                silent=True,
            )
            options = {
                "dir": str(run), "id": wandb_id, "name": run.name, "mode": mode, "resume": "allow", "settings": settings
            }  # fmt: skip
            self.accelerator.init_trackers(config.tracking.project, values, {"wandb": options})

        try:
            init(self.mode)
        except Exception as error:
            if self.mode != "online":
                raise
            log.warning(f"W&B cannot be reached ({_first_line(error)}): recording offline")
            self.accelerator.trackers.clear()
            wandb.teardown()  # it still holds the run's id
            self.mode = "offline"
            init("offline")
        self.wandb = self.accelerator.get_tracker("wandb", unwrap=True)
        self.wandb.define_metric("*", step_metric="global_step")

    def log(self, values: dict[str, Any]) -> None:
        """Append one event; it is on its way to disk when this returns."""
        if not self.main:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(finite(values)) + "\n")
        self._attempt(lambda: self.wandb.log(values))

    def log_epoch(self, state: TrainState, metrics: dict[str, float], is_best: bool) -> None:
        """Log the validation metrics of a finished epoch and say them in one line."""
        speed = state.images_seen / state.train_seconds
        values = {f"val/{name}": value for name, value in metrics.items()}
        self.log({**values, "train/images_per_second": speed, "epoch": state.epoch, "global_step": state.global_step})
        log.info(
            f"epoch {state.epoch}: val loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.1%}, "
            f"AUROC {metrics['auroc']:.3f}, {speed:.1f} images/s{' (best so far)' if is_best else ''}"
        )

    def finish(self, results: dict[str, Any], test: Predictions) -> None:
        """Send the final figures to W&B with the plots that it draws, close it, and say where the curves are."""
        if self.wandb is None:
            return
        self._attempt(lambda: self._send_results(results, test))
        self._attempt(lambda: self._finish_wandb())

    def _send_results(self, results: dict[str, Any], test: Predictions) -> None:
        import wandb

        labels: Any = test.labels.tolist()
        probabilities: Any = np.stack([1 - test.probabilities, test.probabilities], axis=1)
        names, guesses = list(CLASSES), (test.probabilities >= THRESHOLD).astype(int).tolist()
        malignant: dict[str, Any] = {"labels": names, "classes_to_plot": [1]}
        self.wandb.log(
            {
                "test/confusion_matrix": wandb.plot.confusion_matrix(y_true=labels, preds=guesses, class_names=names),
                "test/roc": wandb.plot.roc_curve(labels, probabilities, **malignant),
                "test/precision_recall": wandb.plot.pr_curve(labels, probabilities, **malignant),
            }
        )
        figures = {name: figure for name, figure in results["test"].items() if "value" in figure}
        for name, figure in figures.items():
            self.wandb.summary.update({f"test/{name}{part}": figure[key] for part, key in SUMMARY_PARTS.items()})
        self.wandb.summary.update({"best_epoch": results["early_stopping"]["best_epoch"]})

    def _finish_wandb(self) -> None:
        offline = f"recorded offline; to see the curves: wandb login, then wandb sync {Path(self.wandb.dir).parent}"
        where = self.wandb.url if self.mode == "online" else offline
        self.wandb.finish()
        log.info(f"W&B: {where}")

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do something with W&B; a failure is reported once and ends its part in this run."""
        if self.mode == "disabled":
            return
        try:
            action()
        except Exception as error:
            log.warning(f"W&B stopped ({_first_line(error)}); the run goes on, its record is {self.path}")
            self.mode, self.wandb = "disabled", None


def wandb_mode(asked: str) -> str:
    """online, offline or disabled: "auto" follows WANDB_MODE, else is online where an API key is found."""
    if asked != "auto":
        return asked
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    """Look where `wandb login` and CI systems put it; wandb's own look-up would ask the server and wait for it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    host = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def rewind(path: Path, global_step: int) -> None:
    """Drop the events after a checkpoint's step, which the resumed run will log again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["global_step"] <= global_step:
                kept.append(line)
        except ValueError:  # the last line of a run that was killed
            break
    write_atomic(path, "".join(kept))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
