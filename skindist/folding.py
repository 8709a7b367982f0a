"""BatchNorm as part of the convolution before it: in a copy of a model that does nothing but predict, and in a model
that learns while it keeps the statistics.

BatchNorm scales and shifts what a convolution gives, so the scaled weights and a bias do the same work in one (Jacob et
al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference", CVPR 2018, section
3.2). The outputs are the same up to rounding.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, fx, nn

CONVOLUTIONS, NORMS = (nn.Conv2d, Conv2dSame), (nn.BatchNorm2d, BatchNormAct2d)  # no others: a heir may do more
Pairs = Sequence[tuple[nn.Conv2d, nn.BatchNorm2d]]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in CONVOLUTIONS + NORMS or super().is_leaf_module(module, name)


def for_prediction(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode and float32, in which BatchNorm is part of the convolution before it."""
    copied = copy.deepcopy(module).eval()
    copied.__dict__.pop("forward", None)  # Accelerate's, which would compute in the precision of training
    for convolution, name in folding_pairs(copied):
        before, norm = copied.get_submodule(convolution), copied.get_submodule(name)
        assert isinstance(before, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        ((weight, bias),) = folded_weights([(before, norm)])
        before.weight, before.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        copied.set_submodule(name, what_is_left(norm))
    return copied


@contextmanager
def folded(pairs: Pairs) -> Iterator[None]:
    """Inside it, these convolutions do the work of those BatchNorms that keep their statistics. Gradients go to the
    weights of both, as ever; what is computed again in the backward pass (gradient checkpointing) must be so inside."""
    pairs = [pair for pair in pairs if not pair[1].training]
    try:
        for (convolution, norm), (weight, bias) in zip(pairs, folded_weights(pairs), strict=True):
            vars(convolution).update(weight=weight, bias=bias)  # found before the parameters, which stay
            vars(norm)["forward"] = what_is_left(norm)
        yield
    finally:
        for convolution, norm in pairs:
            for module, name in ((convolution, "weight"), (convolution, "bias"), (norm, "forward")):
                vars(module).pop(name, None)


def folded_weights(pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
    """The weight (O, I, H, W) and bias (O,) with which each convolution does the work of both.

    Vectors of all pairs are joined, as a GPU takes as long for a short one as for a long one.
    """
    if not pairs:
        return []
    convolutions, norms = zip(*pairs, strict=True)
    sizes = [norm.num_features for norm in norms]
    variances = torch._foreach_add([norm.running_var for norm in norms], [norm.eps for norm in norms])
    per_deviation = torch.cat(variances).rsqrt()
    zero, one = per_deviation.new_zeros(()), per_deviation.new_ones(())

    def joined(layers: Sequence[nn.Module], name: str, missing: Tensor) -> Tensor:
        found = [getattr(layer, name) for layer in layers]
        return torch.cat([missing.expand(n) if each is None else each for each, n in zip(found, sizes, strict=True)])

    gain, offset = joined(norms, "weight", one), joined(norms, "bias", zero)
    shift = joined(convolutions, "bias", zero) - joined(norms, "running_mean", zero)
    factors = (gain * per_deviation).split_with_sizes(sizes)
    biases = (shift * per_deviation * gain + offset).split_with_sizes(sizes)
    return [
        (convolution.weight * factor_O[:, None, None, None], bias_O)
        for convolution, factor_O, bias_O in zip(convolutions, factors, biases, strict=True)
    ]


def what_is_left(norm: nn.BatchNorm2d) -> nn.Module:
    """What a BatchNorm does beside its own work."""
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()


def folding_pairs(module: nn.Module) -> list[tuple[str, str]]:
    """The names of each convolution whose output goes into one BatchNorm and nowhere else, and of that BatchNorm; of
    those that a forward pass calls once. Give it a copy: tracing leaves things in some models.

    None for a model whose way depends on its input, so that it cannot be traced.
    """
    try:
        graph = _Tracer().trace(module)
    except Exception:  # fx raises of many kinds; such a model predicts as it is
        return []
    modules = dict(module.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    read = {node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}  # not by its own pass
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or type(modules[node.target]) not in NORMS:
            continue
        source = (*node.args, *node.kwargs.values())[0]
        if (
            modules[node.target].running_mean is not None
            and source.op == "call_module"
            and type(modules[source.target]) in CONVOLUTIONS
            and list(source.users) == [node]
            and calls[source.target] == calls[node.target] == 1
            and source.target not in read
        ):
            pairs.append((source.target, node.target))
    return pairs


def pairs_to_fold(module: nn.Module) -> Pairs:
    """These convolutions, each with its BatchNorm."""
    pairs: Any = [tuple(map(module.get_submodule, names)) for names in folding_pairs(copy.deepcopy(module))]
    return tuple(pairs)
