"""bfloat16 on a CPU: chosen where it is fast, and depthwise convolutions kept out of it."""

import pytest
import torch
from torch import nn

from skindist.precision import DepthwiseInFloat32, has_fast_bf16


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
        with DepthwiseInFloat32():
            found, other = depthwise(images), full(images)
        assert torch.equal(other, full(images)), "in bfloat16, as without it"
    assert found.dtype == other.dtype == torch.bfloat16
    assert torch.equal(found, depthwise(images).bfloat16()), "exact in float32, then rounded once"
    found.float().sum().backward()
    weight = depthwise.weight.grad
    assert weight is not None
    summed = images.unfold(2, 6, 1).unfold(3, 6, 1).sum(dim=(0, 4, 5))  # of all places that a weight meets
    torch.testing.assert_close(weight[:, 0], summed)
