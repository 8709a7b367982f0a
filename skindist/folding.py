"""A copy of a model that does nothing but predict: always in float32, and faster than the model that learns."""

import copy
from collections import defaultdict

from timm.layers import BatchNormAct2d, Conv2dSame
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

CONVOLUTIONS, NORMS = (nn.Conv2d, Conv2dSame), (nn.BatchNorm2d, BatchNormAct2d)  # no others: a heir may do more


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in CONVOLUTIONS + NORMS or super().is_leaf_module(module, name)


def for_prediction(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode and float32, in which BatchNorm is part of the convolution before it.

    BatchNorm scales and shifts what a convolution gives, so the scaled weights and a bias do the same work in one
    (Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference", CVPR
    2018, section 3.2). Its outputs are the same up to rounding.
    """
    copied = copy.deepcopy(module).eval()
    copied.__dict__.pop("forward", None)  # Accelerate's, which would compute in the precision of training
    for convolution, norm in folding_pairs(copied):
        before, after = copied.get_submodule(convolution), copied.get_submodule(norm)
        assert isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d)
        mean, variance = after.running_mean, after.running_var
        assert mean is not None and variance is not None
        before.weight, before.bias = fuse_conv_bn_weights(
            before.weight, before.bias, mean, variance, after.eps, after.weight, after.bias
        )
        left = nn.Sequential(after.drop, after.act) if isinstance(after, BatchNormAct2d) else nn.Identity()
        copied.set_submodule(norm, left)
    return copied


def folding_pairs(module: nn.Module) -> list[tuple[str, str]]:
    """The names of each convolution whose output goes into one BatchNorm and nowhere else, and of that BatchNorm.

    None for a model whose way depends on its input, so that it cannot be traced.
    """
    try:
        graph = _Tracer().trace(module)
    except Exception:  # fx raises of many kinds; such a model predicts as it is
        return []
    modules = dict(module.named_modules())
    follow: dict[str, set[str | None]] = defaultdict(set)
    precede: dict[str, set[str | None]] = defaultdict(set)
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        if type(modules[node.target]) in CONVOLUTIONS:
            follow[node.target] |= {user.target if user.op == "call_module" else None for user in node.users}
        if type(modules[node.target]) in NORMS and modules[node.target].running_mean is not None:
            source = node.args[0]
            precede[node.target].add(source.target if source.op == "call_module" else None)
    return [
        (convolution, norm)
        for norm, sources in precede.items()
        for convolution in sources
        if convolution and len(sources) == 1 and follow.get(convolution) == {norm}
    ]
