"""When a step is captured, and what takes its way. No GPU: what torch would capture is a stand-in."""

import copy
import logging
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skindist.config import Config
from skindist.folding import Pairs, pairs_to_fold
from skindist.recipe import TrainConfig
from skindist.training import cuda_graph, rehearsal
from skindist.training.cuda_graph import Graphs, capture, hindrance
from skindist.training.learner import Learner


def test_nothing_is_captured_for_a_process_with_one_image_at_a_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rehearsal, "capture", pytest.fail)
    second: Any = SimpleNamespace(device=torch.device("cuda"), num_processes=2, process_index=1)
    learner: Any = SimpleNamespace(accelerator=second, model=nn.Linear(1, 1))
    with caplog.at_level(logging.INFO, "skindist"):
        rehearsal.capture_steps(learner, Config(), [3])
    assert "--train.cuda_graph is not used: this process has one image at a time" in caplog.text


class StandIn:
    """Captures on a CPU as a GPU does: what was launched is done again over the same memory, and its results are
    written where the first ones lie. `memory` is what is told of it before and after: held by us, and free."""

    def __init__(self) -> None:
        self.memory = [(10, 100), (50, 60)]
        self.places: list[tuple[object, object]] = []
        self.graphs: list[weakref.ref[Any]] = []
        self.computed: dict[int, Tensor] = {}

    def captured(
        self, pool: object, stream: object, function: Callable[..., Any], *args: Tensor
    ) -> tuple[Callable[[], None], Any]:
        self.places.append((pool, stream))
        result = function(*args)

        def graph() -> None:
            with torch.enable_grad():
                again = function(*(self.computed.get(id(tensor), tensor) for tensor in args))
            for old, new in zip(as_tuple(result), as_tuple(again), strict=True):
                self.computed[id(old)] = new
                old.data.copy_(new.data)

        self.graphs.append(weakref.ref(graph))
        return graph, result


def as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """What captures in place of torch."""
    stand_in = StandIn()
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "stream")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(cuda_graph, "captured", stand_in.captured)
    monkeypatch.setattr(cuda_graph, "memory", lambda: stand_in.memory.pop(0))
    return stand_in


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
        (TrainConfig(sync_batchnorm=True, freeze_batchnorm=True), 2, None),
        (TrainConfig(sync_batchnorm=True, freeze_batchnorm=False), 2, "BatchNorm is synchronised"),
    ],
)
def test_one_pass_of_a_process_can_be_captured(train: TrainConfig, processes: int, reason: str | None) -> None:
    assert hindrance(Config(train=train), 32, processes) == reason


def test_capturing_changes_no_statistics(stand_in: StandIn) -> None:
    module = model()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert set(capture(module, [images(3), images(2)])) == {images(3).shape, images(2).shape}
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert stand_in.places == [("pool", "stream")] * 4, "graphs of several streams would share no memory"


def learner(module: nn.Module, graphs: Graphs, pairs: Pairs = ()) -> Learner:
    """What learns in float32 on a CPU, with graphs."""
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), mixed_precision="no")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return Learner(
        accelerator,
        module,
        lambda images, colours: images,
        model=module,
        optimizer=optimizer,
        graphs=graphs,
        pairs=pairs,
    )


def test_images_of_those_shapes_take_the_graph_and_others_do_not(stand_in: StandIn) -> None:
    module = model().eval()
    graphs = capture(module, [images(3), images(2)])
    for count in (1, 2, 3, 4):
        usual = module(images(count))
        logits = learner(module, graphs).logits_to_learn_from(images(count))
        assert torch.equal(logits, usual)
        assert torch.equal(module(images(count)), usual)
        assert logits.grad_fn is not None
        assert (logits.grad_fn.name() == "ReplayBackward") == (count in (2, 3))


