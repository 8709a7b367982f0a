"""How a run ends that cannot go on, on one process; tests/faults has those of several."""

import io
import sys
import time
from pathlib import Path

import pytest
import torch.distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from skindist.distributed.ending import _lost_contact, _waited, fail, fail_alone
from skindist.errors import NoAnswer, OutOfMemory


def raised(error: Exception) -> Exception:
    """The error with a traceback."""
    try:
        raise error
    except Exception as caught:
        return caught


def test_a_fault_of_the_code_is_shown_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail_alone(raised(ValueError("boom"))) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("ValueError: boom\nerror: ValueError: boom\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OutOfMemory("out of memory with 8 images"), "error: out of memory with 8 images\n"),
        (FileNotFoundError(2, "No such file", "a.jpg"), "error: FileNotFoundError: [Errno 2] No such file: 'a.jpg'\n"),
        (torch.distributed.DistNetworkError("gone"), "error: DistNetworkError: gone\n"),
    ],
)
def test_what_is_no_fault_of_the_code_is_one_line(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_alone(raised(error)) == 1
    assert capsys.readouterr().err == said


def test_letters_that_the_locale_does_not_have_are_no_fault_of_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = raised(UnicodeEncodeError("ascii", "f\xfc", 1, 2, "ordinal not in range(128)"))
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert fail_alone(error) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: UnicodeEncodeError: 'ascii' codec can't encode character")
    assert said.endswith("; this locale knows ASCII alone: set PYTHONUTF8=1\n")
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "utf-8")
    assert fail_alone(error) == 1
    assert capsys.readouterr().err.startswith("Traceback")


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1", True),
        ("NCCL operation timed out", True),
        ("NCCL communicator was aborted after a previous error", True),
        ("NCCL Async Error: unhandled system error", True),
        ("ncclRemoteError: A call failed possibly due to a network error or a remote process exiting", True),
        ("NCCL error: ncclInvalidUsage: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_which_errors_say_that_another_process_is_gone(words: str, lost: bool) -> None:
    assert _lost_contact(RuntimeError(words)) == lost
    assert _lost_contact(torch.distributed.DistBackendError(words)) == lost


@pytest.mark.parametrize(
    ("words", "waited"),
    [
        ("[/pytorch/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 30000ms for recv operation", True),
        ("Application timeout caused pair closure", True),
        ("NCCL operation timed out", True),
        ("[/pytorch/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1", False),
    ],
)
def test_whether_it_was_waited_for(words: str, waited: bool) -> None:
    error = RuntimeError(words)
    assert (_lost_contact(error), _waited(error)) == (True, waited)


class StoreThatGoes(dict[str, bytes]):
    """A launcher's store that is gone as soon as the third process, too, has told it that it has failed."""

    def set(self, key: str, value: str) -> None:
        self.need()
        self[key] = value.encode()

    def compare_set(self, key: str, expected: str, value: str) -> bytes:
        self.need()
        return self.setdefault(key, value.encode())

    def wait(self, keys: list[str], timeout: object) -> None:
        self.need()

    def need(self) -> None:
        if "skindist/failed/2" in self:
            raise torch.distributed.DistNetworkError("recvVector failed")


@pytest.mark.parametrize("error", [NoAnswer("rank 1 of 3 did not answer"), torch.distributed.DistNetworkError("gone")])
def test_the_store_may_go_once_all_have_said_that_they_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    for name, value in {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    first_has_spoken = StoreThatGoes({"skindist/first to fail": b"0"})
    monkeypatch.setattr("skindist.distributed.ending._shared_store", lambda launch: first_has_spoken)
    assert fail_alone(error) == 1
    assert capsys.readouterr().err == ""


def test_only_the_main_process_speaks_for_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert fail("no such folder", 2) == 2
    assert capsys.readouterr().err == ""


def test_a_terminal_that_is_gone_does_not_change_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Gone())
    assert fail("stopped", 143) == 143


def test_the_launcher_gets_the_message_for_its_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From every process: whichever one the launcher takes for the first that failed, its report names the fault."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    fail("no such folder", 2)
    failure = ProcessFailure(local_rank=1, pid=7, exitcode=2, error_file=str(tmp_path / "error.json"))
    assert str(ChildFailedError("train.py", {1: failure})).splitlines()[-2] == "  traceback : error: no such folder"
    assert abs(failure.timestamp - time.time()) < 30
