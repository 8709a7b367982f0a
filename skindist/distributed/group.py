"""Processes and devices: the only place that builds an Accelerator, checks the launch and decides for all ranks."""

import logging
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator as Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, check_cuda_p2p_ib_support

from skindist.cpu_kernels import has_fast_bf16
from skindist.determinism import choose_kernels
from skindist.distributed import host
from skindist.distributed.peers import check_peers, gpu_index, sharing_cores, this_peer
from skindist.errors import TrainingError, UserError
from skindist.launcher import (
    OTHER_INDEX,
    THREADS,
    check_complete,
    check_device,
    check_processes,
    choose_precision,
    choose_threads,
    this_launch,
)
from skindist.machine import available_cores, keep_freed_memory
from skindist.wording import plural

WITHOUT_PEERS = ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")  # what `accelerate launch` sets for such cards
T = TypeVar("T")
log = logging.getLogger("skindist")


def join_group(log_with: str | None = None, timeout_minutes: float = 10.0, deterministic: bool = True) -> Accelerator:
    """Join the process group and build the Accelerator, in the precision that fits the launch and the device.

    Args:
        timeout_minutes: after which a process that waits for the others in training gives up.
        deterministic: whether a GPU is to repeat its sums, as `train.deterministic` says.

    Raises:
        UserError: a precision that the device has not; processes that do not see each other, share a GPU, or differ in
            what makes a run exact; a launch with FSDP, DeepSpeed or the like.
    """
    launch = this_launch()
    check_complete(launch)
    available = torch.accelerator.is_available() and not launch.on_cpu
    device = str(torch.accelerator.current_accelerator()).partition(":")[0] if available else "cpu"
    choose_kernels(deterministic, device)
    check_device(device, launch.world_size)
    if device == "cpu":
        keep_freed_memory()
    precision = choose_precision(launch.precision, device, has_bf16(device, launch.local_rank))
    if device == "cuda" and not check_cuda_p2p_ib_support():  # RTX 40 with an old driver: Accelerate refuses it
        for name in WITHOUT_PEERS:
            os.environ.setdefault(name, "1")
    if launch.world_size > 1:
        host.join(device, timedelta(minutes=timeout_minutes))
    me = this_peer(device, precision, launch.local_rank)
    peers = host.gather(me)
    for warning in check_peers(peers):
        log.warning(warning)
    visible, used = torch.cuda.device_count(), launch.local_world_size
    if device == "cuda" and launch.local_rank >= visible:
        os.environ[OTHER_INDEX] = "true"
    warnings.filterwarnings("ignore", message=f"{THREADS}/MKL_NUM_THREADS unset")
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # its heir is newer than torch 2.8
    accelerator = Accelerator(
        cpu=device == "cpu",  # Accelerate takes a group of CPU processes for one only if told so
        mixed_precision=precision,
        log_with=log_with,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    threads = choose_threads(launch.threads, device, launch.cores or available_cores(), sharing_cores(me, peers))
    if threads:
        torch.set_num_threads(threads)  # after Accelerate, which has set another number where nothing was said
    accelerator.gradient_accumulation_steps = 1  # it may be told another number, and would divide each gradient by it
    check_processes(launch, accelerator.num_processes)
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UserError(
            f"{accelerator.distributed_type.value}: skindist trains with DistributedDataParallel alone; give "
            "--config_file accelerate_config.yaml to accelerate launch, or a config without it"
        )
    if visible > used and not launch.on_cpu:
        log.info(f"{visible} GPUs are visible and {used} used; --num_processes {visible} would use them all")
    return accelerator


def has_bf16(device: str, local_rank: int) -> bool:
    """Whether the device of this process computes in bf16 at its full speed."""
    if device == "cuda":
        properties = torch.cuda.get_device_properties(gpu_index(local_rank))
        return torch.version.hip is not None or properties.major >= 8
    return torch.backends.mps.is_macos_or_newer(14, 0) if device == "mps" else has_fast_bf16()


def decide(accelerator: Accelerator, function: Callable[..., T], *args: Any, may_take_hours: bool = False) -> T:
    """Run `function(*args)` on the main process alone and give its result to every process.

    A UserError or TrainingError that it raises, or a file system that refuses, is raised on every process, so that all
    of them end.

    Args:
        may_take_hours: the others wait for longer than they do in training.
    """
    mine = _attempt(function, *args) if accelerator.is_main_process else (None, None)
    decided: T = _result(*host.share(mine, may_take_hours))
    return decided


def on_main(accelerator: Accelerator, function: Callable[..., T], *args: Any, may_take_hours: bool = False) -> T | None:
    """Run `function(*args)` on the main process, which alone gets its result: the others get None.

    Errors are raised on every process as by `decide`.
    """
    result, error = _attempt(function, *args) if accelerator.is_main_process else (None, None)
    kept: T | None = _result(result, host.share(error, may_take_hours))
    return kept


def on_each_machine(accelerator: Accelerator, function: Callable[..., object], *args: Any) -> None:
    """Run `function(*args)` on the first process of every machine; the others wait, for hours if need be.

    An error is raised on every process as by `decide`, so that all of them end.
    """
    on_all(accelerator, lambda: accelerator.is_local_main_process and function(*args), may_take_hours=True)


def on_all(accelerator: Accelerator, function: Callable[..., T], *args: Any, may_take_hours: bool = False) -> T:
    """Run `function(*args)` on every process, for its own result. An error of any of them is raised on all, as by
    `decide`."""
    result, mine = _attempt(function, *args)
    for error in host.gather(mine, may_take_hours):
        _result(None, error)
    own: T = result
    return own


def _attempt(function: Callable[..., Any], *args: Any) -> tuple[Any, Exception | None]:
    """The function's result, and the error that every process is to hear of."""
    try:
        return function(*args), None
    except (UserError, TrainingError) as error:
        return None, error
    except OSError as error:
        return None, TrainingError(f"{error.filename or 'a file'}: {error.strerror or error}")


def _result(result: Any, error: Exception | None) -> Any:
    """What was attempted, if it has not failed."""
    if error is not None:
        raise error
    return result


def describe(accelerator: Accelerator) -> str:
    """Processes and device in one line."""
    device = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type.upper()
    count = torch.get_num_threads()
    threads = f" x {plural(count, 'thread')}" if accelerator.device.type == "cpu" else ""
    return f"device: {plural(accelerator.num_processes, 'process')}{threads} on {device}"


def processes_on_my_cores(accelerator: Accelerator) -> int:
    """How many processes use the cores of this one, itself among them; call it on every process."""
    me = this_peer(accelerator.device.type, accelerator.mixed_precision, this_launch().local_rank)
    return sharing_cores(me, host.gather(me))


def leave_group(accelerator: Accelerator) -> None:
    """Leave the process group, so that a process that ends first does not look like one that died."""
    host.leave()
