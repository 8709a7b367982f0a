"""Weights of classes: their size, the loss they make, and that probabilities keep the true shares."""

import math

import pytest
import torch

from skindist.training.loss import class_weights, summed_loss

LABELS = [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("power", "weights"), [(1.0, [2 / 3, 2.0]), (0.5, [4 / (3 + math.sqrt(3)), 4 / (1 + math.sqrt(3))])]
)
def test_weights_follow_from_the_shares(power: float, weights: list[float]) -> None:
    """Shares of 3/4 and 1/4; the mean over the four images is 1."""
    found = class_weights(LABELS, power)
    assert found is not None
    assert found.tolist() == pytest.approx(weights, rel=1e-6)
    assert found[LABELS].mean().item() == pytest.approx(1)


def test_no_weights_are_the_plain_cross_entropy() -> None:
    assert class_weights(LABELS, 0) is None
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    assert summed_loss(logits, torch.tensor([0, 1]), 0.0).item() == pytest.approx(math.log(2) + math.log(4 / 3))


def test_weights_count_in_the_loss_and_in_the_logits() -> None:
    """With weights 2/3 and 2, logits of zero say 1/4 and 3/4."""
    weights, none = class_weights(LABELS, 1.0), torch.zeros(1, 2)
    assert summed_loss(none, torch.tensor([1]), 0.0, weights).item() == pytest.approx(2 * math.log(4 / 3))
    assert summed_loss(none, torch.tensor([0]), 0.0, weights).item() == pytest.approx(2 / 3 * math.log(4))
    smoothed = 2 * (0.9 * math.log(4 / 3) + 0.1 * math.log(4))
    assert summed_loss(none, torch.tensor([1]), 0.2, weights).item() == pytest.approx(smoothed)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_what_is_learnt_are_the_true_shares(power: float) -> None:
    """A model that knows nothing of an image but the classes' shares ends at 1/4, with any weights."""
    bias = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=50, line_search_fn="strong_wolfe")
    labels, weights = torch.tensor(LABELS), class_weights(LABELS, power)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = summed_loss(bias.expand(4, 2), labels, 0.0, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    assert bias.softmax(0)[1].item() == pytest.approx(0.25, abs=1e-4)