def test_gradients_reach_the_weights_of_the_model_as_they_are_now(stand_in: StandIn) -> None:
    linear = nn.Linear(4, 1)
    linear.bias.requires_grad_(False)
    module = nn.Sequential(nn.Flatten(), linear)
    graphs = capture(module, [images(1)])
    assert linear.weight.grad is None
    with torch.no_grad():
        linear.weight.fill_(2.0)
        linear.bias.fill_(1.0)
    logits = learner(module, graphs).logits_to_learn_from(images(1) + 1)
    assert logits.item() == 2 * (1 + 2 + 3 + 4) + 1
    torch.autograd.backward(3 * logits)
    assert linear.weight.grad is not None
    assert linear.weight.grad.tolist() == [[3, 6, 9, 12]]
    assert linear.bias.grad is None


def test_steps_of_two_shapes_in_turn_are_the_usual_ones(stand_in: StandIn) -> None:
    """With BatchNorm in training mode and an optimizer of its own state, to the bit."""
    torch.manual_seed(0)
    usual = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    module = copy.deepcopy(usual)
    learners = learner(usual, {}), learner(module, capture(module, [images(3), images(2)]))
    for step, count in enumerate((3, 2, 2, 3)):
        for each in learners:
            torch.autograd.backward(each.logits_to_learn_from(images(count).sin() + step).square().sum())
            each.optimizer.step()
            each.optimizer.zero_grad()
    for name, tensor in usual.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name]), name


def test_batchnorm_is_folded_in_captured_steps_as_in_usual_ones(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    usual = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).train()
    usual(images(3))
    usual.eval()
    module = copy.deepcopy(usual)
    monkeypatch.setattr(nn.functional, "batch_norm", lambda *args: pytest.fail("it is not folded"))
    pairs = pairs_to_fold(module)
    learners = learner(usual, {}, pairs_to_fold(usual)), learner(module, capture(module, [images(3)], pairs), pairs)
    for step in range(3):
        for each in learners:
            torch.autograd.backward(each.logits_to_learn_from(images(3).sin() + step).square().sum())
            each.optimizer.step()
            each.optimizer.zero_grad()
    for name, tensor in usual.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name]), name


def test_what_accelerate_has_put_in_its_place_stays(stand_in: StandIn) -> None:
    module = model().eval()
    usual = module.forward
    own = module.forward = lambda images_BCHW: 2 * usual(images_BCHW)
    expected = module(images(2))
    graphs = capture(module, [images(2)])
    assert torch.equal(learner(module, graphs).logits_to_learn_from(images(2)), expected)
    assert module.forward is own


def test_graphs_that_take_more_than_they_leave_are_not_kept(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever others take of the same GPU meanwhile: what counts is what is held by us, and what is left."""
    stand_in.memory = [(10, 2**37), (10 + 49 * 2**30, 49 * 2**30), (10, 2**37), (11 + 49 * 2**30, 49 * 2**30)]
    assert capture(model(), [images(2)])
    with caplog.at_level(logging.WARNING, "skindist"):
        assert not capture(model(), [images(2)])
    assert caplog.messages == ["--train.cuda_graph is not used: it leaves 49.0 GiB of the GPU's memory"]
    assert [graph() for graph in stand_in.graphs] == [None] * 4, "unused ones hold no memory, without a collection"


def test_a_model_that_cannot_be_captured_trains_all_the_same(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if its second shape is the one that fails."""
    cleaned: list[object] = []

    def captured(pool: object, stream: object, function: Callable[..., Any], *args: Tensor) -> Any:
        if len(stand_in.graphs) == 2:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        return stand_in.captured(pool, stream, function, *args)

    monkeypatch.setattr(cuda_graph, "captured", captured)
    monkeypatch.setattr(cuda_graph, "clean_up", lambda device, pool: cleaned.append((device, pool)))
    module = model()
    with caplog.at_level(logging.WARNING, "skindist"):
        assert not capture(module, [images(3), images(2)])
    assert caplog.messages == ["--train.cuda_graph is not used: operation not permitted when stream is capturing"]
    assert cleaned == [(torch.device("cpu"), "pool")]
    assert module.state_dict()["0.num_batches_tracked"] == 0
    assert [graph() for graph in stand_in.graphs] == [None] * 2
