"""Which tests see a GPU: those that were asked for with `-m gpu`, and no others."""

import os

import pytest
import torch

from tests.conftest import asks_for_gpus


def test_what_is_measured_on_a_cpu_sees_no_gpu() -> None:
    """Processes that a test starts inherit it."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == os.environ["HIP_VISIBLE_DEVICES"] == ""
    assert not torch.cuda.is_available()


@pytest.mark.parametrize("marks", ["gpu", "gpu and not slow", "gpu and slow"])
def test_tests_on_gpus_see_them(marks: str) -> None:
    assert asks_for_gpus(marks)


@pytest.mark.parametrize("marks", ["", "not slow", "slow or not slow", "not gpu", "slow or gpu", "gpu or slow"])
def test_whoever_asks_for_more_gets_the_suite_for_cpus(marks: str) -> None:
    assert not asks_for_gpus(marks)
