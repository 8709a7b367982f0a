"""What the launcher said to this process, read once; nobody else reads its variables or its command line."""

import functools
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from skindist.errors import UserError
from skindist.wording import plural

THREADS = "OMP_NUM_THREADS"
OUR_CORES, AT_ONCE = "SKINDIST_CORES", "SKINDIST_AT_ONCE"  # what `side_by_side` says to a whole launch
TO_MEET = ("RANK", "MASTER_ADDR", "MASTER_PORT")
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT", AT_ONCE)
VISIBLE = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")  # with a GPU of AMD, the first counts before the second
OTHER_INDEX = "ACCELERATE_BYPASS_DEVICE_MAP"  # else Accelerate takes this process's number for its GPU's, in DDP


@dataclass(frozen=True)
class Launch:
    """The processes that were started together, this one's place among them, and what they were told."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1  # on this machine
    attempt: int = 0  # how often the launcher has started all processes again
    launcher_pid: int | None = None  # None: the parent is a shell, which may end before a run
    began: float | None = None  # when a launcher that starts again was started, in seconds since 1970
    by_accelerate: bool = False  # the parent is `accelerate launch`
    asked: int | None = None  # for so many processes; None: not known
    precision: str | None = None
    on_cpu: bool = False  # although there is a GPU, as Accelerate then does
    threads: str | None = None
    cores: int | None = None  # its share of the machine, for all its processes there; None: all
    at_once: int = 1  # launches that share the machine, this one among them
    missing: tuple[str, ...] = ()  # variables without which several processes do not find each other
    damaged: tuple[str, ...] = ()  # such with their values, which are no numbers
    address: str = ""  # of the store that all processes share
    port: int = 0
    error_file: Path | None = None  # what a failed process leaves here, torchrun's report ends with

    @property
    def is_complete(self) -> bool:
        """Whether this process can know the others."""
        return not self.missing and not self.damaged


@functools.cache
def this_launch() -> Launch:
    """The launch of this process, with its parent of the beginning: an orphan has another one."""
    words: list[str] = []
    began = None
    with suppress(psutil.Error):
        parent = psutil.Process(os.getppid())
        words, began = parent.cmdline(), parent.create_time()
    if sys.argv[0] in words:  # what follows is the script's
        words = words[: words.index(sys.argv[0])]
    if multiprocessing.parent_process():  # a notebook, which may start one run after the other
        began = None
    return read_launch(os.environ, words, os.getppid(), began)


os.register_at_fork(after_in_child=this_launch.cache_clear)


def read_launch(
    environ: Mapping[str, str], words: Sequence[str] = (), parent_pid: int = 0, parent_began: float | None = None
) -> Launch:
    """Put together what the environment and the parent process say.

    Args:
        words: the parent's command line, up to the script that it starts.
        parent_began: when the parent was started; None if that says nothing of this launch.
    """
    by_accelerate = any(Path(word).name.startswith("accelerate") for word in words[:4])
    restarts = "TORCHELASTIC_RUN_ID" in environ  # torchrun's; `accelerate launch` uses it for several processes
    precision = environ.get("ACCELERATE_MIXED_PRECISION")
    launched = restarts or precision is not None
    if precision == "no" and by_accelerate and _told(environ, words, "mixed_precision") is None:
        precision = None  # exported both when told so and when told nothing
    damaged = tuple(f"{name}={environ[name]}" for name in NUMBERS if not (environ.get(name) or "0").isdecimal())
    number = {name: int(environ[name]) for name in NUMBERS if environ.get(name, "").isdecimal()}
    world_size = number.get("WORLD_SIZE", 1)
    error_file, given, share = (environ.get(name) for name in ("TORCHELASTIC_ERROR_FILE", THREADS, OUR_CORES))
    return Launch(
        rank=number.get("RANK", 0),
        local_rank=number.get("LOCAL_RANK", 0),
        world_size=world_size,
        local_world_size=number.get("LOCAL_WORLD_SIZE", 1),
        attempt=number.get("TORCHELASTIC_RESTART_COUNT", 0),
        launcher_pid=parent_pid if launched else None,
        began=parent_began if restarts else None,
        by_accelerate=launched and by_accelerate,
        asked=_asked(environ, words) if launched and by_accelerate else None,
        precision=precision,
        on_cpu=environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "t", "on"),
        threads=None if share or (launched and given == "1") else given,  # 1: told nothing
        cores=int(share) if share else None,
        at_once=number.get(AT_ONCE, 1),
        missing=tuple(name for name in TO_MEET if world_size > 1 and not environ.get(name)),
        damaged=damaged,
        address=environ.get("MASTER_ADDR", ""),
        port=number.get("MASTER_PORT", 0),
        error_file=Path(error_file) if error_file else None,
    )


def option(words: Sequence[str], name: str) -> str | None:
    """The value of an option on the command line of `accelerate launch`; None if it is not there."""
    value = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, rest = word.partition("=")
        if flag.replace("-", "_") == f"__{name}":
            value = rest if equals else following
    return value


def _asked(environ: Mapping[str, str], words: Sequence[str]) -> int | None:
    """How many processes `accelerate launch` was asked for, by an option or by its config file."""
    with suppress(TypeError, ValueError):
        return int(_told(environ, words, "num_processes"))
    return None


def _told(environ: Mapping[str, str], words: Sequence[str], name: str) -> Any:
    """What `accelerate launch` was told of an option, on its command line or in its config file; None: nothing."""
    cache = Path(environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    default = Path(environ.get("HF_HOME", cache), "accelerate/default_config.yaml").expanduser()
    file = Path(option(words, "config_file") or ("" if "--cpu" in words else default))  # as accelerate does
    with suppress(OSError, yaml.YAMLError, KeyError, TypeError):
        return option(words, name) or yaml.safe_load(file.read_text())[name]
    return None


def check_complete(launch: Launch) -> None:
    """Refuse several processes that could not find each other, and variables that cannot be read."""
    if launch.damaged:
        raise UserError(
            f"{', '.join(launch.damaged)} in the environment: not a number. Unset it, or start with accelerate launch "
            "or torchrun"
        )
    if launch.missing:
        raise UserError(
            f"WORLD_SIZE is {launch.world_size}, but these are not set: {', '.join(launch.missing)}. Unset WORLD_SIZE, "
            "or start with accelerate launch or torchrun"
        )


def check_processes(launch: Launch, joined: int) -> None:
    """Refuse a launch that started fewer processes than it was asked for, or some that do not see each other.

    Args:
        joined: processes in this one's group.
    """
    started = launch.world_size
    if started < (launch.asked or 1):
        fault = f"--num_processes {launch.asked}: accelerate launch started only {started}"
    elif joined != started:
        processes = plural(started, "process")
        fault = f"the launcher started {processes} but Accelerate sees {joined}: they would train independently"
    else:
        return
    raise UserError(
        f"{fault}. Add --config_file accelerate_config.yaml (or --multi_gpu, which starts CPU processes, too) "
        "to accelerate launch, and leave out --cpu"
    )


def check_batch(batch_size: int, processes: int) -> None:
    """Refuse a global batch that leaves a process without an image."""
    if batch_size < processes:
        raise UserError(
            f"--train.batch_size {batch_size}: the global batch is split over all processes, and {processes} are "
            f"started; give {processes} or more, or start fewer (--num_processes)"
        )


def check_device(device: str, processes: int) -> None:
    """Refuse several processes on a Mac, which has one GPU that no group can share, and on devices whose sums over
    processes nobody has tried, such as GPUs of Intel."""
    if processes == 1 or device in ("cpu", "cuda"):
        return
    if device == "mps":
        raise UserError(f"--num_processes {processes}: a Mac's GPU (MPS) takes one process: --num_processes 1")
    raise UserError(
        f"--num_processes {processes}: several processes train on CPUs or on GPUs of NVIDIA or AMD, and this machine's "
        f"device is {device}: --num_processes 1"
    )


def choose_precision(asked: str | None, device: str, has_bf16: bool = False) -> str:
    """What was asked for, else bf16 on a CPU or an NVIDIA or AMD GPU that has it, fp16 on an older such GPU, and none
    elsewhere.

    Args:
        asked: "no", "bf16", "fp16", or None.
        device: "cpu", "cuda", ...
    """
    if asked not in (None, "no", "bf16", "fp16"):
        raise UserError(f"--mixed_precision {asked}: choose no, bf16 or fp16")
    if asked == "fp16" and device == "cpu":
        raise UserError("--mixed_precision fp16 does nothing on a CPU: choose bf16 or no, or run on a GPU")
    if asked == "bf16" and device == "mps" and not has_bf16:
        raise UserError("--mixed_precision bf16 needs macOS 14 or newer on a Mac's GPU (MPS): choose fp16 or no")
    if asked is not None:
        return asked
    if device == "cuda":
        return "bf16" if has_bf16 else "fp16"
    return "bf16" if device == "cpu" and has_bf16 else "no"


def choose_threads(asked: str | None, device: str, cores: int, processes: int) -> int | None:
    """Threads of this process, an equal share of the cores that so many processes use; None: as asked for."""
    if device != "cpu" or asked:
        return None
    return max(1, cores // processes)


def side_by_side(environ: Mapping[str, str], place: int, at_once: int, cores: int, gpus: int) -> dict[str, str]:
    """The environment of a launch that shares its machine with others: how many they are, and a GPU of its own or its
    share of the cores.

    Args:
        place: the number of this launch among those, from 0.
        at_once: how many there are; with one, it has all.
    """
    if at_once == 1:
        return dict(environ)
    shared = {**environ, AT_ONCE: str(at_once)}
    if gpus:
        told = [name for name in VISIBLE if environ.get(name)]
        names = environ[told[0]].split(",") if told else [str(number) for number in range(gpus)]
        names = names if names[0].startswith("MIG-") else names[:gpus]  # torch counts one part of a GPU alone
        return {**shared, **dict.fromkeys(told or VISIBLE[1:], names[place % len(names)])}
    return {**shared, **dict.fromkeys((THREADS, OUR_CORES), str(max(1, cores // at_once)))}
