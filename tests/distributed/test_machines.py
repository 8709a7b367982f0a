"""Two machines, played by two network namespaces with a cable between them, which may be cut. To each its own name
means 127.0.1.1, as on Debian."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Whole
from tests.helpers.commands import LAUNCH, PATIENCE, ROOT, flags
from tests.helpers.same_bytes import FLAGS, assert_same_bytes

PORT = "29500"
LIGHT = ("--run.timeout_minutes=0.5", "--tracking.wandb=disabled", "--evaluation.explain=0")
MEET = """
import sys
from datetime import timedelta
from skindist.distributed import host
from skindist.errors import UserError
try:
    host.join("cpu", timedelta(seconds=30))
    print("met:", host.gather(sys.argv[1]))
except UserError as error:
    print("error:", error)
"""
LACKS = [name for name in ("ip", "unshare", "mount", "hostname", "taskset") if shutil.which(name) is None]
LACKS += ["root"] * (os.geteuid() != 0)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(LACKS), reason=f"needs {', '.join(LACKS)}")]


@pytest.fixture(scope="module")
def machines() -> Iterator[list[str]]:
    """The names of two namespaces: 10.77.0.1 and 10.77.0.2."""
    names = [f"skindist-{os.getpid()}-{number}" for number in range(2)]
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip link add cable0 netns {names[0]} type veth peer name cable1 netns {names[1]}"]
    for number, name in enumerate(names):
        commands += [
            f"ip -n {name} address add 10.77.0.{number + 1}/24 dev cable{number}",
            f"ip -n {name} link set lo up",
            f"ip -n {name} link set cable{number} up",
        ]
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"needs the right to make network namespaces ({command}: {done.stderr.strip()})")
        yield names
    finally:
        for name in names:
            with suppress(OSError):
                subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def meet(machines: list[str], folder: Path, first: str, **env: str) -> list[str]:
    """What the two ranks say, one on each machine; they find each other at the first one's name or address."""
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": first, "MASTER_PORT": PORT}
    ranks = [
        start(machines, folder, rank, sys.executable, "-c", MEET, str(rank), RANK=str(rank), **place, **env)
        for rank in range(2)
    ]
    return [rank.communicate(timeout=PATIENCE)[0].strip() for rank in ranks]


def start(machines: list[str], folder: Path, number: int, *command: str, **env: str) -> "subprocess.Popen[str]":
    """Start a command on one of the machines."""
    hosts = folder / f"hosts{number}"
    hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 host{number}\n{'10.77.0.1 host0' * number}\n")
    script = f'hostname host{number} && mount --bind {hosts} /etc/hosts && exec "$@"'
    words = ["ip", "netns", "exec", machines[number], "unshare", "--uts", "--mount", "sh", "-c", script, "sh", *command]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)} | env
    )


@pytest.mark.parametrize("first", ["10.77.0.1", "host0"])
def test_machines_meet_though_their_names_mean_127_to_themselves(
    machines: list[str], tmp_path: Path, first: str
) -> None:
    assert meet(machines, tmp_path, first) == ["met: ['0', '1']"] * 2


def test_machines_that_do_not_reach_each_other_say_what_to_set(machines: list[str], tmp_path: Path) -> None:
    said = meet(machines, tmp_path, "10.77.0.1", GLOO_SOCKET_IFNAME="lo")
    assert said[0] == said[1]
    assert said[0].startswith("error: rank 0: it does not reach rank 1 at 127.0.0.1 (")
    assert "Set GLOO_SOCKET_IFNAME on every machine to the interface" in said[0]


def launch(machines: list[str], demo: Path, folder: Path, **env: str) -> list["subprocess.Popen[str]"]:
    """Start a run with one process on each of the machines, which have one core each; all that it says is one pipe."""
    cores = sorted(os.sched_getaffinity(0))
    one_pipe = ["sh", "-c", 'exec "$@" 2>&1', "sh"]
    launchers = []
    for rank in range(2):
        place = ["--num_machines=2", "--num_processes=2", f"--machine_rank={rank}", "--main_process_ip=10.77.0.1"]
        launcher = ["taskset", "-c", str(cores[rank % len(cores)]), *LAUNCH, *place, f"--main_process_port={PORT}"]
        words = flags(demo, folder / "run", *FLAGS, *LIGHT)
        script = str(ROOT / "tests/helpers/faulty.py")
        launchers.append(start(machines, folder, rank, *one_pipe, *launcher, script, *words, **env))
    return launchers


def test_a_cable_cut_in_mid_epoch_ends_both_machines_and_the_run_goes_on_when_it_is_back(
    machines: list[str], demo: Path, tmp_path: Path, whole: Whole
) -> None:
    cut = {"FAULT": json.dumps(["command", 0, 4]), "COMMAND": "ip link set cable0 down"}
    launchers = launch(machines, demo, tmp_path, **cut)
    said = [launcher.communicate(timeout=PATIENCE)[0] for launcher in launchers]
    subprocess.run(["ip", "-n", machines[0], "link", "set", "cable0", "up"], check=True)
    for rank, (launcher, words) in enumerate(zip(launchers, said, strict=True)):
        assert launcher.returncode != 0
        line = f"rank {1 - rank} of 2 did not answer within --run.timeout_minutes; rank {rank} lost contact with it"
        assert line in "\n".join(words.splitlines()[-4:]), words
    launchers = launch(machines, demo, tmp_path, FAULT=json.dumps(["raise", 0, 1000]))
    first, second = (launcher.communicate(timeout=PATIENCE)[0] for launcher in launchers)
    assert [launcher.returncode for launcher in launchers] == [0, 0], first + second
    assert "resumed after epoch 1" in first
    assert_same_bytes(tmp_path / "run", whole(2)[0])
