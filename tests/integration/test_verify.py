"""`skindist verify-resume`: verdicts on real runs, words on causes and mistakes, and that no child stays."""

import hashlib
import re
import signal
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from tqdm import tqdm

from skindist import programs, verify
from skindist.cli import main
from skindist.parsing import parse_config
from skindist.run.checkpoint import save_checkpoint, step_folder
from tests.helpers.commands import LAUNCH, ROOT, TINY
from tests.unit.test_comparison import BIAS, checkpoint

TRAIN = str(ROOT / "launch/train.py")
LONG = (
    "--train.epochs=900", "--early_stopping.patience=900", "--model.drop_rate=0.3", "--model.drop_path_rate=0.2"
)  # fmt: skip
FAKE = """
import hashlib, json, os, pathlib, subprocess, sys, time
run = pathlib.Path(next(word for word in sys.argv if word.startswith("--run.dir=")).partition("=")[2])
def save(step):
    folder = run / f"checkpoints/.step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps({"state.json": hashlib.sha256(b"{}").hexdigest()}))
    folder.rename(folder.with_name(folder.name[1:]))
"""
"""Trains nothing, and saves as a run does: what is about processes alone need not wait for real training."""


def fake(story: str) -> list[str]:
    return [sys.executable, "-c", FAKE + story]


def verify_resume(*words: str) -> int:
    return main(["verify-resume", *words])


def left_over(mark: str) -> list[psutil.Process]:
    """Processes with `mark` on their command line."""
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if any(mark in word for word in process.info["cmdline"] or [])]


@pytest.mark.parametrize(
    ("launcher", "processes", "kills"),
    [
        pytest.param([sys.executable], 1, 2, marks=pytest.mark.slow),
        pytest.param([*LAUNCH, "--num_processes=3"], 3, 1, marks=pytest.mark.slow),
    ],
)
def test_exact(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], launcher: list[str], processes: int, kills: int
) -> None:
    """With dropout, drop-path and augmentation; over the end of an epoch; the user's own run stays untouched."""
    mine = [f"--run.dir={tmp_path / 'mine'}", "--run.resume=never"]
    folder = tmp_path / "both"
    command = [*launcher, TRAIN, *mine, *TINY, f"--data.path={demo}", *LONG]
    assert verify_resume("--steps=4", f"--kills={kills}", f"--folder={folder}", "--", *command) == 0
    said = capsys.readouterr().out
    plural = "es" * (processes > 1)
    title = re.match(rf"exact: (\d+) steps, killed after steps? ([\d and]+), on {processes} process{plural};", said)
    assert title, said
    last, *killed = map(int, [title[1], *title[2].split(" and ")])
    assert len(killed) == kills
    assert [0, *killed, last] == sorted({0, *killed, last}), "one after the other"
    assert last >= 4
    for number, step in enumerate(killed, start=2):
        log = (folder / f"cut-{number}.log").read_text()
        assert f"step {step}\n" in log[log.index("resumed after epoch") :]
    assert "resumed" not in (folder / "whole.log").read_text()
    for run in ("whole", "cut"):
        for name in ("model.safetensors", "optimizer.safetensors"):
            content = (step_folder(folder / run / "checkpoints", last) / name).read_bytes()
            assert f"{hashlib.sha256(content).hexdigest()}  {name}\n" in said
    assert not (tmp_path / "mine").exists()
    assert left_over(str(folder)) == []


@pytest.mark.slow
def test_a_resume_that_forgets_the_optimizer_is_found_out(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = tmp_path / "forgetful.py"
    script.write_text(
        "import sys\nfrom tests.helpers.faults import replace\nfrom skindist.cli import train\n"
        "from skindist.training import restoring\n"
        "replace(restoring, 'load_optimizer', lambda *args: None)\nsys.exit(train())\n"
    )
    command = [sys.executable, str(script), *TINY, f"--data.path={demo}", *LONG]
    assert verify_resume("--steps=2", "--kills=1", f"--folder={tmp_path / 'both'}", "--", *command) == 1
    said = capsys.readouterr().out
    found = re.match(r"not exact: after step (\d+), model.safetensors, \S+ differs first .*\n.*kill came after", said)
    assert found, said
    resumed = re.search(r"resumed after .*step (\d+)\n", (tmp_path / "both/cut-2.log").read_text())
    assert resumed
    assert int(found[1]) == int(resumed[1]) + 1
    assert f"both runs are kept in {tmp_path / 'both'}" in said


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        (2, "it was not killed before that: the training does not repeat itself"),
        (
            4,
            "step 3 was the same, and the last kill came after step 2: a checkpoint lacks what the training depends on",
        ),
    ],
)
def test_the_first_step_that_differs_tells_the_cause(tmp_path: Path, changed: int, cause: str) -> None:
    for step in range(1, 7):
        save_checkpoint(step_folder(tmp_path / "whole/checkpoints", step), checkpoint(BIAS))
        later = BIAS + (0.125 if step >= changed else 0)
        save_checkpoint(step_folder(tmp_path / "cut/checkpoints", step), checkpoint(later))
    verdict = verify.judge(tmp_path, [2, 5], 6)
    assert not verdict.exact
    assert verdict.message.startswith(
        f"not exact: after step {changed}, model.safetensors, bias differs first (largest difference 0.12); "
        f"1 of 5 tensors differ\n{cause}"
    )
    assert verify.judge(tmp_path, [1], changed - 1).exact


