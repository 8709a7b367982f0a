"""bfloat16 on a CPU: chosen where it is fast, and depthwise convolutions kept out of it; the mean over pixels."""

import pytest
import torch
from torch import nn

from skindist.cpu_kernels import FasterOnCPU, has_fast_bf16


@pytest.mark.parametrize(
    ("capabilities", "isa", "expected"),
    [
        ({"avx512_bf16": True}, {}, True),
        ({"amx_bf16": True}, {}, True),
        ({"avx512_bf16": True}, {"ONEDNN_MAX_CPU_ISA": "ALL"}, True),
        ({"avx512_bf16": True}, {"ONEDNN_MAX_CPU_ISA": "avx2"}, False),
        ({"avx512_bf16": False, "avx2": True}, {}, False),
    ],
)
def test_bf16_is_fast_where_the_cpu_has_it_and_onednn_may_use_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], isa: dict[str, str], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_fast_bf16(isa) is expected


def test_a_torch_that_does_not_say_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not has_fast_bf16({})


def test_depthwise_convolutions_are_computed_in_float32_and_no_others() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 4, 8, 8, requires_grad=True)
    depthwise, full = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with FasterOnCPU():
            found, other = depthwise(images), full(images)
        assert torch.equal(other, full(images)), "in bfloat16, as without it"
    assert found.dtype == other.dtype == torch.bfloat16
    assert torch.equal(found, depthwise(images).bfloat16()), "exact in float32, then rounded once"
    found.float().sum().backward()
    weight = depthwise.weight.grad
    assert weight is not None
    summed = images.unfold(2, 6, 1).unfold(3, 6, 1).sum(dim=(0, 4, 5))  # of all places that a weight meets
    torch.testing.assert_close(weight[:, 0], summed)


def test_float32_stays_what_it_is() -> None:
    images, depthwise = torch.randn(2, 4, 8, 8), nn.Conv2d(4, 4, 3, groups=4)
    with FasterOnCPU():
        found = depthwise(images)
    assert torch.equal(found, depthwise(images))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_mean_over_pixels_gives_each_its_share(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.randint(-8, 8, (2, 3, 4, 2)).to(precision, memory_format=torch.channels_last)
    images_BCHW, weights_BC11 = values.requires_grad_(), torch.tensor([[1.0, 2, 3], [4, 5, 6]])[:, :, None, None]
    with FasterOnCPU():
        mean_BC11 = images_BCHW.mean((2, 3), keepdim=True)
    assert mean_BC11.dtype == precision
    assert torch.equal(mean_BC11, (images_BCHW.sum((2, 3), keepdim=True) / 8))
    torch.autograd.backward(((images_BCHW + mean_BC11) * weights_BC11).sum())  # two ways back that meet
    assert images_BCHW.grad is not None
    assert torch.equal(images_BCHW.grad, (2 * weights_BC11).expand(2, 3, 4, 2).to(precision))
