"""When a step is captured, and what takes its way. No GPU: what torch would capture is a stand-in."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skindist.recipe import TrainConfig
from skindist.training import cuda_graph
from skindist.training.cuda_graph import Graphs, capture, hindrance
from skindist.training.learner import Learner


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Captures a linear layer in place of torch: one warm-up pass, and a graph that adds 100. Returns the free bytes to
    be told."""
    free = [100, 60]

    def make_graphed_callables(
        passes: Callable[..., Tensor], args: tuple[Tensor, ...], pool: str
    ) -> Callable[..., Tensor]:
        assert pool == "shared"
        passes(*args)
        return lambda images_BCHW, *weights: nn.functional.linear(images_BCHW.flatten(1), *weights) + 100

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "shared")
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
        (TrainConfig(), 2, None),
        (TrainConfig(batch_size=32, micro_batch_size=15), 2, "a batch is accumulated from several passes"),
        (TrainConfig(sync_batchnorm=True), 1, None),
        (TrainConfig(sync_batchnorm=True), 2, "BatchNorm is synchronised"),
    ],
)
def test_one_pass_of_a_process_can_be_captured(train: TrainConfig, processes: int, reason: str | None) -> None:
    assert hindrance(train, 32, processes) == reason


def test_capturing_changes_no_statistics(stand_in: list[int]) -> None:
    module = model()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert set(capture(module, [images(3), images(2)])) == {images(3).shape, images(2).shape}
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def learner(module: nn.Module, graphs: Graphs) -> Learner:
    """What learns in float32 on a CPU, with graphs."""
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), mixed_precision="no")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return Learner(
        accelerator, module, lambda images, colours: images, model=module, optimizer=optimizer, graphs=graphs
    )


def test_images_of_those_shapes_take_the_graph_and_others_do_not(stand_in: list[int]) -> None:
    module = model().eval()
    graphs = capture(module, [images(3), images(2)])
    for count in (1, 2, 3, 4):
        usual = module(images(count))
        logits = learner(module, graphs).logits_to_learn_from(images(count))
        replayed = images(count).flatten(1).sum(1, keepdim=True) + 100
        assert torch.equal(logits, replayed if count in (2, 3) else usual)
        assert torch.equal(module(images(count)), usual)


def test_gradients_reach_the_weights_of_the_model_as_they_are_now(stand_in: list[int]) -> None:
    linear = nn.Linear(4, 1)
    linear.bias.requires_grad_(False)
    module = nn.Sequential(nn.Flatten(), linear)
    graphs = capture(module, [images(1)])
    assert linear.weight.grad is None
    with torch.no_grad():
        linear.weight.fill_(2.0)
        linear.bias.fill_(1.0)
    logits = learner(module, graphs).logits_to_learn_from(images(1))
    assert logits.item() == 2 * (0 + 1 + 2 + 3) + 1 + 100
    torch.autograd.backward(logits)
    assert linear.weight.grad is not None
    assert linear.weight.grad.tolist() == [[0, 1, 2, 3]]
    assert linear.bias.grad is None


def test_what_accelerate_has_put_in_its_place_stays(stand_in: list[int]) -> None:
    module = model().eval()
    usual = module.forward
    own = module.forward = lambda images_BCHW: 2 * usual(images_BCHW)
    graphs = capture(module, [images(2)])
    logits = learner(module, graphs).logits_to_learn_from(images(2))
    assert logits.tolist() == [[0 + 1 + 2 + 3 + 100], [4 + 5 + 6 + 7 + 100]]
    assert module.forward is own


def test_graphs_that_take_more_than_they_leave_are_not_kept(
    stand_in: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    stand_in[:] = [100 * 2**30, 49 * 2**30]
    with caplog.at_level(logging.WARNING, "skindist"):
        assert not capture(model(), [images(2)])
    assert caplog.messages == ["--train.cuda_graph is not used: it leaves 49.0 GiB of the GPU's memory"]


def test_a_model_that_cannot_be_captured_trains_all_the_same(
    stand_in: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(passes: Callable[..., Tensor], args: tuple[Any, ...], pool: str) -> None:
        passes(*args)
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    renewed: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    monkeypatch.setattr(cuda_graph, "renew_generator", renewed.append)
    module = model()
    with caplog.at_level(logging.WARNING, "skindist"):
        assert not capture(module, [images(2)])
    assert caplog.messages == ["--train.cuda_graph is not used: operation not permitted when stream is capturing"]
    assert renewed == [torch.device("cpu")]
    assert module.state_dict()["0.num_batches_tracked"] == 0
