"""A run on GPUs is the run that it is on CPUs; each case is tried on both, so that it is ready when a GPU comes."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from skindist.run.folder import Run
from tests.distributed.test_same_on_any_number import EXACT, global_batches
from tests.faults.test_killed import die_before_step
from tests.gpu import jobs
from tests.gpu.conftest import CPU, GPU, GPUS, SHARED, Note, Place, need_gpus
from tests.gpu.table import Row, render
from tests.helpers import jobs as any_jobs
from tests.helpers.same_bytes import FLAGS, STEPS, assert_same_bytes


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_training_lowers_the_loss(demo: Path, tmp_path: Path, place: Place, note: Note, precision: str) -> None:
    if place.device == "cpu" and precision == "fp16":
        pytest.skip("needs a GPU: fp16 does nothing on a CPU")
    flags = (
        "--data.augment=false",
        "--train.epochs=8",
        "--optim.lr=1.0",
        "--train.log_every=3",
        "--early_stopping.patience=9",
    )
    results = place.run(tmp_path / "ranks", precision, any_jobs.fit, demo, tmp_path / "run", *flags)[0]
    assert (results["mixed_precision"], results["world_size"]) == (precision, place.processes)
    assert results["deterministic"]
    assert (results["hardware"]["device"] == "cpu") == (place.device == "cpu")
    losses = [event["train/loss"] for event in Run(tmp_path / "run").metrics() if "train/loss" in event]
    assert losses[-1] < 0.9 * losses[0]
    note(f"training in {precision}", place, "the loss falls", f"from {losses[0]:.3f} to {losses[-1]:.3f}")


def test_batches_are_those_of_one_cpu_process(demo: Path, tmp_path: Path, place: Place, note: Note) -> None:
    (alone,) = CPU.run(tmp_path / "alone", "no", any_jobs.observe, demo, tmp_path / "run", *EXACT)
    ranks = place.run(tmp_path / "there", "no", jobs.observe_in_float32, demo, tmp_path / "run", *EXACT)
    for epoch in range(2):
        assert global_batches(ranks, epoch) == global_batches([alone], epoch)
    tolerance = 1e-3 if place.device == "cuda" else 1e-5
    largest = max(abs(mine - its) for mine, its in zip(ranks[0]["losses"], alone["losses"], strict=True))
    assert largest < tolerance
    images = sum(map(len, chain(*ranks[0]["loaded"]))) * place.processes
    observed = f"the same pixels of {images} images; losses of 5 steps differ by {largest:.1g} at most"
    note("batches and losses", place, f"those of one CPU process, losses to {tolerance:g}", observed)


def test_killed_and_resumed_it_ends_with_the_same_bytes(demo: Path, tmp_path: Path, place: Place, note: Note) -> None:
    place.run(tmp_path / "a", "no", any_jobs.fit, demo, tmp_path / "whole", *FLAGS)
    with pytest.raises(AssertionError):  # rank 0 dies by SIGKILL, the others with it or of it
        place.run(tmp_path / "b", "no", die_before_step, 0, STEPS + 1, demo, tmp_path / "cut")
    place.run(tmp_path / "c", "no", any_jobs.fit, demo, tmp_path / "cut", *FLAGS, "--run.resume=must")
    same = assert_same_bytes(tmp_path / "cut", tmp_path / "whole")
    note("kill -9 and resume", place, "the same bytes", f"the same bytes in {same} files")


@pytest.mark.parametrize("deterministic", ["true", "false"])
def test_a_run_repeats_itself_if_told_to(
    demo: Path, tmp_path: Path, place: Place, note: Note, deterministic: str
) -> None:
    flags = (*FLAGS, f"--train.deterministic={deterministic}")
    for name in ("one", "other"):
        results = place.run(tmp_path / f"ranks of {name}", "no", any_jobs.fit, demo, tmp_path / name, *flags)[0]
    promised = deterministic == "true" or place.device == "cpu"
    assert results["deterministic"] == promised
    try:
        observed = f"the same bytes in {assert_same_bytes(tmp_path / 'one', tmp_path / 'other')} files"
    except AssertionError as error:
        assert not promised, error
        observed = f"other bytes in {str(error).splitlines()[0]}"
    expected = "the same bytes twice" if promised else "nothing is promised"
    note(f"--train.deterministic {deterministic}", place, expected, observed)


@pytest.mark.parametrize("count", [32, 128])
def test_what_deterministic_kernels_and_graphs_bring(tmp_path: Path, place: Place, note: Note, count: int) -> None:
    """The defaults of --train.deterministic and --train.cuda_graph follow from these figures, on real GPUs."""
    if place.shared:
        pytest.skip("a GPU's speed is that of one process")
    precision, size, steps = ("bf16", 224, 50) if place.device == "cuda" else ("no", 32, 1)
    count = count if place.device == "cuda" else 2
    ways = {"with both": (True, True), "graphs alone": (False, True), "deterministic alone": (True, False)}
    speeds = {
        name: place.run(tmp_path / name, precision, jobs.images_per_second, *way, count, size, steps)[0]
        for name, way in {**ways, "with neither": (False, False)}.items()
    }
    assert min(speeds.values()) > 0
    observed = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    what = f"images/s in {precision}, {count} at a time, deterministic kernels and CUDA graphs"
    note(what, place, "it is measured", observed)


@pytest.mark.gpu
@pytest.mark.parametrize("place", [GPU, GPUS, SHARED], ids=str)
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_captured_steps_give_the_same_bytes(
    demo: Path, tmp_path: Path, place: Place, note: Note, precision: str
) -> None:
    need_gpus(place.gpus)
    flags = (*FLAGS, "--train.batch_size=8")  # an epoch of 5 steps: over 8, 7, 7, 7 and 7 images
    counts = [
        place.run(
            tmp_path / f"ranks {way}", precision, jobs.captured_steps, demo, tmp_path / way, *flags,
            f"--train.cuda_graph={way}",
        )
        for way in ("true", "false")
    ]  # fmt: skip
    assert (set(counts[0]), set(counts[1])) == ({3 * 5}, {0})
    same = assert_same_bytes(tmp_path / "true", tmp_path / "false")
    observed = f"the same bytes in {same} files, {counts[0][0]} steps replayed"
    note(f"steps captured as a CUDA graph, {precision}", place, "the bytes of the usual steps", observed)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "size", "precision", "kept"),
    [
        ("efficientnet_b0", 96, "bf16", False), ("efficientnet_b0", 224, "no", False),
        ("efficientnet_b0", 96, "bf16", True), ("resnet50", 96, "no", True),
        ("tf_efficientnetv2_b0", 96, "bf16", False), ("convnext_atto", 96, "bf16", False),
        ("resnet50", 96, "bf16", False), ("mobilenetv4_conv_small", 96, "bf16", False),
        ("vit_tiny_patch16_224", 224, "bf16", False),
    ],
)  # fmt: skip
def test_models_are_captured(tmp_path: Path, note: Note, name: str, size: int, precision: str, kept: bool) -> None:
    need_gpus(1)
    ours, usual = (
        GPU.run(tmp_path / str(captured), precision, jobs.weights_after_steps, name, size, captured, None, kept)[0]
        for captured in (True, False)
    )
    assert (ours["replays"], usual["replays"]) == (3, 0)
    for key, weight in usual["weights"].items():
        assert torch.equal(weight, ours["weights"][key]), key
    what = f"{name} captured as a CUDA graph, {precision}{', BatchNorm folded' if kept else ''}"
    note(what, GPU, "the weights of the usual steps", "the same bits after 3 steps")


@pytest.mark.gpu
def test_graphs_share_memory_and_give_it_back(tmp_path: Path, note: Note) -> None:
    need_gpus(1)
    one, two, none = GPU.run(tmp_path, "bf16", jobs.memory_of_graphs, [[32], [32, 31]], 224)[0]
    assert one < two < 1.2 * one
    assert none < 0.5 * one
    observed = f"{one / 2**30:.2f} GiB for 32 images, {two / 2**30:.2f} for 32 and 31, {none / 2**30:.2f} without"
    note("memory of CUDA graphs", GPU, "those of two sizes share it; what is dropped is free", observed)


@pytest.mark.gpu
def test_a_model_that_cannot_be_captured_trains_all_the_same(tmp_path: Path, note: Note) -> None:
    need_gpus(1)
    job = (jobs.weights_after_steps, "test_resnet", 32)
    ours = GPU.run(tmp_path / "ours", "bf16", *job, True, jobs.ask_the_device)[0]
    usual = GPU.run(tmp_path / "usual", "bf16", *job, False)[0]
    assert ours["replays"] == 0
    assert ours["usual stream"]
    assert "--train.cuda_graph is not used" in (tmp_path / "ours" / "rank0.log").read_text()
    for key, weight in usual["weights"].items():
        assert torch.equal(weight, ours["weights"][key]), key
    note("a model that waits for the device", GPU, "it trains without a CUDA graph", "the same bits after 3 steps")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_step_does_not_wait_for_the_device(
    demo: Path, tmp_path: Path, place: Place, note: Note, precision: str
) -> None:
    """Not so in fp16: torch's gradient scaler itself asks at each step whether it overflowed."""
    flags = (
        "--model.drop_rate=0.3", "--model.drop_path_rate=0.3", "--data.num_workers=1",
        "--train.batch_size=8",
    )  # fmt: skip
    if place.shared:
        pytest.skip("needs NCCL: gloo waits for the device")
    steps = place.run(tmp_path, precision, jobs.steps_without_waiting, demo, tmp_path / "run", *flags)[0]
    assert steps == 2 * 5 - 1
    note(f"steps in {precision}", place, "no wait for the device", f"none in {steps} steps")


