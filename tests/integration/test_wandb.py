"""Weights & Biases, whatever its server does: same results, status 0, bounded time, a record that can be uploaded."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from skindist import cli
from skindist.cli import show_log
from skindist.distributed import group
from skindist.errors import TrainingError
from skindist.evaluation.predictions import Predictions
from skindist.parsing import parse_config
from skindist.run import folder as run_folder
from skindist.run import record as run_record
from skindist.tracking.other_trackers import OtherTrackers
from skindist.tracking.wandb_sink import WandbSink, calibrated, reliability_rows, threshold_rows
from skindist.training.tracker import Tracker
from tests.conftest import Observe
from tests.helpers.commands import PATIENCE, ROOT, TINY, flags
from tests.helpers.forked import Forked
from tests.helpers.wandb_server import Fault, Run, WandbServer
from tests.integration.test_run import events

STEPS = [2, 3, 3, 5, 6, 6]  # global steps that a run of two epochs logs; each ends with a validation
PLOTS = {f"test/{name}_table" for name in ("confusion_matrix", "roc", "precision_recall", "reliability", "thresholds")}
START, END, LEAVE = 60, 75, 40  # seconds from the run's begin to an epoch, from the last to the results, to the exit
UPLOAD = "; to upload what it lacks: "
UPLOADED = "the printed command uploads {points} points of the curve and {plots} plots"


@dataclass
class Done:
    """A run that has ended: what it said, when, in seconds of a clock, and how it ended."""

    lines: list[tuple[float, str]]
    errors: str
    status: int
    ended: float

    def when(self, start: str) -> float:
        """When it said the first line that starts so."""
        return next(seconds for seconds, line in self.lines if line.startswith(start))

    @property
    def seconds(self) -> float:
        """From its first line to its end."""
        return self.ended - self.lines[0][0]

    @property
    def said(self) -> str:
        return "".join(line for _, line in self.lines)

    @property
    def timeline(self) -> str:
        """What it said, each line with its seconds."""
        start = self.lines[0][0]
        return "".join(f"{seconds - start:6.1f} {line}" for seconds, line in [*self.lines, (self.ended, "end")])

    @property
    def upload(self) -> str:
        """The command that it printed."""
        (line,) = (line for _, line in self.lines if UPLOAD in line)
        return line.partition(UPLOAD)[2].strip()


def clean(env: dict[str, str]) -> dict[str, str]:
    """This environment without a W&B login, and with these variables."""
    here = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{here['PATH']}"
    return here | {"NETRC": os.devnull, "PATH": path, "OMP_NUM_THREADS": "1"} | env


Process = Forked | subprocess.Popen[str]
Watch = Callable[[str, Process], None]


def train(words: list[str], env: dict[str, str], watch: Watch = lambda line, process: None) -> Done:
    """Run the main job to its end; `watch` sees each line when it is said."""
    return watched(Forked(cli.train, words, env=clean(env)), watch)


def watched(process: Process, watch: Watch = lambda line, process: None) -> Done:
    """What a run says until it has ended."""
    lines = []
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.monotonic(), line))
            watch(line, process)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode is not None
    return Done(lines, errors, process.returncode, time.monotonic())


def record(folder: Path) -> tuple[list[dict[str, Any]], bytes]:
    """What a run has found: its curves, and its predictions."""
    logged = events(folder)
    for event in logged:
        event.pop("train/images_per_second", None)
    return logged, (folder / "predictions-test.csv").read_bytes()


def upload(command: str) -> Run:
    """Run a printed command against a healthy server; what that server then knows of the one run."""
    with WandbServer() as server:
        upload_to(server, command, {})
        (run,) = server.runs.values()
        return run


def upload_to(server: WandbServer, command: str, env: dict[str, str]) -> None:
    """Run a printed command against this server, from another folder."""
    env = clean(server.env | env)
    with TemporaryDirectory() as elsewhere:  # where it leaves a folder of logs
        done = subprocess.run(
            command, shell=True, capture_output=True, text=True, env=env, cwd=elsewhere, timeout=PATIENCE, check=False
        )
    assert done.returncode == 0, done.stderr


def curve(run: Run) -> list[int]:
    """The global steps of the points of the curves, as they came."""
    return [row["global_step"] for row in run.rows if "train/loss" in row or "val/loss" in row]


def assert_complete(run: Run, logged: list[dict[str, Any]]) -> None:
    """All that metrics.jsonl holds, and the final figures and plots."""
    assert curve(run) == [event["global_step"] for event in logged], "each once, in the same order"
    assert [row["val/loss"] for row in run.rows if "val/loss" in row] == [
        event["val/loss"] for event in logged if "val/loss" in event
    ]
    assert {"test/auroc", "test/auroc_low", "test/auroc_high", "best_epoch"} | PLOTS <= set(run.summary)
    judged = [event for event in logged if "val/loss" in event]
    best = judged[run.summary["best_epoch"] - 1]
    for name in ("val/loss", "val/auroc"):
        assert run.summary[name] == pytest.approx(best[name], abs=1e-12), "of the best epoch, not of the last"
    tables = [name for name in run.files if name.startswith("media/table/test/")]
    assert len(tables) == len(PLOTS)
    assert run.exit_code == 0


def test_the_tables_of_bins_and_thresholds() -> None:
    bins = [{"n": 2, "mean_probability": 0.1, "malignant_share": 0.5, "low": 0.1}, {"n": 0, "mean_probability": None}]
    results = {
        "calibration": {"temperature": 2.0, "bias": -1.0, "reliability": {"after": bins}},
        "operating_point": {"threshold": 0.5},
    }
    assert reliability_rows(results) == (["mean_probability", "malignant_share", "n"], [[0.1, 0.5, 2]])
    logits = 2 * (np.log([0.1 / 0.9, 0.3 / 0.7, 0.62 / 0.38, 0.8 / 0.2]) + 1)
    test = calibrated(results, Predictions(np.arange(4), logits, np.array([0, 1, 0, 1])))
    assert test.probabilities == pytest.approx([0.1, 0.3, 0.62, 0.8]), "without the bias, 0.53 would be malignant"
    columns, rows = threshold_rows(results, test)
    assert columns == ["threshold", "sensitivity", "specificity", "ppv", "npv"]
    assert [row[0] for row in rows] == pytest.approx(np.arange(1, 20) / 20)
    assert rows[9] == [0.5, 0.5, 0.5, 0.5, 0.5]
    assert rows[13] == [0.7, 0.5, 1.0, 1.0, 2 / 3]
    assert rows[18] == [0.95, 0.0, 1.0, None, 0.5]


@pytest.fixture(scope="module")
def healthy(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Done, WandbServer]]:
    """A run of two epochs with a healthy server: its folder, what it said, and the server."""
    folder = tmp_path_factory.mktemp("healthy") / "run"
    with WandbServer() as server:
        yield folder, train(flags(demo, folder), server.env), server


def test_online(healthy: tuple[Path, Done, WandbServer]) -> None:
    folder, done, server = healthy
    assert (done.status, done.errors) == (0, "")
    assert server.unknown == []
    ((run_id, run),) = server.runs.items()
    assert f"W&B: {server.url}/tester/skindist/runs/{run_id}\n" in done.said
    assert_complete(run, events(folder))
    assert curve(run) == STEPS
    assert run.name == f"test_resnet-{run_id}"
    assert json.loads(run.config)["optim"]["value"]["lr"] == 0.1
    assert UPLOAD not in done.said, "there is nothing left to upload"
    for title in ("Confusion matrix at 0.5", "Sensitivity by threshold"):
        assert title in run.config
    point = json.loads((folder / "results.json").read_text())["operating_point"]
    values = {name: point["test"][name]["value"] for name in ("sensitivity", "specificity")}
    for name, value in {"threshold": point["threshold"], **values}.items():
        assert run.summary[f"operating_point/{name}"] == value


@pytest.mark.slow
def test_without_a_key_it_records_offline(demo: Path, tmp_path: Path, observe: Observe) -> None:
    folder = tmp_path / "run with a space"
    done = train(flags(demo, folder), {})
    assert (done.status, done.errors) == (0, "")
    assert "W&B: recorded offline" in done.said
    run = upload(done.upload)
    assert_complete(run, events(folder))
    words = f"exit {{status}}, nothing on stderr; {UPLOADED}"
    observe("W&B: no key", words, status=done.status, points=len(curve(run)), plots=len(PLOTS))


@pytest.mark.slow
def test_a_sweep_of_launch_sweep_yaml(demo: Path, tmp_path: Path) -> None:
    """What an agent of the installed wandb starts, with values that a server has chosen, is a run of that sweep."""
    sweep = yaml.safe_load((ROOT / "launch/sweep.yaml").read_text())
    chosen = {
        name: {"value": parameter.get("value", parameter.get("min"))} for name, parameter in sweep["parameters"].items()
    }
    chosen |= {
        "data.path": {"value": str(demo)},
        "optim.schedule": {"value": "cosine"},
        "model.drop_rate": {"value": 0.2},
    }
    arguments = create_sweep_command_args({"args": chosen})["args"]
    launcher = create_sweep_command(sweep["command"])
    assert launch_command_parser().parse_args([*launcher[2:-2], sweep["program"]]).config_file
    table = tmp_path / "chosen.yaml"
    table.write_text(yaml.safe_dump(chosen))
    with WandbServer() as server:
        env = {"WANDB_SWEEP_ID": "sweep123", "WANDB_RUN_ID": "agent456", "WANDB_SWEEP_PARAM_PATH": str(table)}
        done = train([*flags(demo, tmp_path / "run"), *arguments], server.env | env)
        assert (done.status, done.errors) == (0, "")
        ((run_id, run),) = server.runs.items()
    assert (run_id, run.sweep) == ("agent456", "sweep123")
    assert sweep["metric"]["name"] in run.summary
    assert json.loads(run.config)["optim"]["value"]["lr"] == 0.003


FAULTS: dict[tuple[Fault, str], str] = {
    ("dies", ""): "W&B: dead at the start",
    ("hangs", ""): "W&B: dead at the start",
    ("dies", "epoch 1:"): "W&B: dies during the run",
    ("errors", "epoch 1:"): "W&B: answers 500 or 403",
    ("refuses", "epoch 1:"): "W&B: answers 500 or 403",
    ("hangs", "epoch 2:"): "W&B: hangs at the finish",
}


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "moment"), FAULTS, ids=lambda value: value.strip(":") or "at start")
def test_a_server_that_fails(
    healthy: tuple[Path, Done, WandbServer], demo: Path, tmp_path: Path, fault: Fault, moment: str, observe: Observe
) -> None:
    """Before the run starts, after its first epoch, or after its last."""
    folder = tmp_path / "run"
    with WandbServer() as server:
        if not moment:
            server.fail(fault)

        def watch(line: str, process: Process) -> None:
            if moment and line.startswith(moment):
                server.fail(fault)

        done = train(flags(demo, folder), server.env, watch)
    assert (done.status, done.errors) == (0, "")
    assert record(folder) == record(healthy[0])
    busy = healthy[1].seconds  # a busy machine is slow in all that it does
    assert done.when("epoch 1:") - done.when("run:") < START + busy, done.timeline
    assert done.when("all figures:") - done.when("epoch 2:") < END + busy, done.timeline
    assert done.ended - done.when("all figures:") < LEAVE + busy, done.timeline
    assert done.said.count("W&B cannot be reached" if not moment else "W&B stopped") == 1
    run = upload(done.upload)
    assert_complete(run, events(folder))
    words = f"exit {{status}}, same results, one line, {{seconds}} s ({{healthy}} s with a healthy server); {UPLOADED}"
    figures = {"seconds": done.seconds, "healthy": healthy[1].seconds, "points": len(curve(run)), "plots": len(PLOTS)}
    observe(FAULTS[fault, moment], words, status=done.status, **figures)


@pytest.mark.slow
def test_a_signal_is_obeyed_in_time_with_a_server_that_hangs(
    healthy: tuple[Path, Done, WandbServer], demo: Path, tmp_path: Path
) -> None:
    """Schedulers kill 30 s after SIGTERM. What had not arrived by then can be uploaded."""
    folder = tmp_path / "run"
    words = flags(demo, folder, "--train.epochs=900", "--early_stopping.patience=900")
    with WandbServer() as server:

        def watch(line: str, process: Process) -> None:
            if line.startswith("epoch 1:"):
                server.fail("hangs")
            if line.startswith("epoch 2:"):
                process.send_signal(signal.SIGTERM)

        stopped = train(words, server.env, watch)
    assert stopped.status == 143
    busy = healthy[1].seconds  # a busy machine is slow in all that it does
    assert stopped.when("W&B stopped") - stopped.when("epoch 2:") < 10 + busy
    assert stopped.ended - stopped.when("epoch 2:") < 30 + busy
    run = upload(stopped.upload)
    assert curve(run) == [event["global_step"] for event in events(folder)]
    assert run.exit_code == 143


def fail_twice(folder: Path) -> int:
    """Two runs that fail in one process, as in a notebook: the first with a server that hangs."""
    show_log()
    config = parse_config([*TINY, "--tracking.wandb=online"])
    accelerator = group.join_group(log_with="wandb")
    with WandbServer() as server:
        os.environ.update(server.env)
        run = run_folder.Run(folder)
        sink, others = WandbSink(accelerator, run, config, "failing1"), OtherTrackers(accelerator, run, config, "", 0)
        server.fail("hangs")
        started = time.monotonic()
        with suppress(TrainingError), sink:
            Tracker(accelerator, run, sink, others).log({"train/loss": 1.0, "global_step": 1})
            raise TrainingError("the loss is not finite")
        assert time.monotonic() - started < 60, "it would wait for ever"
        assert "wandb-core" not in {child.name() for child in psutil.Process().children()}
    with WandbServer() as server:
        os.environ.update(server.env)
        with suppress(TrainingError), WandbSink(accelerator, run_folder.Run(folder), config, "failing2"):
            raise TrainingError("the loss is not finite")
        assert {run_id: run.exit_code for run_id, run in server.runs.items()} == {"failing2": 1}
    return 0


def in_a_new_process(function: Callable[[Path], int], folder: Path) -> str:
    """What a function prints, which must end well: W&B keeps a process to itself."""
    with Forked(function, folder, env=clean({})) as process:
        said, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    return said


@pytest.mark.slow
def test_a_run_that_fails_leaves_no_service_behind(tmp_path: Path) -> None:
    said = in_a_new_process(fail_twice, tmp_path)
    assert said.count("W&B stopped (no answer within 4 s)") == 1
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["train/loss"] == 1.0
    (file,) = tmp_path.glob("wandb/run-*-failing1/*.wandb")
    assert b"train/loss" in file.read_bytes()


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_wandb(demo: Path, tmp_path: Path) -> None:
    """Killed outright after an epoch: the second process has the same id, and logs steps that the server may have."""
    folder = tmp_path / "run"
    words = flags(demo, folder, "--train.epochs=12", "--early_stopping.patience=12")
    with WandbServer() as server:

        def kill(line: str, process: Process) -> None:
            if line.startswith("epoch 3:"):
                process.kill()

        assert train(words, server.env, kill).status == -signal.SIGKILL
        done = train(words, server.env)
        assert (done.status, done.errors) == (0, "")
        ((_, run),) = server.runs.items()
        points = [(row["global_step"], "val/loss" in row) for row in run.rows if {"train/loss", "val/loss"} & set(row)]
        assert points == sorted(set(points)), "none twice"
        assert points[-1] == (12 * 3, True)
        assert run.exit_code == 0


def switch_on(folder: Path) -> int:
    """W&B in a run that has two events from before."""
    config, run = parse_config([*TINY, "--tracking.wandb=online"]), run_folder.Run(folder)
    for step, event in enumerate(({"train/loss": 0.7}, {"val/loss": 0.6, "epoch": 1}), 1):
        run_record.append(run.record, {**event, "global_step": step})
    with WandbServer() as server:
        os.environ.update(server.env)
        for step in (3, 4):
            accelerator = group.join_group(log_with="wandb")
            with suppress(TrainingError), WandbSink(accelerator, run, config, "late1234") as sink:
                Tracker(accelerator, run, sink, OtherTrackers(accelerator, run, config, "", 0)).log(
                    {"train/loss": 0.5, "global_step": step}
                )
                raise TrainingError("the loss is not finite")
        assert curve(server.runs["late1234"]) == [1, 2, 3, 4], "each once"
    return 0


@pytest.mark.slow
def test_wandb_that_is_switched_on_later_gets_the_steps_before(tmp_path: Path) -> None:
    in_a_new_process(switch_on, tmp_path)
