"""Running out of memory: what is said, and how the largest micro-batch is found."""

import multiprocessing
from dataclasses import dataclass

import pytest
import torch
from torch.utils.data import DataLoader

from skindist.data.loading import Batch
from skindist.distributed import group
from skindist.errors import OutOfMemory, TrainingError
from skindist.prediction.memory import (
    advised,
    images_at_a_time,
    is_out_of_memory,
    largest_that_fits,
    memory_explained,
)
from skindist.prediction.predictor import Predictor


def room_for(most: int, tried: list[int]) -> object:
    def attempt(images: int) -> None:
        tried.append(images)
        if images > most:
            raise torch.OutOfMemoryError(f"no room for {images}")

    return attempt


@pytest.mark.parametrize(
    ("room", "expected"), [(100, [24]), (23, [24, 12]), (5, [24, 12, 6, 3]), (1, [24, 12, 6, 3, 2, 1])]
)
def test_the_largest_half_of_a_half_that_fits(room: int, expected: list[int]) -> None:
    tried: list[int] = []
    assert largest_that_fits(group.join_group(), 24, room_for(room, tried)) == expected[-1]  # type: ignore[arg-type]
    assert tried == expected


def test_where_not_even_one_fits_the_image_is_too_large() -> None:
    words = r"with one image at a time: .* train with a smaller --data\.image_size \(no room for 1\)$"
    with pytest.raises(TrainingError, match=words):
        largest_that_fits(group.join_group(), 4, room_for(0, []))  # type: ignore[arg-type]


@dataclass
class Small(Predictor):
    """A predictor on whose device `room` images find room."""

    room: int = 0

    def logits(self, batch: Batch, module: torch.nn.Module) -> torch.Tensor:
        room_for(self.room, [])(len(batch.ids_B))  # type: ignore[operator]
        return torch.zeros(len(batch.ids_B), 2)


@pytest.mark.parametrize(("device", "room", "expected"), [("cuda", 100, 64), ("cuda", 20, 16), ("cpu", 20, 64)])
def test_a_prediction_takes_as_many_images_as_a_gpu_holds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, device: str, room: int, expected: int
) -> None:
    accelerator = group.join_group()
    monkeypatch.setattr(type(accelerator), "device", torch.device(device))
    monkeypatch.setattr("skindist.distributed.host.sum_ranks", lambda values: values)
    small = Small(accelerator, torch.nn.Identity(), lambda images, colours: images, room=room)
    with caplog.at_level("INFO", logger="skindist"):
        assert images_at_a_time(small, 32, 64) == expected
    assert [record.message for record in caplog.records] == ["memory: 16 images at a time"] * (expected == 16)


def test_the_advice_names_the_setting() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"with 16 images at a time: choose a smaller --train\.micro"),
        advised(16),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(ValueError, match="something else"), advised(16):
        raise ValueError("something else")


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory",
        "HIP out of memory. Tried to allocate 2.00 GiB",
        "HIP error: hipErrorOutOfMemory",
        "MPS backend out of memory (MPS allocated: 17.9 GB, other allocations: 1.2 GB, max allowed: 18.1 GB)",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "GET was unable to find an engine to execute this computation",
        "NCCL error ... Cuda failure 2 'out of memory'",
        "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_out_of_memory_in_other_words(words: str) -> None:
    with pytest.raises(OutOfMemory, match=r"^out of memory with 8 images at a time: choose a smaller"), advised(8):
        raise RuntimeError(words)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "cuDNN error: CUDNN_STATUS_BAD_PARAM",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory.",
    ],
)
def test_other_faults_are_not_taken_for_it(words: str) -> None:
    assert not is_out_of_memory(RuntimeError(words))


def test_the_advice_for_an_evaluation_is_another_setting() -> None:
    with pytest.raises(OutOfMemory, match=r"with 64 images .* smaller --train\.eval_batch_size"), advised(64, True):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_memory_that_no_image_takes_is_told_apart() -> None:
    """As of the optimizer's first step, or of the weights on a GPU that somebody else fills."""
    with pytest.raises(OutOfMemory, match="out of memory for the model itself, or in training"), memory_explained():
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(OutOfMemory, match="with 64 images"), memory_explained(), advised(64):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(ValueError, match="another"), memory_explained():
        raise ValueError("another")


def test_a_real_refusal_of_the_machine_is_recognised() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)


@pytest.mark.parametrize("error", [ConnectionRefusedError(111), ConnectionResetError(104), EOFError()])
def test_a_batch_of_a_killed_worker_cannot_be_fetched(error: Exception) -> None:
    """Where the batch is asked for before torch hears of the death. Elsewhere, the same error says something else."""

    def cannot(batch: object) -> None:
        raise error

    batches: DataLoader[int] = DataLoader([0], collate_fn=cannot)  # type: ignore[arg-type]
    with pytest.raises(OutOfMemory, match="a loader worker was killed"), memory_explained():
        next(iter(batches))
    with pytest.raises(type(error)) as passed_on, memory_explained():
        raise error.with_traceback(None)
    assert passed_on.value is error


@pytest.mark.parametrize(("method", "names_the_script"), [("fork", False), ("spawn", True), ("forkserver", True)])
def test_where_workers_import_the_script_it_may_be_the_cause(
    monkeypatch: pytest.MonkeyPatch, method: str, names_the_script: bool
) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: method)
    with pytest.raises(OutOfMemory, match="a loader worker was killed") as told, memory_explained():
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    assert ("__main__" in str(told.value)) == names_the_script
