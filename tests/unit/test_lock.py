"""Who may write a run: processes of this machine, real ones, and processes of another, of which only the file tells."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from skindist.errors import TrainingError, UserError
from skindist.machine import machine_id
from skindist.run.lock import RunLock
from skindist.run.owner import read_owner

HERE = socket.gethostname()
HOLD = """
import sys
from pathlib import Path
from skindist.run.lock import RunLock
with RunLock(interval=0.05) as lock:
    lock.take(Path(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.read()
"""
HOLD_FLOCK = """
import fcntl, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
LAUNCH = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


class Time:
    """A clock that only sleeping moves; `meanwhile` is what others do in each sleep."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.now = 1000.0
        self.meanwhile = meanwhile

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()

    def lock(self) -> RunLock:
        return RunLock(clock=lambda: self.now, sleep=self.sleep)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


@contextmanager
def process(*words: str | Path, **env: str) -> "Iterator[subprocess.Popen[str]]":
    """A Python process that has said that it holds the lock; it ends with its stdin, if not before."""
    command = [sys.executable, "-c", *map(str, words)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | env
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child


def claim(file: Path, host: str, pid: int = 77, age: float = 0.0) -> None:
    """What a process writes that gave its last sign of life `age` seconds ago."""
    other = file.with_name("other")  # renamed: this process may be reading or writing just now
    other.write_text(
        json.dumps(
            {
                "host": host,
                "pid": pid,
                "launcher_pid": None,
                "beat": time.time() - age,
                "machine": machine_id(),
                "token": "",
            }
        )
    )
    other.replace(file)


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_it_names_this_process_while_it_is_held_and_nobody_afterwards(file: Path) -> None:
    with RunLock() as lock:
        lock.take(file)
        owner = read_owner(file)
        assert owner is not None
        assert (owner.host, owner.pid, owner.launcher_pid) == (HERE, os.getpid(), None)
        assert abs(owner.beat - time.time()) < 30
        lock.check()
    assert file.read_bytes() == b""
    with RunLock() as again:
        again.take(file)


def test_an_error_on_purpose_frees_it(file: Path) -> None:
    with pytest.raises(TrainingError, match="on purpose"), RunLock() as lock:
        lock.take(file)
        raise TrainingError("on purpose")
    assert file.read_bytes() == b""


def test_nothing_happens_where_none_was_taken() -> None:
    with RunLock() as lock:
        lock.check()


def test_a_second_run_in_one_process_is_refused_and_does_the_first_no_harm(file: Path) -> None:
    with RunLock() as first:
        first.take(file)
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), RunLock() as second:
            second.take(file)
        first.beat()
        first.check()
        assert read_owner(file) is not None


def test_a_living_process_is_named(file: Path) -> None:
    with process(HOLD, file) as holder:
        with pytest.raises(UserError) as caught, RunLock() as lock:
            lock.take(file)
        message = str(caught.value)
        assert f"process {holder.pid} on {HERE} (silent for " in message
        assert "stop it first, or give another folder" in message
        assert "kill" not in message
    assert file.read_bytes() == b""


def test_a_killed_process_leaves_its_name_and_is_followed_at_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with process(HOLD, file) as holder:
        holder.kill()
    owner = read_owner(file)
    assert owner is not None
    assert owner.pid == holder.pid
    with Time().lock() as lock:
        lock.take(file)
        assert getattr(read_owner(file), "pid", None) == os.getpid()
    assert caplog.text == ""


def test_an_orphan_is_told_apart(file: Path) -> None:
    with process(LAUNCH, HOLD, file, ACCELERATE_MIXED_PRECISION="no") as launcher:
        with pytest.raises(UserError, match=r"is writing this run; stop it first"), RunLock() as lock:
            lock.take(file)
        launcher.kill()
        launcher.wait()
        last = file.read_bytes()
        wait_until(lambda: file.read_bytes() != last)
        worker = read_owner(file)
        assert worker is not None
        assert worker.launcher_pid == launcher.pid, "it beats as the orphan that it is"
        with pytest.raises(UserError, match=rf"although its launcher is gone; end it: kill {worker.pid}$"):
            RunLock().take(file)


def test_workers_of_a_dead_process_are_waited_for(file: Path) -> None:
    """They hold its flock for the seconds in which they notice that they are alone."""
    claim(file, HERE, dead_pid())
    with process(HOLD_FLOCK, file) as worker, Time(worker.communicate).lock() as lock:
        lock.take(file)


def test_another_machine_of_the_same_name_is_not_taken_for_this_one(file: Path) -> None:
    """Where flock does not reach other machines: it may beat at any moment, so only silence tells."""
    claim(file, HERE, dead_pid())
    file.write_text(file.read_text().replace(machine_id(), "another"))
    us = Time()
    with us.lock() as lock:
        lock.take(file)
        assert us.now == 1060


def test_another_process_of_the_same_number_is_not_taken_for_this_one(file: Path) -> None:
    """As processes in containers may have."""
    with RunLock() as lock:
        lock.take(file)
        claim(file, HERE, os.getpid())
        lock.beat()
        with pytest.raises(TrainingError, match="is now held by process"):
            lock.check()


def test_a_process_that_says_nothing_of_itself_is_refused(file: Path) -> None:
    file.touch()
    with process(HOLD_FLOCK, file), pytest.raises(UserError, match="another process is writing this run"):
        RunLock().take(file)


@pytest.mark.parametrize("age", [5.0, -3600.0, 3600.0], ids=["fresh", "future", "old"])
def test_another_machine_that_beats_is_refused_whatever_its_clock_says(
    file: Path, age: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "skindist")
    claim(file, "far", age=age)
    others = Time()
    others.meanwhile = lambda: claim(file, "far", age=age - 10) if others.now >= 1010 else None
    with pytest.raises(UserError, match="process 77 on far"), others.lock() as lock:
        lock.take(file)
    assert others.now == 1010
    assert caplog.text.count("names process 77 on far") == 1
    assert getattr(read_owner(file), "host", None) == "far"


@pytest.mark.parametrize(("age", "seconds"), [(5.0, 60), (-3600.0, 60), (3600.0, 20)], ids=["fresh", "future", "old"])
def test_another_machine_that_is_silent_is_followed(
    file: Path, age: float, seconds: int, caplog: pytest.LogCaptureFixture
) -> None:
    claim(file, "far", age=age)
    us = Time()
    with us.lock() as lock:
        lock.take(file)
        assert us.now == 1000 + seconds
        assert getattr(read_owner(file), "pid", None) == os.getpid()
    assert caplog.text.count("taken over from process 77 on far, silent for") == 1
    assert f"silent for {max(60, int(age))} s" in caplog.text


def test_another_machine_that_ends_is_followed_at_once(file: Path) -> None:
    claim(file, "far")
    us = Time(lambda: file.write_bytes(b""))
    with us.lock() as lock:
        lock.take(file)
        assert us.now == 1001


@pytest.mark.parametrize(
    "content",
    [b"", b"4711\n", b"{", b"\xff\x00", b"[]", b"null", b'{"host": "far"}', b'{"pid": "x", "host": "far", "beat": 0}'],
)
def test_damaged_content_is_nobody(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with Time().lock() as lock:
        lock.take(file)
        assert getattr(read_owner(file), "pid", None) == os.getpid()


@pytest.mark.parametrize("host", [HERE, "far"])
def test_without_flock_the_beat_decides(file: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    claim(file, host, dead_pid())
    us = Time()
    with us.lock() as lock:
        lock.take(file)
        assert us.now == 1060
        us.meanwhile = lambda: lock.beat() if us.now >= 1070 else None
        with pytest.raises(UserError, match=f"process {os.getpid()} on {HERE}"), us.lock() as second:
            second.take(file)


def test_it_beats_and_finds_out_that_it_is_lost(file: Path) -> None:
    with RunLock(interval=0.005) as lock:
        lock.take(file)
        first = file.read_bytes()
        inode = file.stat().st_ino
        wait_until(lambda: file.read_bytes() not in (b"", first))
        assert file.stat().st_ino == inode
        claim(file, "far")
        wait_until(lambda: lock.lost)
        with pytest.raises(TrainingError, match="is now held by process 77 on far"):
            lock.check()
    assert getattr(read_owner(file), "host", None) == "far", "it is the other's lock now"


@pytest.mark.parametrize(
    ("happens", "message"),
    [
        (lambda file: claim(file, "far"), "is now held by process 77 on far"),
        (lambda file: file.unlink(), "was emptied or deleted"),
        (lambda file: file.write_bytes(b""), "was emptied or deleted"),
    ],
    ids=["taken", "deleted", "taken and released"],
)
def test_a_process_that_was_frozen_looks_before_it_writes(
    file: Path, happens: Callable[[Path], object], message: str
) -> None:
    """Its main thread may run before the one that beats."""
    us = Time()
    with us.lock() as lock:
        lock.take(file)
        happens(file)
        lock.check()
        us.now += 90
        with pytest.raises(TrainingError, match=message):
            lock.check()


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/\.lock: cannot be written \(No such file or directory\)"):
        RunLock().take(tmp_path / "nowhere/.lock")
