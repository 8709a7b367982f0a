"""When a step is captured, and what takes its way. No GPU: what torch would capture is a stand-in."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skindist.recipe import TrainConfig
from skindist.training import cuda_graph
from skindist.training.cuda_graph import CudaGraph, capture, hindrance
from skindist.training.learner import Learner


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Captures in place of torch: one warm-up pass, and a forward that gives 100. Returns the free bytes to be told."""
    free = [100, 60]

    def make_graphed_callables(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        module(*args)
        module.forward = lambda images_BCHW: torch.full((len(images_BCHW), 1), 100.0)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    monkeypatch.setattr(cuda_graph, "free_memory", lambda: free.pop(0))
    return free


def model() -> nn.Module:
    """Adds up an image; BatchNorm has statistics, and counts batches."""
    linear = nn.Linear(4, 1, bias=False)
    nn.init.ones_(linear.weight)
    return nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.Flatten(), linear)


def images(count: int) -> Tensor:
    return torch.arange(4.0 * count).view(count, 1, 2, 2)


@pytest.mark.parametrize(
    ("train", "processes", "reason"),
    [
        (TrainConfig(), 1, None),
        (TrainConfig(batch_size=32, micro_batch_size=32), 1, None),
        (TrainConfig(batch_size=32, micro_batch_size=31), 1, "a batch is accumulated from several passes"),
        (TrainConfig(), 2, "there are 2 processes"),
    ],
)
def test_one_pass_of_one_process_can_be_captured(train: TrainConfig, processes: int, reason: str | None) -> None:
    assert hindrance(train, 32, processes) == reason


def test_capturing_changes_no_statistics(stand_in: list[int]) -> None:
    module = model()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert capture(module, images(2)) is not None
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def learner(module: nn.Module, graph: CudaGraph | None) -> Learner:
    """What learns in float32 on a CPU, with a graph."""
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), mixed_precision="no")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return Learner(accelerator, module, lambda images, colours: images, model=module, optimizer=optimizer, graph=graph)


def test_images_of_that_shape_take_the_graph_and_others_do_not(stand_in: list[int]) -> None:
    module = model().eval()
    graph = capture(module, images(2))
    assert graph is not None
    for count in (1, 2, 3):
        usual = module(images(count))
        logits = learner(module, graph).logits_to_learn_from(images(count))
        assert (logits == 100).all() if count == 2 else torch.equal(logits, usual)
        assert torch.equal(module(images(count)), usual)


def test_what_accelerate_has_put_in_its_place_stays(stand_in: list[int]) -> None:
    module, own = model(), lambda images_BCHW: images_BCHW
    module.forward = own
    graph = capture(module, images(2))
    assert (learner(module, graph).logits_to_learn_from(images(2)) == 100).all()
    assert module.forward is own


def test_a_graph_that_takes_more_than_it_leaves_is_not_kept(
    stand_in: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    stand_in[:] = [100 * 2**30, 49 * 2**30]
    with caplog.at_level(logging.WARNING, "skindist"):
        assert capture(model(), images(2)) is None
    assert caplog.messages == ["--train.cuda_graph is not used: it leaves 49.0 GiB of the GPU's memory"]


def test_a_model_that_cannot_be_captured_trains_all_the_same(
    stand_in: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(module: nn.Module, args: tuple[Any, ...]) -> None:
        module(*args)
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    renewed: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    monkeypatch.setattr(cuda_graph, "renew_generator", renewed.append)
    module = model()
    with caplog.at_level(logging.WARNING, "skindist"):
        assert capture(module, images(2)) is None
    assert caplog.messages == ["--train.cuda_graph is not used: operation not permitted when stream is capturing"]
    assert renewed == [torch.device("cpu")]
    assert module.state_dict()["0.num_batches_tracked"] == 0
