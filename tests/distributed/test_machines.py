"""Two machines, played by two network namespaces with a cable between them. To each its own name means 127.0.1.1, as
on Debian."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PORT = "29500"
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
LACKS = [name for name in ("ip", "unshare", "mount", "hostname") if shutil.which(name) is None]
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
    ranks = []
    for rank, name in enumerate(machines):
        hosts = folder / f"hosts{rank}"
        hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 host{rank}\n{'10.77.0.1 host0' * rank}\n")
        script = f'hostname host{rank} && mount --bind {hosts} /etc/hosts && exec "$@"'
        command = ["ip", "netns", "exec", name, "unshare", "--uts", "--mount", "sh", "-c", script, "sh"]
        place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        ranks.append(
            subprocess.Popen(
                [*command, sys.executable, "-c", MEET, str(rank)],
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=os.environ | place | {"MASTER_ADDR": first, "MASTER_PORT": PORT} | env,
            )
        )
    return [rank.communicate(timeout=200)[0].strip() for rank in ranks]


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
