"""What the ranks of these tests do, on a CPU or a GPU."""

import dataclasses
import gc
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from skindist.config import Config
from skindist.data.loading import Batch
from skindist.distributed import group, peers
from skindist.launcher import this_launch
from skindist.prediction.memory import black_images
from skindist.recipe import DataConfig, ModelConfig, TrainConfig
from skindist.run.folder import Run
from skindist.training import cuda_graph, engine, rehearsal, trainer
from skindist.training.rehearsal import capture_steps
from skindist.training.tracker import Tracker
from tests.helpers import jobs
from tests.helpers.faults import replace


def on(device: str, precision: str, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function on a process that sees no GPU, or all, or shares one with the others, in a precision."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if device == "shared":
        share_a_gpu()
    os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    this_launch.cache_clear()
    return function(*args)


def share_a_gpu() -> None:
    """Let processes train on the same GPU, which skindist refuses, as NCCL does: gloo takes what travels."""
    os.environ["CUDA_VISIBLE_DEVICES"] = (os.environ.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0]
    original = peers.this_peer

    def this_peer(device: str, precision: str, local_rank: int) -> peers.Peer:
        return dataclasses.replace(original(device, precision, local_rank), gpu_id=f"part {local_rank}")

    replace(group, "this_peer", this_peer)
    torch.distributed.get_default_backend_for_device = lambda device: "gloo"


class NoAnswer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what makes a host wait for its device: to read a value from it, or a size that depends on values."""

    READS = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.equal", "aten.nonzero", "aten.masked_select")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not str(func).startswith(self.READS), f"the step waits for {func}"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    """An error, if the host waits for the device."""
    if not torch.cuda.is_available():
        with NoAnswer():  # type: ignore[no-untyped-call]
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def steps_without_waiting(data: Path, run: Path, *flags: str) -> int:
    """A whole run in which no optimizer step may wait for the device, but for the first; how many these were."""
    original, steps = engine.train_step, itertools.count()

    def train_step(*args: Any) -> Any:
        if next(steps) == 0:  # kernels are loaded, moments made
            return original(*args)
        with no_waiting():
            return original(*args)

    replace(engine, "train_step", train_step)
    jobs.fit(data, run, *flags)
    return next(steps) - 1


def held_after_epochs(data: Path, run: Path, *flags: str) -> list[int]:
    """What a run holds after each epoch: bytes on a GPU, on a CPU the number of tensors."""
    held: list[int] = []
    original = Tracker.log_epoch

    def log_epoch(self: Any, *args: Any) -> None:
        original(self, *args)
        gc.collect()
        tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        held.append(torch.cuda.memory_allocated() if torch.cuda.is_available() else tensors)

    replace(Tracker, "log_epoch", log_epoch)
    jobs.fit(data, run, *flags)
    return held


def fit_in_memory(gib: float, data: Path, run: Path, *flags: str) -> dict[str, Any]:
    """A run on a GPU that gives out no more than so much memory; what its config says of batches in the end."""
    if torch.cuda.is_available():
        index = int(os.environ.get("LOCAL_RANK", 0))
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(gib * 2**30 / total, index)
    jobs.fit(data, run, *flags)
    return Run(run).saved_config()["train"]


def images_per_second(deterministic: bool, captured: bool, count: int, size: int, steps: int) -> float:
    """The speed of EfficientNet-B0's optimizer steps on one batch of `count` images on each process, all together; its
    BatchNorm keeps its statistics, as with pretrained weights."""
    accelerator = group.join_group(deterministic=deterministic)
    all_together: int = count * accelerator.num_processes
    train = TrainConfig(
        batch_size=all_together, deterministic=deterministic, cuda_graph=captured, freeze_batchnorm=True
    )
    config = Config(DataConfig(image_size=size), ModelConfig(pretrained=False), train=train)
    learner = trainer.build_learner(accelerator, config)
    capture_steps(learner, config, [all_together])
    batch = black_images(count, size)
    if accelerator.device.type == "cuda":
        batch = Batch(*(tensor.pin_memory() for tensor in batch))
    engine.set_train_mode(learner.model, config.keeps_statistics)
    begun = 0.0
    for step in range(2 * steps):
        if step == steps:
            accelerator.wait_for_everyone()
            begun = time.perf_counter()
        totals = engine.train_step(learner, [batch], all_together, step, config)
    assert totals.isfinite().all(), "and waits for the device"
    seconds: float = time.perf_counter() - begun
    group.leave_group(accelerator)
    return steps * all_together / seconds


def captured_steps(data: Path, run: Path, *flags: str) -> int:
    """A whole run; how many of its steps replayed a CUDA graph."""
    original, steps = cuda_graph.capture, itertools.count()

    def counted(replay: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(images_BCHW: Tensor) -> Tensor:
            next(steps)
            return replay(images_BCHW)

        return forward

    def capture(*args: Any) -> Any:
        return {shape: counted(replay) for shape, replay in original(*args).items()}

    replace(rehearsal, "capture", capture)
    jobs.fit(data, run, *flags)
    return next(steps)


def observe_in_float32(data: Path, run: Path, *flags: str) -> dict[str, Any]:
    """What `observe` sees, with convolutions in float32 where a GPU would take TF32."""
    torch.backends.cudnn.allow_tf32 = False
    return jobs.observe(data, run, *flags)


def weights_after_steps(
    name: str, size: int, captured: bool, hook: Callable[..., Any] | None = None, kept: bool = False
) -> dict[str, Any]:
    """Three optimizer steps of any model, from scratch, over batches of 6, 5 and 6 images: how many of them replayed a
    graph, and the weights after them.

    Args:
        hook: what the model calls after its forward pass.
        kept: whether BatchNorm keeps its statistics.
    """
    accelerator = group.join_group()
    train = TrainConfig(batch_size=6, cuda_graph=captured, freeze_batchnorm=kept)
    config = Config(DataConfig(image_size=size), ModelConfig(name, pretrained=False, drop_rate=0.2), train=train)
    learner = trainer.build_learner(accelerator, config)
    if hook:
        learner.module.register_forward_hook(hook)
    capture_steps(learner, config, [6, 5])
    engine.set_train_mode(learner.model, kept)
    generator, replays = torch.Generator().manual_seed(0), 0
    for step, count in enumerate((6, 5, 6)):
        pixels = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
        batch = black_images(count, size)._replace(images_BCHW=pixels)
        replays += pixels.shape in learner.graphs
        assert engine.train_step(learner, [batch], count, step, config).isfinite().all()
    weights = {key: tensor.cpu() for key, tensor in learner.module.state_dict().items()}
    on_cuda = accelerator.device.type == "cuda"
    usual_stream = not on_cuda or torch.cuda.current_stream() == torch.cuda.default_stream()
    group.leave_group(accelerator)
    return {"replays": replays, "weights": weights, "usual stream": usual_stream}


def memory_of_graphs(counts: list[list[int]], size: int) -> list[int]:
    """Bytes that a GPU holds when EfficientNet-B0's passes are captured over each list of numbers of images; last,
    when none of them is held."""
    accelerator = group.join_group()
    config = Config(DataConfig(image_size=size), ModelConfig(pretrained=False), train=TrainConfig(batch_size=64))
    learner = trainer.build_learner(accelerator, config)
    held = []
    for each in [*counts, []]:
        learner.graphs = {}
        if each:
            capture_steps(learner, config, each)
        held.append(cuda_graph.memory()[0])
    group.leave_group(accelerator)
    return held


def ask_the_device(module: Any, inputs: Any, logits_BK: Tensor) -> Tensor:
    """A hook that waits for the device, which no capture may do; it changes nothing."""
    return logits_BK if logits_BK.isfinite().all() else logits_BK.nan_to_num()
