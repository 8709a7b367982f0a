"""`accelerate launch` as a user types it, on 1 and 2 processes: runs, mistakes, help."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from skindist.cli import main, train
from tests.helpers import jobs
from tests.helpers.commands import LAUNCH, PATIENCE, ROOT, flags, launch, run
from tests.helpers.forked import Forked
from tests.helpers.ranks import run_ranks, said
from tests.integration.test_run import BAD_INPUT, NAMES


@pytest.mark.parametrize(
    ("processes", "options", "precision"),
    [pytest.param(1, ["--mixed_precision=bf16"], "bf16", marks=pytest.mark.slow), (2, [], "no")],
    ids=["1 process, bf16", "2 processes"],
)
def test_launched_run(demo: Path, tmp_path: Path, processes: int, options: list[str], precision: str) -> None:
    folder = tmp_path / "run"
    done = launch(processes, *flags(demo, folder), options=options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("data: 60 images") == 1
    assert done.stdout.count("epoch 1: val loss") == 1
    assert "Warning" not in done.stderr
    results = json.loads((folder / "results.json").read_text())
    assert results["world_size"] == processes
    assert results["images_seen"] == 72
    assert results["mixed_precision"] == precision
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1, "W&B runs on the main process only"


def test_plain_python_is_one_process(demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run(sys.executable, ROOT / "launch/train.py", *flags(demo, folder, "--tracking.wandb=disabled"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads((folder / "results.json").read_text())["world_size"] == 1
    assert not (folder / "wandb").exists()


@pytest.mark.slow
def test_a_run_killed_outright_goes_on(demo: Path, tmp_path: Path) -> None:
    """SIGKILL to the launcher and both workers in the middle of training, then the same command again."""
    folder = tmp_path / "run"
    words = flags(demo, folder, "--train.epochs=12", "--early_stopping.patience=12", "--tracking.wandb=disabled")
    command = [*LAUNCH, "--num_processes=2", str(ROOT / "launch/train.py"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as launcher:
        assert launcher.stdout is not None
        assert any(line.startswith("epoch 2:") for line in launcher.stdout), "the run ended before epoch 2"
        processes = [*psutil.Process(launcher.pid).children(recursive=True), psutil.Process(launcher.pid)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes)
    done = launch(2, *words)
    assert done.returncode == 0, done.stderr
    assert "resumed after epoch" in done.stdout
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [event["epoch"] for event in events if "val/loss" in event] == list(range(1, 13))
    assert json.loads((folder / "results.json").read_text())["images_seen"] == 12 * 36


def refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    """The script said one line from one process; what else there is, the launcher said."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "skindist/" not in done.stderr.replace(str(ROOT), ""), "a traceback of ours"
    assert done.returncode != 0


@pytest.mark.parametrize(("spoil", "message"), BAD_INPUT, ids=NAMES)
def test_bad_input_on_2_processes(
    demo: Path, tmp_path: Path, spoil: Callable[[Path, Path], list[str]], message: str
) -> None:
    """Without a launcher, whose start takes longer than all else; the next tests have one."""
    words = flags(demo, tmp_path / "run", *spoil(demo, tmp_path))
    before = sorted(tmp_path.rglob("*"))
    assert run_ranks(2, tmp_path.with_name(f"{tmp_path.name} ranks"), train, words) == [2, 2]
    assert sorted(tmp_path.rglob("*")) == before
    errors = said(tmp_path.with_name(f"{tmp_path.name} ranks"), 2)
    assert errors.count("error: ") == 1
    assert message in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_wrong_flag_on_2_processes_is_said_once(demo: Path, tmp_path: Path) -> None:
    refused(launch(2, *flags(demo, tmp_path, "--train.epoch=1")), "nearest: --train.epochs")


def test_fp16_on_cpu_is_refused_on_2_processes(demo: Path, tmp_path: Path) -> None:
    words = flags(demo, tmp_path / "run")
    assert run_ranks(2, tmp_path / "ranks", jobs.status_in, "fp16", words) == [2, 2]
    errors = said(tmp_path / "ranks", 2)
    assert errors.count("error: ") == 1
    assert "does nothing on a CPU" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [{}, {"RANK": "1"}], ids=["no rank", "not the first"])
@pytest.mark.parametrize("flag", ["--train.log_every=1", "--train.log_evry=1"], ids=["right", "misspelt"])
def test_variables_of_a_launch_that_is_none_are_one_line(
    demo: Path, tmp_path: Path, more: dict[str, str], flag: str
) -> None:
    """Left over in a shell, or set by hand. Any other mistake is said all the same."""
    with Forked(train, flags(demo, tmp_path / "run", flag), env=os.environ | {"WORLD_SIZE": "2"} | more) as process:
        _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.count("\n") == 1, errors
    assert ("error: WORLD_SIZE is 2, but " if flag == "--train.log_every=1" else "nearest: --train.log_every") in errors


