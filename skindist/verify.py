"""`skindist verify-resume`: whether a user's own training command, killed and started again, leaves no trace of it.

The command runs twice for a few steps, each of them saved: once cut by SIGKILL, again and again, and once whole. Then
all checkpoints that both have are compared, bit for bit.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file
from tqdm import tqdm

from skindist.errors import UserError
from skindist.programs import (
    NO_TRAINING,
    POLL_SECONDS,
    children,
    kill,
    last_words,
    refuse_unknown_program,
    terminated_as_interrupted,
)
from skindist.run.checkpoint import step_folder
from skindist.run.comparison import TENSORS, differences
from skindist.run.folder import Run
from skindist.wording import plural

FLAGS = ("--run.resume=auto", "--checkpoint.every_steps=1", "--checkpoint.keep=1000000000", "--tracking.wandb=disabled")
"""What is appended to the command, beside --run.dir: of two equal flags the last one counts. None changes a result; all
checkpoints are kept, as a kill may come any number of steps late."""
REPEATABLE = "a training repeats itself on a CPU, and on a CUDA GPU with --train.deterministic true"


@dataclass(frozen=True)
class Verdict:
    """Whether the two runs were the same in every bit, and what to tell the user."""

    exact: bool
    message: str


def verify_resume(command: Sequence[str], steps: int, kills: int, folder: Path | None = None) -> Verdict:
    """Run `command` whole and cut, and compare what both saved.

    Args:
        command: the words of a training command, with any launcher that starts all processes on this machine.
        steps: optimizer steps after which the runs are compared.
        kills: how often one of them is killed on the way.
        folder: new folder for both runs, which is kept; None: a temporary one, kept only if there is something to see.

    Raises:
        UserError: an argument is out of range, the command cannot be run, fails, does not train, or ends too early.
    """
    if not 1 <= kills < steps:
        raise UserError(f"--steps {steps} --kills {kills}: must be one kill or more, and more steps than kills")
    refuse_unknown_program(command)
    runs = new_folder(folder)
    try:
        with terminated_as_interrupted():
            killed, last = run_both(command, steps, kills, runs)
        verdict = judge(runs, killed, last)
    except KeyboardInterrupt:
        if folder is None:
            shutil.rmtree(runs, ignore_errors=True)
        raise
    if verdict.exact and folder is None:
        shutil.rmtree(runs)
        return verdict
    return Verdict(verdict.exact, f"{verdict.message}\nboth runs are kept in {runs}")


def new_folder(asked: Path | None) -> Path:
    """The folder that was asked for, created, or a temporary one."""
    if asked is None:
        return Path(tempfile.mkdtemp(prefix="skindist-verify-"))
    try:
        asked.mkdir(parents=True, exist_ok=True)
        if any(asked.iterdir()):
            raise UserError(f"--folder {asked}: is not empty; give a new one")
    except OSError as error:
        raise UserError(f"--folder {asked}: cannot be created ({error.strerror})") from None
    return asked.absolute()


def run_both(command: Sequence[str], steps: int, kills: int, folder: Path) -> tuple[list[int], int]:
    """Leave the runs folder/cut and folder/whole.

    A kill may come some steps late, so what follows is planned anew: there is always a step after the last kill.

    Returns:
        The steps from which the cut run was started again, and a later step, up to which both have come.
    """
    reached = [0]
    with tqdm(total=2 * steps, unit="step", leave=False, disable=None) as bar:
        for start in range(1, kills + 2):
            bar.set_description(f"cut run, start {start} of {kills + 1}")
            target = max(steps * start // (kills + 1), reached[-1] + 1)
            reached.append(run_until(command, folder / "cut", target, folder / f"cut-{start}.log", bar))
        bar.set_description("whole run")
        last = min(reached[-1], run_until(command, folder / "whole", reached[-1], folder / "whole.log", bar))
    return reached[1:-1], last


def run_until(command: Sequence[str], run: Path, step: int, log: Path, bar: "tqdm[Any]") -> int:
    """Start the command on a run folder, and kill all its processes once the checkpoint of `step` is there.

    Returns:
        The step of the newest checkpoint that it left, `step` or a later one.

    Raises:
        UserError: the command ended before that.
    """
    words = [*command, f"--run.dir={run}", *FLAGS]
    with log.open("w") as output:
        try:
            process = psutil.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        except OSError as error:
            raise UserError(f"cannot run {command[0]}: {error.strerror}") from None
    family: set[psutil.Process] = {process}
    done = newest_step(run)
    try:
        while done < step:
            with suppress(psutil.TimeoutExpired):
                process.wait(POLL_SECONDS)
            family |= children(process, recursive=True)
            ended = process.returncode is not None
            before, done = done, newest_step(run)
            bar.update(done - before)
            if ended and done < step:
                raise UserError(f"{why_ended(process.returncode, run, log)}\nits output is in {log}")
    finally:
        kill(family)
        process.wait()
    newest = Run(run).newest_checkpoint()
    return step_of(newest) if newest else 0


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint, 0 without any."""
    return max(map(step_of, Run(run).checkpoints.glob("step-*")), default=0)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def why_ended(status: int, run: Path, log: Path) -> str:
    """What to tell the user when the command has ended by itself."""
    done = newest_step(run)
    if status != 0:
        ended = f"the command ended with status {status}{f' after step {done}' if done else ''}:"
        return "\n".join([ended, *last_words(log)])
    if done == 0:
        return f"the command ended without a step: {NO_TRAINING}"
    return f"the run was over after step {done}: give fewer --steps or --kills, or more --train.epochs"


