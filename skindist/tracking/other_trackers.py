"""Curves for other trackers than W&B: those that Accelerate knows, by their names. They may fail without harm.

They get what W&B gets as numbers: the config without its paths, the curves, and the test figures, under the same names.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from skindist.config import Config, TrackingConfig
from skindist.errors import UserError, first_line
from skindist.run.folder import Run
from skindist.run.record import Event
from skindist.tracking.wandb_sink import figures_of_test

TRIED = ("tensorboard", "trackio", "mlflow")  # what they send by themselves was looked at
HIDDEN = {  # MLflow sends these by itself: who, which file, and of which state of the code
    "mlflow.user": "-",
    "mlflow.source.name": "skindist",
    "mlflow.source.type": "LOCAL",
    "mlflow.source.git.commit": "-",
}
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # seconds; else minutes go by
log = logging.getLogger("skindist")


def check_trackers(config: TrackingConfig) -> None:
    """Raise UserError for a tracker that Accelerate does not know, or whose package is missing."""
    available = {str(name) for name in get_available_trackers()}
    for name in config.names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(
                f"--tracking.to {name}: no such tracker; choose among {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            )
        if name not in available:
            raise UserError(f"--tracking.to {name}: its package is not installed: pip install {name}")


class OtherTrackers(AbstractContextManager["OtherTrackers"]):
    """Offers events to each tracker but W&B, on the main process; one that fails is named once and then left alone.

    The end of its `with` block closes all of them.
    """

    def __init__(self, accelerator: Accelerator, run: Run, config: Config, wandb_id: str, global_step: int) -> None:
        """
        Args:
            wandb_id: what a run without a name is called by, with its model.
            global_step: from which the run goes on: TensorBoard forgets what was logged after it.
        """
        self.trackers: dict[str, GeneralTracker] = {}
        if not accelerator.is_main_process:
            return
        called = config.tracking.name or f"{config.model.name}-{wandb_id}"
        os.environ.update({name: value for name, value in QUICK.items() if name not in os.environ})
        for name in config.tracking.names:
            if name != "wandb":
                self._start(name, run, config, called, global_step)

    def _start(self, name: str, run: Run, config: Config, called: str, global_step: int) -> None:
        project = config.tracking.project
        options: dict[str, tuple[str, dict[str, Any]]] = {
            "tensorboard": ("tensorboard", {"logging_dir": str(run.path), "purge_step": global_step + 1}),
            "trackio": (project, {"name": called, "resume": "allow", "auto_log_gpu": False, "embed": False}),
            "mlflow": (project, {"run_name": called, "tags": HIDDEN}),
            "dvclive": (project, {"dir": str(run.path / "dvclive")}),
        }
        if name not in TRIED:
            log.info(f"{name}: skindist sends it no path and no name, but what it sends by itself was not looked at")
        first, more = options.get(name, (project, {}))
        switched_on_late = name == "tensorboard" and not (run.path / name).exists() and run.record.exists()
        try:
            tracker = LOGGER_TYPE_TO_CLASS[name](first, **more)
            tracker.start()
            plain = {
                f"{part}.{key}": value if isinstance(value, bool | int | float) else str(value)
                for part, keys in config.without_paths().items()
                for key, value in keys.items()
            }
            if name == "tensorboard":  # Accelerate would make a second run of them
                rows = "\n".join(f"| {key} | {value} |" for key, value in plain.items())
                tracker.tracker.add_text("config", f"| setting | value |\n| --- | --- |\n{rows}")
            else:
                tracker.store_init_configuration(plain)
            for event in run.metrics() if switched_on_late else ():
                tracker.log(_numbers(event), step=int(event["global_step"]))
            self.trackers[name] = tracker
        except Exception as error:  # no common base: each has its own
            log.warning(f"{name} cannot be used ({first_line(error)}); the record of the run is {run.record}")

    def __exit__(self, *_: object) -> None:
        for tracker in self.trackers.values():
            with suppress(Exception):
                tracker.finish()

    def log(self, values: Event) -> None:
        """Send one event."""
        self._send(_numbers(values), values["global_step"])

    def finish(self, results: Mapping[str, Any], global_step: int) -> None:
        """Send the test figures with the ends of their 95 % intervals."""
        self._send(_numbers(figures_of_test(results)), global_step)

    def _send(self, values: Mapping[str, float], step: float) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                tracker.log(dict(values), step=int(step))
            except Exception as error:
                log.warning(f"{name} stopped ({first_line(error)}); the run goes on, and its own record is whole")
                del self.trackers[name]


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """Those values that there are: a figure of no images is None."""
    return {name: value for name, value in values.items() if value is not None}
