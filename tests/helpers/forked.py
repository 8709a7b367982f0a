"""A command of one process without the start of a Python, whose imports take longer than a small run: it is forked from
the server of `ranks`, which has imported everything once."""

import atexit
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.helpers.commands import PATIENCE
from tests.helpers.ranks import SERVER, start_from_server


class Forked:
    """`job(*args)`, which returns an exit status, with this environment and no other; used as a `subprocess.Popen`."""

    def __init__(self, job: Callable[..., int], *args: Any, env: Mapping[str, str] = os.environ) -> None:
        number, name = tempfile.mkstemp()
        os.close(number)
        self.errors = Path(name)
        reader, writer = SERVER.Pipe(duplex=False)
        self.process = SERVER.Process(target=_command, args=(dict(env), writer, name, job, args))
        start_from_server(self.process)
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        reader.close()

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.join()
        self.stdout.close()
        self.errors.unlink()

    @property
    def returncode(self) -> int | None:
        """Its exit status, once it has ended; that of a signal is negative."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL, if it lives."""
        self.process.kill()

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        """Wait for its end; what it says until then, and all that it has said on stderr."""
        said = self.stdout.read()
        self.process.join(timeout)
        assert self.returncode is not None, "it hangs"
        return said, self.errors.read_text()


def _command(env: dict[str, str], out: Connection, errors: str, job: Callable[..., int], args: tuple[Any, ...]) -> None:
    """What the forked process does, to its end, which is that of any Python: W&B, for one, waits for it."""
    os.environ.clear()
    os.environ.update(env)
    os.dup2(out.fileno(), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND), 2)
    out.close()
    sys.stdout = os.fdopen(1, "w", closefd=False)  # the server's may have been a file's, and would look for its place
    atexit._clear()  # what is the server's to do, such as to remove the folders that all forked ones share
    status = job(*args)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.exit(status)