ACCELERATE = LAUNCH[:3]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
NO_SUCH_FOLDER = ("--data.path=nowhere", "no such folder")
MISSPELT = ("--data.pth=nowhere", "nearest: --data.path")
STARTED_ONE = (
    "--data.path=nowhere",
    "--num_processes 2: accelerate launch started only 1. Add --config_file accelerate_config.yaml (or --multi_gpu",
)


@pytest.mark.parametrize(
    ("launcher", "flag", "message"),
    [
        pytest.param([*LAUNCH, "--num_processes=1"], *MISSPELT, id="1 process", marks=pytest.mark.slow),
        pytest.param([*LAUNCH, "--num_processes=2"], *MISSPELT, id="2 processes"),
        pytest.param([*LAUNCH, "--num_processes=3"], *NO_SUCH_FOLDER, id="3 processes", marks=pytest.mark.slow),
        pytest.param([*TORCHRUN, "--nproc_per_node=2"], *MISSPELT, id="torchrun", marks=pytest.mark.slow),
        pytest.param(
            [*TORCHRUN, "--nproc_per_node=2", "-m", "skindist", "train"], *MISSPELT,
            id="torchrun, a module", marks=pytest.mark.slow,
        ),
        pytest.param([*ACCELERATE, "--num_processes=2"], *STARTED_ONE, id="without a config file"),
        pytest.param([*ACCELERATE, "--config_file=cpu.yaml"], *STARTED_ONE, id="MULTI_CPU", marks=pytest.mark.slow),
        pytest.param(
            [*ACCELERATE, "--multi_gpu", "--num_processes=2", "--main_process_port=0", "-m", "skindist.cli", "train"],
            *MISSPELT, id="the advice helps, and a module", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_the_fault_is_the_last_thing_on_the_screen(
    tmp_path: Path, launcher: list[str], flag: str, message: str
) -> None:
    """After all that the launcher has to say; stdout and stderr are one pipe here, as on a screen. A misspelt flag is
    found before the frameworks are imported, so most launchers are tried with that."""
    (tmp_path / "cpu.yaml").write_text(
        "distributed_type: MULTI_CPU\nnum_machines: 1\nnum_processes: 2\nuse_cpu: true\n"
    )
    script = [] if launcher[-1] == "train" else [str(ROOT / "launch/train.py")]
    done = subprocess.run(
        [*launcher, *script, flag],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        env=os.environ | {"HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode != 0
    assert message in "\n".join(done.stdout.splitlines()[-4:]), done.stdout


@pytest.mark.parametrize("command", [[str(ROOT / "launch/train.py"), "--help"], ["-m", "skindist.cli", "--help"]])
def test_help_needs_no_framework(command: list[str]) -> None:
    """It must answer in under a second: the frameworks, which take several, are not imported."""
    code = "import runpy, sys; sys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "finally: print(sorted({'torch', 'accelerate', 'timm', 'datasets'} & set(sys.modules)))"
    path = command[0] if command[0] != "-m" else str(ROOT / "skindist/cli.py")
    done = run(sys.executable, "-c", code, path, "--help")
    assert done.stdout.strip().endswith("[]"), done.stderr


def imported(modules: str, frameworks: set[str]) -> str:
    """Which of the frameworks a new process has after it has imported these modules."""
    done = run(sys.executable, "-c", f"import sys, {modules}; print(sorted({frameworks} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_judges_a_model_is_not_imported_before_it_does() -> None:
    """Every process would wait a second for it, and only the main one judges, at the end."""
    modules = "skindist.training.trainer, skindist.inference.predict"
    assert imported(modules, {"sklearn", "scipy", "matplotlib"}) == "[]"


def test_what_neither_trains_nor_predicts_starts_without_torch() -> None:
    assert imported("skindist.report.run_page, skindist.report.curves, skindist.folds", {"torch"}) == "[]"


def test_the_demo_recipe_is_valid() -> None:
    done = run(sys.executable, ROOT / "launch/train.py", f"--config={ROOT / 'launch/demo.yaml'}", "--print_config")
    assert done.returncode == 0, done.stderr


def test_skindist_train_is_launch_train(capsys: pytest.CaptureFixture[str]) -> None:
    """The same parser, the same run, the same errors; only the help calls it by its own name."""
    said = []
    commands: list[tuple[Callable[[list[str]], int], list[str]]] = [(main, ["train"]), (train, [])]
    for command, words in commands:
        assert command([*words, "--train.epoch=1"]) == command([*words, "--data.path=nowhere"]) == 2
        said.append(capsys.readouterr().err)
        with pytest.raises(SystemExit):
            command([*words, "--print_config"])
        said[-1] += capsys.readouterr().out
    assert said[0] == said[1]
    assert said[0].count("error: ") == 2
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: skindist train ")
    assert "-m skindist train ..." in text
