"""What a GPU is told so that it repeats its sums, and that a CPU is told nothing: stubs, as no GPU is needed for it."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from skindist.determinism import choose_kernels, float32_of, repeats, tf32
from skindist.errors import UserError
from skindist.prediction.memory import advised
from skindist.run.folder import Run
from skindist.training.restoring import refuse_another_experiment

CPU, CUDA, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_NVLS_ENABLE", "NVIDIA_TF32_OVERRIDE"):
        monkeypatch.setenv(variable, "")  # so that it is taken away again after the test
        monkeypatch.delenv(variable)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # noqa: B010


def test_a_gpu_repeats_its_sums_only_if_told_to() -> None:
    torch.backends.cudnn.benchmark = True
    choose_kernels(True, "cuda")
    assert (os.environ["CUBLAS_WORKSPACE_CONFIG"], os.environ["NCCL_NVLS_ENABLE"]) == (":4096:8", "0")
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert not torch._C._get_deterministic_fill_uninitialized_memory()
    assert (repeats(CUDA), repeats(CPU), repeats(MPS)) == (True, True, False)
    choose_kernels(False, "cuda")
    assert (repeats(CUDA), repeats(CPU)) == (False, True)


def test_a_cpu_is_told_nothing() -> None:
    choose_kernels(True, "cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


@pytest.mark.parametrize(("variable", "value"), [("CUBLAS_WORKSPACE_CONFIG", ":0:0"), ("NCCL_NVLS_ENABLE", "1")])
def test_an_environment_that_asks_for_the_contrary_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(
        UserError, match=rf"^{variable}={value}: .*, or, in training, choose --train\.deterministic false$"
    ):
        choose_kernels(True, "cuda")
    choose_kernels(False, "cuda")


def test_a_model_without_such_a_kernel_is_named() -> None:
    words = "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set ..."
    with (
        pytest.raises(
            UserError,
            match=r"needs adaptive_avg_pool2d_backward_cuda, which .*: use a CPU, or, in training, .* --train\.det",
        ),
        advised(4),
    ):
        raise RuntimeError(words)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What torch says of a GPU that has TF32."""
    properties = SimpleNamespace(major=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return properties


def test_what_a_gpu_computes_in_tf32(monkeypatch: pytest.MonkeyPatch, gpu: SimpleNamespace) -> None:
    assert tf32(CPU) == []
    assert tf32(CUDA) == ["convolution"], "torch's defaults"
    assert (float32_of(CPU), float32_of(CUDA)) == ("float32", "float32 (TF32 for convolution)")
    torch.backends.cuda.matmul.allow_tf32 = True
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert tf32(CUDA) == ["matmul", "convolution", "NVIDIA_TF32_OVERRIDE=1"]
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert tf32(CUDA) == []


def test_a_gpu_without_tf32_computes_nothing_in_it(monkeypatch: pytest.MonkeyPatch, gpu: SimpleNamespace) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert tf32(CUDA) == ["matmul"], "AMD's MI300 has it for this alone"
    monkeypatch.setattr(torch.version, "hip", None)
    gpu.major = 7
    assert tf32(CUDA) == []


@pytest.mark.usefixtures("gpu")
@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="the newer way came with torch 2.9")
def test_tf32_may_be_chosen_in_the_newer_way() -> None:
    cudnn: Any = torch.backends.cudnn
    torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision = "tf32", "ieee"
    assert tf32(CUDA) == ["matmul"]


@pytest.mark.usefixtures("gpu")
def test_an_older_torch_is_asked_in_the_older_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(allow_tf32=False))
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=True))
    assert tf32(CUDA) == ["matmul"]


def test_a_resumed_run_says_what_may_change_its_bits(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    same = {"config": {}, "data": "a"}
    then = {"mixed_precision": "bf16", "deterministic": True, "tf32": ["convolution"]}
    now = {"mixed_precision": "bf16", "deterministic": False, "tf32": ["matmul"], "gpu": "H100"}
    refuse_another_experiment(Run(tmp_path), same | {"environment": then}, same, now)
    moved = "deterministic True -> False, tf32 ['convolution'] -> ['matmul']"
    assert f"resumed elsewhere ({moved})" in caplog.text, "an older run did not say what GPU it was on"
