"""Weights & Biases as a sink that may fail without harm: the run's own record is whole without it.

What leaves the house is the config without its paths, the curves, plots of labels and probabilities, and how busy the
machine is. Image names, console output, code and the machine's own name do not, and images only if asked for. Every
call of W&B has a time limit: when it is over, W&B's service process is killed, and whatever waits for it fails at once.
"""

import logging
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from skindist.config import Config
from skindist.data.scan import CLASSES
from skindist.errors import Stopped
from skindist.evaluation.calibration import Calibration
from skindist.evaluation.counts import called_malignant
from skindist.evaluation.metrics import METRICS
from skindist.evaluation.predictions import Predictions
from skindist.files import finite
from skindist.run.folder import Run
from skindist.tracking.wandb_service import GRACE, Notices, names_there, synced_mark, teardown, time_limit, wandb_mode

log = logging.getLogger("skindist")
START, FINISH = 20.0, 20.0  # seconds that W&B itself is told to take at most
LEAVE = 4.0  # seconds when the run is stopped: schedulers kill 30 s after their signal
IMAGES = 16  # with the largest error, if images are asked for


class WandbSink(AbstractContextManager["WandbSink"]):
    """Offers events to W&B; does nothing on other processes than the main one, and after W&B has failed once.

    An exception that ends its `with` block also ends W&B's part, within seconds; otherwise call `finish`.
    """

    def __init__(self, accelerator: Accelerator, run: Run, config: Config, wandb_id: str) -> None:
        self.accelerator = accelerator
        self.run = run
        self.wandb: Any = None
        self.notices = Notices()
        asked = accelerator.is_main_process and "wandb" in config.tracking.names
        self.mode = wandb_mode(config.tracking.wandb) if asked else "disabled"
        self.is_new_there = not any(run.path.glob("wandb/*run-*"))  # W&B is told of the steps before, too
        if self.mode == "online":
            self._start_online(config, wandb_id)
        if self.mode == "offline":
            self._attempt(START + GRACE, lambda: self._start(config, wandb_id))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if isinstance(error, Stopped):
            self._attempt(LEAVE, lambda: self._finish(error.status, preempted=True))
        elif error:
            self._attempt(LEAVE, lambda: self._finish(1))

    def _start_online(self, config: Config, wandb_id: str) -> None:
        before = set(self.run.path.glob("wandb/run-*"))
        try:
            with time_limit(START + GRACE):
                self._start(config, wandb_id)
        except Exception as error:
            log.warning(f"W&B cannot be reached ({_first_line(error)}): recording offline")
            self._abandon("offline")  # it still holds the run's id
            for folder in set(self.run.path.glob("wandb/run-*")) - before:
                shutil.rmtree(folder, ignore_errors=True)  # it holds nothing

    def _start(self, config: Config, wandb_id: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its reports hold tracebacks, thus paths
        os.environ.pop("WANDB_SERVICE", None)  # another process's service could not be ended
        import wandb

        values = config.without_paths()
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            finish_timeout=FINISH,
            finish_timeout_raises=True,
            init_timeout=START,
            program="skindist",  # else the script's path
            reinit="finish_previous",
            silent=True,
            x_disable_meta=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=1.0,
        )
        project, name = names_there(config, wandb_id)
        options = {
            "dir": str(self.run.path), "id": wandb_id, "name": name, "mode": self.mode, "resume": "allow",
            "settings": settings,
        }  # fmt: skip
        wandb.setup(settings)
        wandb.termsetup(settings, self.notices)
        self.accelerator.init_trackers(project, values, {"wandb": options})
        self.wandb = self.accelerator.get_tracker("wandb", unwrap=True)
        self.wandb.define_metric("train/*", step_metric="global_step")
        self.wandb.define_metric("val/*", step_metric="epoch")
        if self.is_new_there and self.run.record.exists():
            for event in self.run.metrics():
                self._send(event)

    def log(self, values: dict[str, Any]) -> None:
        """Send one event.

        W&B's step follows from the run's: it ignores what a resumed run logs again, and parts recorded offline fit
        together. An epoch is judged after its last step, maybe by the next process, so it has a step of its own.
        """
        self._attempt(GRACE, lambda: self._send(values))

    def _send(self, event: dict[str, Any]) -> None:
        self.wandb.log(event, step=2 * event["global_step"] + ("val/loss" in event))

    def finish(self, results: dict[str, Any], test: Predictions, images: Any = None) -> None:
        """Send the final figures to W&B with the plots that it draws, close it, and say where the curves are.

        Args:
            images: the `LesionImages` to take the test images with the largest error from; None sends no images.
        """
        self._attempt(FINISH, lambda: self._send_results(results, test, images))
        self._attempt(FINISH + GRACE, self._finish)

    def _send_results(self, results: dict[str, Any], test: Predictions, images: Any) -> None:
        import wandb

        test = calibrated(results, test)
        labels: Any = test.labels.tolist()
        probabilities: Any = np.stack([1 - test.probabilities, test.probabilities], axis=1)
        threshold = results["test"]["threshold"]
        names, guesses = list(CLASSES), called_malignant(test.probabilities, threshold).astype(int).tolist()
        matrix = f"Confusion matrix at {threshold:g}"
        malignant: dict[str, Any] = {"labels": names, "classes_to_plot": [1]}
        sent: dict[str, Any] = {
            "test/confusion_matrix": wandb.plot.confusion_matrix(None, labels, guesses, names, matrix),
            "test/roc": wandb.plot.roc_curve(labels, probabilities, **malignant),
            "test/precision_recall": wandb.plot.pr_curve(labels, probabilities, **malignant),
            "test/reliability": wandb.plot.line(
                wandb.Table(*reliability_rows(results)), "mean_probability", "malignant_share", title="Reliability"
            ),
            "test/thresholds": wandb.plot.line(
                wandb.Table(*threshold_rows(results, test)),
                "threshold",
                "sensitivity",
                title="Sensitivity by threshold",
            ),
        }
        for key, chart in sent.items():  # a table that is bound to no run becomes an artifact, which names local paths
            chart.table.bind_to_run(self.wandb, f"{key}_table", self.wandb.step)
        if images:
            worst = np.argsort(-np.abs(test.labels - test.probabilities), kind="stable")[:IMAGES]
            pixels = images.__getitems__([(0, int(sample_id)) for sample_id in test.ids[worst]]).images_BCHW
            sent["test/largest_errors"] = [
                wandb.Image(
                    image, caption=f"{names[test.labels[i]]}, probability of malignant {test.probabilities[i]:.3f}"
                )
                for i, image in zip(worst, pixels.permute(0, 2, 3, 1).numpy(), strict=True)
            ]
        self.wandb.log(sent)
        best = results["early_stopping"]["best_epoch"]
        judged = next(event for event in self.run.metrics() if "val/loss" in event and event["epoch"] == best)
        shown = {name: value for name, value in judged.items() if name.startswith("val/")}  # not the last epoch's
        point = results["operating_point"]
        shown |= {f"operating_point/{name}": point["test"][name]["value"] for name in ("sensitivity", "specificity")}
        shown["operating_point/threshold"] = point["threshold"]
        self.wandb.summary.update({**figures_of_test(results), **shown, "best_epoch": best})

    def _finish(self, exit_code: int = 0, preempted: bool = False) -> None:
        record, url = Path(self.wandb.settings.sync_file), self.wandb.url if self.mode == "online" else None
        if preempted:
            self.wandb.mark_preempting()
        self.wandb.finish(exit_code)
        teardown()
        if url and self.notices.gave_up:
            raise ConnectionError("its server refused the upload")
        if url:
            synced_mark(record).touch()
        self.mode = "disabled"
        log.info(f"W&B: {url or 'recorded offline'}{self._to_upload()}")

    def _attempt(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something with W&B; a failure is reported once and ends its part in this run."""
        if self.mode == "disabled":
            return
        try:
            with time_limit(seconds):
                action()
        except Exception as error:
            self._abandon("disabled")
            log.warning(
                f"W&B stopped ({_first_line(error)}); the record of the run is {self.run.record}{self._to_upload()}"
            )

    def _abandon(self, mode: str) -> None:
        """Let go of W&B, in whatever state it is; go on in this mode."""
        with suppress(TimeoutError), time_limit(GRACE):
            teardown()
        self.accelerator.trackers.clear()
        self.mode, self.wandb = mode, None

    def _to_upload(self) -> str:
        """How to upload what W&B may not have received of this run, from all its attempts."""
        records = [
            file for file in sorted(self.run.path.glob("wandb/*run-*/*.wandb")) if not synced_mark(file).exists()
        ]
        folders = " ".join(shlex.quote(str(file.parent)) for file in records)
        hidden = "WANDB_HOST=- WANDB_PROGRAM=-"  # else it sends the machine's name and its own path
        return f"; to upload what it lacks: {hidden} wandb sync --include-online {folders}" if records else ""


def calibrated(results: dict[str, Any], test: Predictions) -> Predictions:
    """The predictions that all figures of the results are of."""
    fitted = results["calibration"]
    return Calibration(fitted["temperature"], fitted["bias"]).apply(test)


def figures_of_test(results: Mapping[str, Any]) -> dict[str, float | None]:
    """The test figures and the ends of their 95 % intervals, by the names that a tracker shows."""
    parts = {"": "value", "_low": "low", "_high": "high"}
    return {f"test/{name}{part}": results["test"][name][key] for name in METRICS for part, key in parts.items()}


def reliability_rows(results: dict[str, Any]) -> tuple[list[str | int], list[list[Any]]]:
    """Columns and rows of the bins of calibration that hold an image."""
    columns: list[str | int] = ["mean_probability", "malignant_share", "n"]
    bins = results["calibration"]["reliability"]["after"]
    return columns, [[row[column] for column in columns] for row in bins if row["n"]]


def threshold_rows(results: dict[str, Any], test: Predictions) -> tuple[list[str | int], list[list[Any]]]:
    """Columns and rows of what other thresholds would give, beside the chosen one. The predictions are calibrated."""
    chosen = results["operating_point"]["threshold"]
    shares = [METRICS[name] for name in ("sensitivity", "specificity", "ppv", "npv")]
    rows = [
        [threshold, *(finite(share(test.probabilities, test.labels, threshold)) for share in shares)]
        for threshold in sorted({chosen, *(np.arange(1, 20) / 20).tolist()})
    ]
    return ["threshold", *(share.name for share in shares)], rows


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
