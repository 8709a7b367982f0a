"""What starts a run on a cluster is true: the files of Kubernetes and SkyPilot fit their schemas, their commands are
ones that skindist takes, and every instruction of the Dockerfile works."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from skindist.parsing import parse_config
from tests.helpers.commands import ROOT

KUBERNETES, SKYPILOT = ROOT / "launch/kubernetes.yaml", ROOT / "launch/skypilot.yaml"


def assert_can_go_on(words: Sequence[str]) -> None:
    """The flags of a training are right, and name the run folder, by which it goes on."""
    config = parse_config(list(words))
    assert config.data.path
    assert config.run.dir


@pytest.mark.extra
def test_the_train_job_is_one_of_the_published_schema() -> None:
    """The models are made of it, and drop what they do not know."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="needs kubeflow-trainer-api")
    job = yaml.safe_load(KUBERNETES.read_text())
    assert models.TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job


def test_the_train_job_starts_torchrun_as_the_runtime_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    job = yaml.safe_load(KUBERNETES.read_text())
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    trainer = job["spec"]["trainer"]
    told = {"NNODES": trainer["numNodes"], "NPROC_PER_NODE": 8, "NODE_RANK": 1, "MASTER_ADDR": "skindist-node-0-0"}
    for name, value in told.items():
        monkeypatch.setenv(f"PET_{name}", str(value))
    program, *words = list[str](trainer["command"] + trainer["args"])
    asked = get_args_parser().parse_args(words)
    assert program == "torchrun"
    assert (asked.nnodes, asked.nproc_per_node, asked.node_rank, asked.master_addr) == (
        "2",
        "8",
        1,
        "skindist-node-0-0",
    )
    assert asked.module
    assert (asked.training_script, asked.training_script_args[0]) == ("skindist", "train")
    assert_can_go_on(asked.training_script_args[1:])


@pytest.mark.extra
def test_skypilot_takes_its_file() -> None:
    sky = pytest.importorskip("sky", reason="needs skypilot")
    assert sky.Task.from_yaml(str(SKYPILOT)).num_nodes == 2


def test_skypilot_starts_one_launcher_on_each_node(tmp_path: Path) -> None:
    """Its script is run as it stands, with an `accelerate` that says how it was called."""
    program = tmp_path / "accelerate"
    program.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    task = yaml.safe_load(SKYPILOT.read_text())
    told = {
        "NUM_NODES": str(task["num_nodes"]),
        "NODE_RANK": "1",
        "NUM_GPUS_PER_NODE": "8",
        "NODE_IPS": "10.0.0.1\n10.0.0.2",
    }
    env = {f"SKYPILOT_{name}": value for name, value in told.items()} | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(["bash", "-euc", task["run"]], env=env, capture_output=True, text=True, check=True).stdout
    command, *words = json.loads(said)
    asked = launch_command_parser().parse_args(words)
    assert command == "launch"
    assert (asked.num_machines, asked.machine_rank, asked.num_processes) == (2, 1, 16)
    assert asked.main_process_ip == "10.0.0.1"
    assert (ROOT / asked.config_file).is_file()
    assert (ROOT / asked.training_script).is_file()
    assert_can_go_on(asked.training_script_args)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each instruction and what follows it; comments are left out."""
    lines = [line for line in dockerfile.read_text().replace("\\\n", "").splitlines() if line and line[0] != "#"]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


@pytest.mark.slow
def test_every_instruction_of_the_dockerfile_works(tmp_path: Path) -> None:
    """Without Docker: a folder is the container's root, a new virtual environment its Python; packages other than
    skindist are those of this one."""
    pytest.importorskip("hatchling", reason="needs hatchling, which builds skindist")
    root, here = tmp_path / "root", tmp_path / "root"
    venv.create(tmp_path / "python", with_pip=True)
    env = {
        "PATH": f"{tmp_path / 'python/bin'}:{os.environ['PATH']}",
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # so pip reads it: isolation is off
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "HOME": str(tmp_path),
    }
    entrypoint: list[str] = []
    for name, rest in instructions(ROOT / "launch/Dockerfile"):
        if name == "FROM":
            assert rest.startswith("python:3.")
        elif name == "ENV":
            env |= dict(word.split("=", 1) for word in shlex.split(rest))
        elif name == "WORKDIR":
            here = root / rest.removeprefix("/")
            here.mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                place = here / target / (source if target.endswith("/") else "")
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, place)
        elif name == "RUN":
            done = subprocess.run(["sh", "-c", rest], cwd=here, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        else:
            assert name == "ENTRYPOINT", f"no rule covers {name}"
            entrypoint = json.loads(rest)
    program = shutil.which(entrypoint[0], path=env["PATH"])
    assert program == str(tmp_path / "python/bin/skindist")
    for words, expected in ((["--help"], "demo-data"), (["demo-data", "drawn", "--count=4", "--size=32"], "")):
        done = subprocess.run([program, *words], cwd=here, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    code = "import skindist; print(skindist.__file__)"
    done = subprocess.run(["python", "-c", code], cwd=here, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path / "python/lib"))