def test_memory_does_not_grow(demo: Path, tmp_path: Path, place: Place, note: Note) -> None:
    flags = ("--train.epochs=5", "--early_stopping.patience=9")
    held = place.run(tmp_path, "no", jobs.held_after_epochs, demo, tmp_path / "run", *flags)[0]
    assert len(held) == 5
    message = 0 if place.device == "cuda" else 1  # gloo may still hold the last one; a leak in each epoch would be two
    assert held[4] <= held[2] + message
    unit = "bytes" if place.device == "cuda" else "tensors"
    note("memory", place, "after epoch 5 as after epoch 3", f"{held[4]:,} and {held[2]:,} {unit}")


@pytest.mark.gpu
@pytest.mark.parametrize("place", [GPU, GPUS], ids=str)
def test_a_batch_that_does_not_fit_is_cut(demo: Path, tmp_path: Path, place: Place, note: Note) -> None:
    """tests/distributed has the same for CPU processes, with an error in place of a full memory."""
    need_gpus(place.processes)
    flags = (
        "--model.name=efficientnet_b0", "--data.image_size=224", "--train.batch_size=36", "--train.epochs=1",
        "--train.micro_batch_size=auto", "--train.eval_batch_size=512",
    )  # fmt: skip
    found = place.run(tmp_path, "no", jobs.fit_in_memory, 1.0, demo, tmp_path / "run", *flags)[0]
    assert 1 <= found["micro_batch_size"] < -(-36 // place.processes)
    assert found["eval_batch_size"] < 512
    observed = f"{found['micro_batch_size']} at a time, {found['eval_batch_size']} in evaluation"
    note("EfficientNet-B0 in 1 GiB, a batch of 36 and 512", place, "it is cut until it fits, and trains", observed)


@pytest.mark.gpu
def test_synchronised_batchnorm_is_that_of_one_process(demo: Path, tmp_path: Path, note: Note) -> None:
    need_gpus(2)
    flags = ("--train.sync_batchnorm=true",)
    (alone,) = GPU.run(tmp_path / "1", "no", any_jobs.observe, demo, tmp_path / "run", *flags)
    ranks = GPUS.run(tmp_path / "2", "no", any_jobs.observe, demo, tmp_path / "run", *flags)
    statistics = [name for name in alone["weights"] if "running" in name]
    assert statistics
    largest = max(np.abs(ranks[0]["weights"][name] - alone["weights"][name]).max() for name in statistics)
    assert largest < 1e-2
    observed = f"{len(statistics)} statistics after 5 steps differ by {largest:.1g} at most"
    note("--train.sync_batchnorm true", GPUS, "the statistics of one process, to rounding", observed)


def test_the_table() -> None:
    rows = [Row("training in bf16", "2 GPUs", "the loss falls", "from 0.7 to 0.1")]
    assert render(rows, "2 x H100", "torch 2.15").splitlines()[2:] == [
        "| training in bf16, 2 GPUs | the loss falls | from 0.7 to 0.1 | 2 x H100 | torch 2.15 |"
    ]