def judge(folder: Path, killed: Sequence[int], last: int) -> Verdict:
    """Compare folder/cut, killed after some steps, with folder/whole after every step up to `last`."""
    cut, whole = (Run(folder / name).checkpoints for name in ("cut", "whole"))
    for step in range(1, last + 1):
        if found := differences(step_folder(whole, step), step_folder(cut, step)):
            return Verdict(False, describe_differences(found, step_folder(whole, step), step, killed))
    newest = step_folder(cut, last)
    manifest, state = (json.loads((newest / name).read_text()) for name in ("manifest.json", "state.json"))
    times = f"killed after step{'s' * (len(killed) > 1)} {' and '.join(', '.join(map(str, killed)).rsplit(', ', 1))}"
    processes = plural(state["environment"]["processes"], "process")
    luck = "" if repeatable(state) else f"\nbut nothing promises that here: {REPEATABLE}"
    digests = "".join(f"\n{manifest[name]}  {name}" for name in TENSORS[:2])
    exact = f"exact: {last} steps, {times}, on {processes}; SHA-256 of weights and optimizer:{digests}"
    return Verdict(True, exact + luck)


def repeatable(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's run says that its steps give the same bits each time."""
    return bool(state.get("environment", {}).get("deterministic", True))


def describe_differences(found: Mapping[str, str], checkpoint: Path, step: int, killed: Sequence[int]) -> str:
    """The first tensor that differs, how many do, and what that tells of the cause."""
    first, what = next(iter(found.items()))
    tensors = [name for name in found if not name.startswith("state.json")]
    total = sum(len(load_file(checkpoint / file)) for file in TENSORS)
    unrepeatable = "the training does not repeat itself, as with GPU kernels that add up in no fixed order"
    if not repeatable(json.loads((checkpoint / "state.json").read_text())):
        cause = f"that is to be expected here: {REPEATABLE}"
    elif step <= killed[0]:
        cause = f"it was not killed before that: {unrepeatable}"
    else:
        cause = (
            f"step {step - 1} was the same, and the last kill came after step {max(k for k in killed if k < step)}: "
            f"a checkpoint lacks what the training depends on, or {unrepeatable}"
        )
    return (
        f"not exact: after step {step}, {first} differs first ({what}); "
        f"{len(tensors)} of {total} tensors differ\n{cause}"
    )
