"""Who writes a run: what its lock file says, and what this machine knows of that process."""

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from skindist.machine import machine_id


@dataclass(frozen=True)
class Owner:
    """Who holds a lock: process and, where one started it, its launcher; `beat` is in seconds since 1970. Machines may
    share a name, and processes in containers a number, so `machine` and `token` tell them apart."""

    host: str
    pid: int
    launcher_pid: int | None
    beat: float
    machine: str = ""
    token: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it is of this machine."""
        return (self.host, self.machine) == (socket.gethostname(), machine_id())

    @property
    def lives_here(self) -> bool:
        """Whether it is a living process of this machine."""
        return self._parent_pid is not None

    @property
    def is_orphan(self) -> bool:
        """Whether it is a living process of this machine, and has outlived its launcher."""
        parent = self._parent_pid
        return None not in (parent, self.launcher_pid) and parent != self.launcher_pid

    @property
    def _parent_pid(self) -> int | None:
        if not self.is_here:
            return None
        try:
            process = psutil.Process(self.pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else process.ppid()
        except psutil.NoSuchProcess:
            return None

    @property
    def silence(self) -> float:
        """Seconds since the last beat, by this machine's clock; negative where the clocks differ."""
        return time.time() - self.beat

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (silent for {max(0.0, self.silence):.0f} s)"


def read_owner(file: Path) -> Owner | None:
    """Who a lock file names; None if it is empty, damaged or gone."""
    for _ in range(5):
        try:
            content = file.read_bytes()
            if not content:
                return None
            return Owner(**json.loads(content))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            time.sleep(0.02)  # maybe just being written
    return None
