"""A real Slurm on this machine: two nodes of one core, a controller, and a munge of its own, all in one folder."""

import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.helpers.commands import PATIENCE, ROOT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "taskset")
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
LACKS = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None] + ["root"] * (os.geteuid() != 0)
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SchedulerParameters=sched_interval=1
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES
"""
"""A requeued job waits until its credential has expired: cred_expire, two minutes unless told."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, below those that the kernel gives to connections: they stay free until they are
    used."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 29_000), 100):
        with suppress(OSError), socket.socket() as free:
            free.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"fewer than {count} free ports of 100 between 20000 and 29000")


class Slurm:
    """What is asked of the controller."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def run(self, *words: str, cwd: Path = ROOT, **env: str) -> str:
        """The output of a command of Slurm's."""
        done = subprocess.run(
            words, cwd=cwd, env=self.env | env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stderr}{self.logs()}"
        return done.stdout

    def jobs(self, number: str) -> list[dict[str, str]]:
        """What the controller knows of a job, or of each task of an array."""
        lines = self.run("scontrol", "--oneliner", "show", "job", number).splitlines()
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]

    def wait(self, number: str, state: str, restarts: int = 0) -> list[dict[str, str]]:
        """Until all tasks of a job are in a state, and were requeued so often."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            jobs = self.jobs(number)
            if all(job["JobState"] == state and int(job["Restarts"]) >= restarts for job in jobs):
                return jobs
            assert not any(job["JobState"] in ("FAILED", "TIMEOUT", "NODE_FAIL") for job in jobs), jobs
            time.sleep(0.2)
        raise AssertionError(f"job {number} is not {state}: {self.jobs(number)}{self.logs()}")

    def logs(self) -> str:
        """The last words of all daemons."""
        return "".join(f"\n{log}:\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log")))


@contextmanager
def daemon(words: Sequence[str], env: dict[str, str]) -> Iterator[None]:
    """A program that is ended at the end."""
    process = subprocess.Popen(
        words, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Slurm]:
    """Slurm with two nodes that are ready for jobs; all of it is ended in the end, and so are the jobs."""
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    conf = CONF.format(host=socket.gethostname(), folder=folder, ports=free_ports(3))
    (folder / "slurm.conf").write_text(conf)
    slurm = Slurm(folder)
    place = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed", "log")]
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *place],
        ["slurmctld", "-D"],
    ]
    cores = sorted(os.sched_getaffinity(0))  # one for each node
    daemons += [["taskset", "-c", f"{cores[n % len(cores)]}", "slurmd", "-D", "-N", f"n{n}"] for n in range(2)]
    with ExitStack() as stack:
        for words in daemons:
            stack.enter_context(daemon([shutil.which(words[0], path=PATH) or words[0], *words[1:]], slurm.env))
        wait_until(lambda: "2 idle" in ready(slurm), slurm)
        try:
            yield slurm
        finally:
            slurm.run("scancel", "--user=root")
            wait_until(lambda: not slurm.run("squeue", "--noheader"), slurm)


def wait_until(is_so: Callable[[], bool], slurm: Slurm) -> None:
    """Look again and again."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, slurm.logs()
        time.sleep(0.2)


def ready(slurm: Slurm) -> str:
    """How many nodes are in which state."""
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%D %T"],
        env=slurm.env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.stdout + done.stderr
