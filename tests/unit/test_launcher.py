"""What a launcher said, read from plain dictionaries and command lines; and what follows from it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import skindist
from skindist.errors import UserError
from skindist.launcher import (
    Launch,
    check_batch,
    check_complete,
    check_processes,
    choose_precision,
    choose_threads,
    read_launch,
    side_by_side,
)

VARIABLES = re.compile(
    r"\b(RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT|OMP_NUM_THREADS|SKINDIST_CORES|SKINDIST_AT_ONCE|TORCHELASTIC_\w+|ACCELERATE_\w+)\b"
)
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}


def accelerate(words: str, environ: dict[str, str] | None = None) -> Launch:
    """What a process reads that `accelerate launch WORDS` has started."""
    return read_launch(ACCELERATE | (environ or {}), ["python", "bin/accelerate", "launch", *words.split()], 7, 99.0)


def test_nobody_else_reads_the_launchers_variables() -> None:
    root = Path(skindist.__file__).parent
    readers = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if VARIABLES.search(path.read_text())}
    assert readers == {"launcher.py"}


def test_without_a_launcher_there_is_one_process() -> None:
    assert read_launch({}, ["bash"], 7, 99.0) == Launch()


def test_torchrun_says_it_all() -> None:
    environ = {
        "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RESTART_COUNT": "2",
        "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_ERROR_FILE": "/tmp/error.json", "OMP_NUM_THREADS": "3",
        "MASTER_ADDR": "host", "MASTER_PORT": "29500",
    }  # fmt: skip
    assert read_launch(environ, ["python", "torchrun", "--nproc_per_node=4"], 7, 99.0) == Launch(
        rank=5, local_rank=1, world_size=8, local_world_size=4, attempt=2, launcher_pid=7, began=99.0, threads="3",
        address="host", port=29500, error_file=Path("/tmp/error.json"),
    )  # fmt: skip


def test_accelerate_starts_one_process_without_torchrun() -> None:
    assert accelerate("--num_processes=1") == Launch(launcher_pid=7, by_accelerate=True, asked=1)


@pytest.mark.parametrize(
    ("exported", "parent", "expected"),
    [
        (None, "bash", None),
        ("bf16", "python accelerate launch train.py", "bf16"),
        ("no", "python bin/accelerate launch --num_processes 2 train.py", None),
        ("no", "python bin/accelerate launch --mixed_precision no train.py", "no"),
        ("no", "python bin/accelerate launch --mixed-precision=no train.py", "no"),
        ("no", "python -m accelerate.commands.launch train.py", None),
        ("no", "bash", "no"),
    ],
)
def test_the_launchers_silence_is_told_from_its_no(exported: str | None, parent: str, expected: str | None) -> None:
    environ = {} if exported is None else {"ACCELERATE_MIXED_PRECISION": exported}
    assert read_launch(environ, parent.split()).precision == expected


@pytest.mark.parametrize(("said", "on_cpu"), [(None, False), ("False", False), ("True", True), ("true", True)])
def test_whether_a_gpu_is_left_alone(said: str | None, on_cpu: bool) -> None:
    assert accelerate("", {} if said is None else {"ACCELERATE_USE_CPU": said}).on_cpu == on_cpu


def test_the_number_of_processes_asked_for_is_read_from_options_or_the_config_file(tmp_path: Path) -> None:
    here, home = tmp_path / "here.yaml", tmp_path / "accelerate/default_config.yaml"
    here.write_text("distributed_type: MULTI_CPU\nnum_processes: 3\nuse_cpu: true\n")
    nothing, default = {"HF_HOME": str(tmp_path / "none")}, {"HF_HOME": str(tmp_path)}
    home.parent.mkdir()
    home.write_text("num_processes: 4\n")
    assert accelerate("", nothing).asked is None
    assert accelerate("", default).asked == 4
    assert accelerate(f"--config_file {here}", default).asked == 3
    assert accelerate(f"--config-file={here} --num_processes 2", default).asked == 2
    assert accelerate("--cpu --num-processes=5 --num_processes 6", default).asked == 6
    assert accelerate("--cpu", default).asked is None, "it does not read its default file then"
    assert accelerate(f"--cpu --config_file={here}", default).asked == 3
    here.write_text("num_processes: [")
    assert accelerate(f"--config_file {here}", default).asked is None
    assert read_launch(default, ["bash"]).asked is None


def test_a_precision_in_the_config_file_is_not_silence(tmp_path: Path) -> None:
    """`accelerate config` writes it quoted; YAML reads an unquoted no as false."""
    file = tmp_path / "here.yaml"
    for written, expected in {"'no'": "no", "no": "no", "": None}.items():
        file.write_text(f"num_processes: 1\nmixed_precision: {written}\n")
        assert accelerate(f"--config_file {file}").precision == expected


def test_fewer_processes_than_asked_for_are_refused() -> None:
    check_processes(Launch(), 1)
    check_processes(Launch(world_size=2, asked=2), 2)
    check_processes(Launch(world_size=2), 2)
    with pytest.raises(UserError, match=r"^--num_processes 2: accelerate launch started only 1\. Add --config_file"):
        check_processes(Launch(asked=2), 1)
    with pytest.raises(
        UserError, match=r"^the launcher started 1 process but Accelerate sees 2: .* and leave out --cpu$"
    ):
        check_processes(Launch(), 2)


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({}, "RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "1", "MASTER_ADDR": "host"}, "MASTER_PORT"),
        ({"RANK": "0", "MASTER_ADDR": "", "MASTER_PORT": "29500"}, "MASTER_ADDR"),
    ],
)
def test_processes_that_could_not_find_each_other_are_refused(environ: dict[str, str], missing: str) -> None:
    with pytest.raises(UserError, match=rf"^WORLD_SIZE is 2, but these are not set: {missing}\. Unset WORLD_SIZE"):
        check_complete(read_launch({"WORLD_SIZE": "2"} | environ))
    check_complete(read_launch({"WORLD_SIZE": "1", "LOCAL_RANK": ""}))


def test_a_variable_that_is_no_number_is_refused_by_its_name() -> None:
    launch = read_launch({"RANK": "first", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"})
    with pytest.raises(UserError, match=r"^RANK=first, LOCAL_RANK=-1 in the environment: not a number\. Unset it, or"):
        check_complete(launch)
    assert (launch.rank, launch.world_size) == (0, 2)


def test_a_batch_smaller_than_the_processes_is_refused() -> None:
    check_batch(8, 8)
    with pytest.raises(UserError, match=r"^--train\.batch_size 4: .* 8 are started; give 8 or more, or start fewer"):
        check_batch(4, 8)


def test_precision_follows_the_request() -> None:
    assert [choose_precision(asked, "cpu") for asked in ("no", "bf16")] == ["no", "bf16"]
    assert [choose_precision(asked, "cuda") for asked in ("no", "bf16", "fp16")] == ["no", "bf16", "fp16"]


def test_precision_without_a_request_follows_the_device() -> None:
    assert choose_precision(None, "cpu") == "no"
    assert choose_precision(None, "cpu", has_bf16=True) == "bf16"
    assert choose_precision(None, "mps") == "no"
    assert choose_precision(None, "cuda", has_bf16=True) == "bf16"
    assert choose_precision(None, "cuda", has_bf16=False) == "fp16"


def test_a_precision_that_does_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="--mixed_precision fp16 does nothing on a CPU"):
        choose_precision("fp16", "cpu")
    with pytest.raises(UserError, match="--mixed_precision fp8: choose no, bf16 or fp16"):
        choose_precision("fp8", "cuda")


def test_cpu_processes_share_the_cores_unless_told_otherwise() -> None:
    assert [choose_threads(None, "cpu", 8, local) for local in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert choose_threads("3", "cpu", 8, 2) is None
    assert choose_threads(None, "cuda", 8, 2) is None


def test_one_thread_is_an_order_of_the_users_but_not_of_a_launcher_that_was_told_nothing() -> None:
    assert read_launch({"OMP_NUM_THREADS": "1"}).threads == "1"
    assert read_launch({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}).threads is None
    assert read_launch({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}).threads is None
    assert read_launch({"OMP_NUM_THREADS": "3", "TORCHELASTIC_RUN_ID": "none"}).threads == "3"


FORK = """
import os
from skindist.launcher import this_launch
assert this_launch().rank == 0
os.environ.update(RANK="3", TORCHELASTIC_RUN_ID="none")
parent = os.getpid()
child = os.fork()
if child == 0:
    print((this_launch().rank, this_launch().launcher_pid) == (3, parent), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_a_forked_process_reads_its_own_launch() -> None:
    """A notebook forks its processes, with variables of their own."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_launches_side_by_side_share_the_gpus_or_else_the_cores() -> None:
    assert side_by_side({"A": "1"}, 0, 1, cores=8, gpus=4) == {"A": "1"}
    both = {"SKINDIST_AT_ONCE": "2"}
    assert side_by_side({}, 1, 2, cores=8, gpus=0) == both | {"OMP_NUM_THREADS": "4", "SKINDIST_CORES": "4"}
    launch = read_launch(side_by_side({}, 3, 4, cores=2, gpus=0))
    assert (launch.threads, launch.cores, launch.at_once) == (None, 1, 4), (
        "no order of the user's, whose number counts for each process"
    )
    assert side_by_side({}, 1, 2, cores=8, gpus=2) == both | {"CUDA_VISIBLE_DEVICES": "1"}
    assert read_launch(side_by_side({}, 3, 4, cores=2, gpus=1)).at_once == 4
    some = {"CUDA_VISIBLE_DEVICES": "5,GPU-ab"}
    assert [side_by_side(some, place, 3, 8, gpus=2)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == [
        "5", "GPU-ab", "5"
    ]  # fmt: skip
    names_too_many = {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert side_by_side(names_too_many, 1, 2, 16, gpus=1)["CUDA_VISIBLE_DEVICES"] == "0", "1 would be a CPU, in silence"
    amd = {"HIP_VISIBLE_DEVICES": "2,3", "CUDA_VISIBLE_DEVICES": "0"}
    assert side_by_side(amd, 1, 2, 16, gpus=2) == both | dict.fromkeys(amd, "3"), "what HIP is told counts first"
    parts_of_one = {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}
    assert side_by_side(parts_of_one, 1, 2, 16, gpus=1)["CUDA_VISIBLE_DEVICES"] == "MIG-b"
