"""A copy that only predicts: BatchNorm inside the convolutions, the same outputs, and the original as it was."""

import copy

import pytest
import timm
import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn

from skindist.folding import folded, folding_pairs, for_prediction, pairs_to_fold


def with_statistics(module: nn.Module, size: int = 64) -> nn.Module:
    """The module after a look at noise, so that no BatchNorm is the identity."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2.0)
            nn.init.normal_(layer.bias)
    module.train()(torch.randn(8, 3, size, size) * 2 + 1)
    return module.eval()


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("efficientnet_lite0", 0),
        ("tf_mobilenetv3_small_minimal_100", 0),
        ("resnet18", 0),
        ("test_vit", 0),
        ("densenet121", 62),
    ],
)
def test_the_copy_gives_the_same_logits_with_batchnorm_folded_where_it_can_be(name: str, left: int) -> None:
    """In a densenet, most BatchNorms come before their convolution, where they cannot be folded."""
    size = 160 if name == "test_vit" else 64
    module = with_statistics(timm.create_model(name, num_classes=2), size).double()  # rounding is the CPU's own
    before = copy.deepcopy(module.state_dict())
    copied = for_prediction(module)
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(copied(images), module(images), rtol=1e-9, atol=1e-9)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in copied.modules()) == left
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize(("name", "pairs"), [("efficientnet_lite0", 49), ("resnet18", 20), ("densenet121", 59)])
def test_a_model_that_learns_gets_the_same_gradients_folded(name: str, pairs: int) -> None:
    module = with_statistics(timm.create_model(name, num_classes=2)).double()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    found = pairs_to_fold(module)
    assert len(found) == pairs
    gradients, before = [], module(images)
    for folding in ((), found):
        with folded(folding):
            logits = module(images)
        torch.testing.assert_close(logits, before, rtol=1e-9, atol=1e-9)
        gradients.append(torch.autograd.grad(logits[:, 1].sum(), list(module.parameters())))
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-7, atol=1e-7 * plain.abs().max().item())
    assert torch.equal(module(images), before), "as it was, outside"
    assert all(name not in vars(layer) for pair in found for layer in pair for name in ("weight", "bias", "forward"))


def conv_and_norm() -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """y = (2x + 1 - 3) / sqrt(4) * 6 + 5 = 6x - 1."""
    norm = nn.BatchNorm2d(1, eps=0.0).eval()
    convolution = nn.Conv2d(1, 1, 1)
    for tensor, value in (
        (convolution.weight, 2), (convolution.bias, 1), (norm.running_mean, 3), (norm.running_var, 4), (norm.weight, 6),
        (norm.bias, 5),
    ):  # fmt: skip
        assert tensor is not None
        nn.init.constant_(tensor, value)
    return convolution, norm


def test_a_batchnorm_that_learns_its_statistics_is_left_alone() -> None:
    pair = conv_and_norm()
    pair[1].eps = 1e-5
    module = nn.Sequential(*pair).train()
    images = torch.arange(4.0).view(4, 1, 1, 1)
    with folded([pair]):
        torch.testing.assert_close(module(images).mean().item(), 5.0)
    assert pair[1].running_mean is not None
    assert pair[1].running_mean.item() == pytest.approx(0.9 * 3 + 0.1 * 4), "the mean of 2x + 1 is 4"


def test_a_look_for_pairs_changes_nothing() -> None:
    """Tracing runs what is no layer of torch's, here with what it has counted."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            return images + self.get_buffer("calls").add_(1)

    module = nn.Sequential(Counting(), *conv_and_norm())
    assert len(pairs_to_fold(module)) == 1
    assert module[0].get_buffer("calls") == 0
    assert vars(module).keys() == vars(nn.Sequential()).keys()


def test_hand_computed() -> None:
    copied = for_prediction(nn.Sequential(*conv_and_norm()))
    assert {name: tensor.item() for name, tensor in copied.named_parameters()} == {"0.weight": 6.0, "0.bias": -1.0}


def test_gradients_computed_by_hand() -> None:
    """y = (w x + b - 3) / 2 g + o at x = 7: dy/dw = 3 x, dy/db = 3, dy/dg = (2x + 1 - 3) / 2, dy/do = 1."""
    pair = conv_and_norm()
    module = nn.Sequential(*pair)
    with folded([pair]):
        found = module(torch.full((1, 1, 1, 1), 7.0))
    found.sum().backward()
    assert found.item() == 41.0
    assert [weight.grad.item() for weight in module.parameters() if weight.grad is not None] == [21.0, 3.0, 6.0, 1.0]


class Twice(nn.Module):
    """A convolution whose output goes two ways, and one that two BatchNorms follow."""

    def __init__(self) -> None:
        super().__init__()
        self.forked, self.shared = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.first, self.second, self.third = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        forked = self.forked(images)
        total: Tensor = forked + self.first(forked) + self.second(self.shared(images)) + self.third(self.shared(images))
        return total


class Again(nn.Module):
    """A convolution and a BatchNorm that are called twice, and ones whose weight is read beside."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.read = (nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        beside: Tensor = self.read.get_parameter("0.weight").sum()
        twice = self.again[1](input=self.again[0](self.again(images)))
        found: Tensor = twice + self.read(images) + beside
        return found


class Choosy(nn.Module):
    """Its way depends on its input, so it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.norm(self.convolution(images))
        return found if images.sum() > 0 else -found


@pytest.mark.parametrize("make", [Twice, Again, Choosy])
def test_what_cannot_be_folded_stays_as_it_is(make: type[nn.Module]) -> None:
    module = with_statistics(make())
    images = torch.randn(2, 3, 8, 8)
    assert folding_pairs(module) == []
    assert torch.equal(for_prediction(module)(images), module(images))


def test_the_copy_predicts_in_float32_where_training_is_in_another_precision() -> None:
    """As Accelerate prepares a model: its autocast stands in the instance's own forward."""
    module = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    images = torch.randn(2, 3, 8, 8)
    exact = module(images)
    vars(module)["forward"] = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(module.forward))
    assert not torch.equal(module(images), exact)
    torch.testing.assert_close(for_prediction(module)(images), exact, rtol=1e-5, atol=1e-6)
