"""Processes and devices: the only place that builds an Accelerator, checks the launch and decides for all ranks."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor

from skindist.distributed.rendezvous import ATTEMPT
from skindist.errors import TrainingError, UserError
from skindist.machine import available_cores

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # with work that one process does for all and that may rightly take hours
log = logging.getLogger("skindist")


def join_group(log_with: str | None = None, timeout_minutes: float = 10.0) -> Accelerator:
    """Join the process group and build the Accelerator, in the precision that fits the launch and the device.

    Args:
        timeout_minutes: after which a process that waits for the others in training gives up.

    Raises:
        UserError: fp16 on a CPU, or a launch that started several processes which do not see each other.
    """
    cpu = not torch.accelerator.is_available()  # Accelerate makes a gloo group of CPU processes only if told cpu=True
    precision = choose_precision(requested_precision(), None if cpu else torch.accelerator.current_accelerator())
    world_size, local_size = _launched("WORLD_SIZE"), _launched("LOCAL_WORLD_SIZE")
    if cpu and os.environ.get("OMP_NUM_THREADS", "1") == "1":  # `accelerate launch` says 1 even for one process
        torch.set_num_threads(max(1, available_cores() // local_size))
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # its heir is newer than torch 2.8
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=precision,
        log_with=log_with,
        kwargs_handlers=[
            InitProcessGroupKwargs(init_method=ATTEMPT, timeout=timedelta(minutes=timeout_minutes)),
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )
    if world_size != accelerator.num_processes:
        raise UserError(
            f"the launcher started {world_size} processes but Accelerate sees {accelerator.num_processes}: they would "
            "train independently. Use accelerate launch --config_file accelerate_config.yaml --num_processes N, "
            "without --cpu"
        )
    visible = torch.cuda.device_count()
    if visible > local_size:
        log.info(f"{visible} GPUs are visible and {local_size} used; --num_processes {visible} would use them all")
    return accelerator


def _launched(variable: str) -> int:
    return int(os.environ.get(variable, 1))


def requested_precision() -> str | None:
    """The precision that the launch asked for; None where it said nothing.

    `accelerate launch` exports "no" both when told so and when told nothing: only its command line tells which.
    """
    requested = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if requested != "no":
        return requested
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    told = any(word.split("=")[0] == "--mixed_precision" for word in words)
    return "no" if told or "accelerate" not in " ".join(words[:4]) else None


def choose_precision(requested: str | None, device: torch.device | None) -> str:
    """What was requested, else bf16 on a GPU that has it, fp16 on an older one, and none on a CPU.

    Args:
        requested: "no", "bf16", "fp16", or None.
        device: the accelerator, or None on a CPU.
    """
    if requested not in (None, "no", "bf16", "fp16"):
        raise UserError(f"--mixed_precision {requested}: choose no, bf16 or fp16")
    if requested == "fp16" and device is None:
        raise UserError("--mixed_precision fp16 does nothing on a CPU: choose bf16 or no, or run on a GPU")
    if requested is not None:
        return requested
    if device is None or device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def decide(accelerator: Accelerator, function: Callable[..., T], *args: Any, patient: bool = False) -> T:
    """Run `function(*args)` on the main process alone and give its result to every process.

    A UserError or TrainingError that it raises, or a file system that refuses, is raised on every process, so that all
    of them end.

    Args:
        patient: it may rightly take longer than processes wait for each other in training.
    """
    with _group(accelerator, patient) as group:
        outcome: list[Any] = _attempt(function, *args) if accelerator.is_main_process else [None, None]
        if accelerator.num_processes > 1:
            torch.distributed.broadcast_object_list(outcome, src=0, group=group)
    result, error = outcome
    if error is not None:
        raise error
    decided: T = result
    return decided


def on_main(accelerator: Accelerator, function: Callable[..., T], *args: Any, patient: bool = False) -> T | None:
    """Run `function(*args)` on the main process, which alone gets its result: the others get None.

    Errors are raised on every process as by `decide`.
    """
    kept: list[T] = []
    decide(accelerator, lambda: kept.append(function(*args)), patient=patient)
    return kept[0] if kept else None


def on_each_machine(accelerator: Accelerator, function: Callable[..., object], *args: Any) -> None:
    """Run `function(*args)` on the first process of every machine while the others wait, patiently.

    An error is raised on every process as by `decide`, so that all of them end.
    """
    with _group(accelerator, patient=True) as group:
        mine = _attempt(function, *args)[1] if accelerator.is_local_main_process else None
        errors = [mine] * accelerator.num_processes
        if accelerator.num_processes > 1:
            torch.distributed.all_gather_object(errors, mine, group=group)
    for error in errors:
        if error is not None:
            raise error


def _attempt(function: Callable[..., Any], *args: Any) -> list[Any]:
    """The function's result, and the error that every process is to hear of."""
    try:
        return [function(*args), None]
    except (UserError, TrainingError) as error:
        return [None, error]
    except OSError as error:
        return [None, TrainingError(f"{error.filename or 'a file'}: {error.strerror or error}")]


@contextmanager
def _group(accelerator: Accelerator, patient: bool) -> Iterator[Any]:
    """The process group to wait in: the default one, or one with patience, which all processes make together."""
    if accelerator.num_processes == 1 or not patient:
        yield None
        return
    group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    yield group
    torch.distributed.destroy_process_group(group)


def gather_rows(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """Concatenate the rows (N_rank, K) of all ranks in rank order; every rank gets the whole."""
    if accelerator.num_processes == 1:
        return rows
    parts: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(parts, rows.cpu())
    return torch.cat(parts)


def local_processes() -> int:
    """Processes that the launcher started on this machine."""
    return _launched("LOCAL_WORLD_SIZE")


def describe(accelerator: Accelerator) -> str:
    """Processes, device and precision in one line."""
    device = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type.upper()
    threads = f" x {torch.get_num_threads()} threads" if accelerator.device.type == "cpu" else ""
    processes = f"{accelerator.num_processes} process{'es' * (accelerator.num_processes > 1)}"
    return f"device: {processes}{threads} on {device}, mixed precision {accelerator.mixed_precision}"


def leave_group(accelerator: Accelerator) -> None:
    """Leave the process group, so that a process that ends first does not look like one that died."""
    accelerator.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