@pytest.mark.parametrize("shift", [0.0, 0.125])
def test_what_a_gpu_does_not_promise_is_not_expected(tmp_path: Path, shift: float) -> None:
    """A run with --train.deterministic false, on CUDA."""
    for name, bias in (("whole", BIAS), ("cut", BIAS + shift)):
        for step in (1, 2):
            saved = checkpoint(bias)
            saved.state["environment"] |= {"device": "cuda", "deterministic": False}
            save_checkpoint(step_folder(tmp_path / name / "checkpoints", step), saved)
    verdict = verify.judge(tmp_path, [1], 2)
    assert verdict.exact == (shift == 0)
    last = "a training repeats itself on a CPU, and on a CUDA GPU with --train.deterministic true"
    wording = "that is to be expected here: " if shift else "but nothing promises that here: "
    assert verdict.message.splitlines()[-1] == wording + last


def test_our_flags_win_over_the_users(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("run: {dir: mine, resume: must}\ncheckpoint: {every_steps: 50, keep: 2}\n")
    flags = ["--run.resume=never", "--tracking.wandb", "online", "--config", str(tmp_path / "mine.yaml")]
    config = parse_config([*flags, "--run.dir", "other", "--run.dir=both/cut", *verify.FLAGS])
    assert (config.run.dir, config.run.resume, config.tracking.wandb) == ("both/cut", "auto", "disabled")
    assert (config.checkpoint.every_steps, config.checkpoint.keep) == (1, 10**9)


def test_the_first_steps_of_many_are_kept(tmp_path: Path) -> None:
    """Else there is nothing to compare them with."""
    story = """
keep = int(next(word for word in sys.argv if word.startswith("--checkpoint.keep=")).partition("=")[2])
done = max((int(folder.name[5:]) for folder in run.glob("checkpoints/step-*")), default=0)
for step in range(done + 1, 10_000):
    save(step)
    if step > keep:
        shutil.rmtree(run / f"checkpoints/step-{step - keep:08d}")
"""
    verify.run_both(fake(f"import shutil{story}"), 1100, 1, tmp_path)
    assert all(step_folder(tmp_path / run / "checkpoints", 1).exists() for run in ("cut", "whole"))


MISTAKES = [
    ([], "give the training command after --"),
    (["accelerate", "launch", "train.py"], "give the training command after --"),
    (["--steps=2", "--"], "give the training command after --"),
    (["--steps=2", "--kills=2", "--", "ls"], "more steps than kills"),
    (["--stepz=2", "--", "ls"], "stepz"),
    (["--folder=.", "--", "ls"], "--folder .: is not empty"),
    (["--", "no-such-launcher", "train.py"], "cannot run no-such-launcher"),
    (["--", *fake("pass")], "the command ended without a step: give one that runs launch/train.py"),
    (["--", *fake("print('error: --data.path x: no such folder'); print('noise'); sys.exit(2)")],
     "the command ended with status 2:\nerror: --data.path x: no such folder\nits output is in "),
    (["--", *fake("print('1\\n2\\n3', flush=True); os.kill(os.getpid(), 9)")], "status -9:\n1\n2\n3\nits output is "),
    (["--steps=3", "--kills=1", "--", *fake("(run / 'checkpoints/step-00000001').exists() and sys.exit(5)\n"
     "save(1); time.sleep(600)")], "the command ended with status 5 after step 1:"),
    (["--steps=9", "--kills=1", "--", *fake("save(1); save(2)")], "the run was over after step 2: give fewer --steps"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes_get_one_message_and_status_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert verify_resume(*words) == 2
    out, error = capsys.readouterr()
    assert message in error
    assert error.startswith("error: ")
    assert (out, error.count("error: ")) == ("", 1 + message.count("error: "))
    assert len(list(tmp_path.iterdir())) == error.count("its output is in "), "kept only if it is named"
    assert left_over(str(tmp_path)) == []


FAMILY = """
sleeper = "import pathlib, sys, time; pathlib.Path(sys.argv[1], 'ready' + sys.argv[2]).touch(); time.sleep(600)"
parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[3:], sys.argv[1], 'grandchild'])"
run.mkdir()
subprocess.Popen([sys.executable, "-c", sleeper, run, "child"])
subprocess.Popen([sys.executable, "-c", parent, run, "", sleeper], start_new_session=True)
while len(list(run.glob("ready*"))) < 2:
    time.sleep(0.01)
"""
"""A child, and one in a session of its own, as torchrun starts its ranks, with a child itself."""

ENDS: list[tuple[str, int | None]] = [
    ("save(1); time.sleep(600)", None),
    (f"while True: os.kill(os.getppid(), {signal.SIGTERM:d}); time.sleep(60)", 130),
    (f"while True: os.kill(os.getppid(), {signal.SIGINT:d}); time.sleep(60)", 130),
    ("while not (run / 'seen').exists(): time.sleep(0.01)\nsys.exit(5)", 2),
]


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("end", "status"), ENDS, ids=["killed", "SIGTERM", "ctrl-C", "launcher dies"])
def test_no_child_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, end: str, status: int | None
) -> None:
    """An interruption may come between psutil's opening of a file and its closing: that file is not what is tested. It
    may come in a destructor, where Python drops it: then there is another one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    original, handlers = programs.children, [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def watched(process: psutil.Process, recursive: bool = False) -> set[psutil.Process]:
        found = original(process, recursive)
        if len(found) == 3:
            next(tmp_path.glob("**/cut")).joinpath("seen").touch()
        return found

    monkeypatch.setattr(verify, "children", watched)
    if status is None:
        assert verify.run_until(fake(FAMILY + end), tmp_path / "cut", 1, tmp_path / "log", tqdm(disable=True)) == 1
    else:
        assert verify_resume("--", *fake(FAMILY + end)) == status
        assert len(list(tmp_path.iterdir())) == (status == 2), "an interrupted one leaves nothing"
    assert left_over(str(tmp_path)) == []
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
