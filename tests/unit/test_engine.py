"""The loop's parts on one process: accumulation, frozen BatchNorm, logging, and no waiting for the device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from skindist.config import Config, TrainConfig
from skindist.data.loading import Batch, EvalLoader
from skindist.data.transforms import IDENTITY
from skindist.distributed import group
from skindist.errors import TrainingError
from skindist.training import trainer
from skindist.training.engine import Learner, collect_window, evaluate, set_train_mode, train_step
from skindist.training.state import TrainState
from tests.distributed.jobs import head_weight, tiny_config


def learner_and_batch(*flags: str) -> tuple[Learner, Batch, Config]:
    config = tiny_config(Path("unused"), Path("unused"), *flags)
    learner = trainer.build_learner(group.join_group(), config)
    pixels = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return learner, Batch(torch.arange(12), pixels, torch.arange(12) % 2, IDENTITY.repeat(12, 1, 1)), config


def parts(batch: Batch, count: int) -> list[Batch]:
    return [Batch(*tensors) for tensors in zip(*(tensor.tensor_split(count) for tensor in batch), strict=True)]


def weights_after_a_step(count: int) -> dict[str, torch.Tensor]:
    learner, batch, config = learner_and_batch("--train.freeze_batchnorm=true")
    set_train_mode(learner.model, True)
    for step in range(2):  # the first step moves the zero head alone
        train_step(learner, parts(batch, count), 12, step, config)
    return {name: tensor.clone() for name, tensor in learner.module.state_dict().items()}


@pytest.mark.parametrize("count", [2, 5])
def test_accumulation_is_one_step_over_the_whole_batch(count: int) -> None:
    """5 parts of 12 images differ in size (3, 3, 2, 2, 2), and still make the exact mean."""
    expected = weights_after_a_step(1)
    for name, tensor in weights_after_a_step(count).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6, msg=name)


def test_a_step_reports_the_mean_loss_and_the_share_of_right_answers() -> None:
    learner, batch, config = learner_and_batch()
    set_train_mode(learner.model, False)
    loss, right, gradient = train_step(learner, parts(batch, 3), 12, 0, config).tolist()
    assert loss == pytest.approx(0.693147, abs=1e-5), "a zero head knows nothing: ln 2"
    assert right == pytest.approx(0.5), "and says benign to all, half of them rightly"
    assert 0 < gradient < 100


def test_dropout_is_a_function_of_the_step() -> None:
    def loss(step: int) -> float:
        learner, batch, config = learner_and_batch("--model.drop_rate=0.5")
        nn.init.ones_(head_weight(learner.module)).data[0] = -1
        set_train_mode(learner.model, True)
        torch.rand(step * 7)
        return train_step(learner, [batch], 12, step, config)[0].item()

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)


def test_frozen_batchnorm_keeps_its_statistics() -> None:
    learner, batch, config = learner_and_batch()
    before = {name: buffer.clone() for name, buffer in learner.module.named_buffers()}
    set_train_mode(learner.model, True)
    train_step(learner, [batch], 12, 0, config)
    assert all(torch.equal(buffer, before[name]) for name, buffer in learner.module.named_buffers())
    set_train_mode(learner.model, False)
    train_step(learner, [batch], 12, 1, config)
    assert not all(torch.equal(buffer, before[name]) for name, buffer in learner.module.named_buffers())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_bad_step_of_a_window_is_named(bad: float) -> None:
    learner, _, _ = learner_and_batch()
    learner.pending.extend(torch.tensor([loss, 0.5, 0.1]) for loss in (0.75, 0.5))
    state = TrainState(global_step=95)
    collect_window(learner, state, TrainConfig())
    assert state.window == [[0.75, 0.5], [0.5, 0.5]]
    steps = [(0.6, 0.1), (0.5, 0.1), (bad, 0.1), (0.4, 0.1), (0.4, bad)]
    learner.pending.extend(torch.tensor([loss, 0.5, gradient]) for loss, gradient in steps)
    state.global_step = 100
    with pytest.raises(TrainingError, match=f"the training loss is {bad} at step 98:"):
        collect_window(learner, state, TrainConfig())


def test_bad_steps_are_left_out_up_to_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    learner, _, _ = learner_and_batch()
    nan = float("nan")
    learner.pending.extend(torch.tensor(step) for step in ([0.5, 0.5, 1.0], [nan, 0.5, 1.0], [0.25, 1.0, nan]))
    state, train = TrainState(global_step=13, skipped=[4]), TrainConfig(non_finite="skip", max_skipped=3)
    collect_window(learner, state, train)
    assert state.window == [[0.5, 0.5]]
    assert state.skipped == [4, 12, 13]
    assert "step 13 is skipped: the gradient is nan (3 of at most 3)" in caplog.text
    learner.pending.append(torch.tensor([nan, 0.5, 1.0]))
    state.global_step = 20
    with pytest.raises(TrainingError, match="at step 20, after 3 skipped steps: lower"):
        collect_window(learner, state, train)


def test_a_skipped_step_changes_nothing() -> None:
    """One image of infinite brightness spoils the loss, all gradients and BatchNorm's statistics."""
    learner, batch, config = learner_and_batch("--train.non_finite=skip")
    set_train_mode(learner.model, False)
    train_step(learner, [batch], 12, 0, config)
    before = snapshot(learner)
    spoilt = batch._replace(colours_B2C=batch.colours_B2C.clone())
    spoilt.colours_B2C[7] = float("inf")
    assert not train_step(learner, [spoilt], 12, 1, config).isfinite().all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(learner).items())
    assert train_step(learner, [batch], 12, 2, config).isfinite().all()
    assert not all(torch.equal(tensor, before[name]) for name, tensor in snapshot(learner).items())


def snapshot(learner: Learner) -> dict[str, torch.Tensor]:
    """Copies of all weights, float statistics and moments."""
    tensors = {name: tensor for name, tensor in learner.module.state_dict().items() if tensor.is_floating_point()}
    for parameter, moments in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"{parameter}.{name}": value for name, value in moments.items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_an_image_that_is_missing_or_comes_twice_is_an_error() -> None:
    learner, batch, _ = learner_and_batch()
    once: Any = [batch]
    twice: Any = [batch, batch]
    assert evaluate(learner, EvalLoader("val", list(range(12)), once)).ids.tolist() == list(range(12))
    for wrong in (list(range(13)), list(range(11))):
        with pytest.raises(RuntimeError, match="val: 12 predictions of 12 images, not"):
            evaluate(learner, EvalLoader("val", wrong, once))
    with pytest.raises(RuntimeError, match="val: 24 predictions of 12 images"):
        evaluate(learner, EvalLoader("val", list(range(12)), twice))


def test_predictions_carry_the_difference_of_the_logits_exactly() -> None:
    learner, batch, _ = learner_and_batch()
    nn.init.normal_(head_weight(learner.module))
    split: Any = [batch]
    found = evaluate(learner, EvalLoader("val", list(range(12)), split))
    with torch.inference_mode():
        logits_BK = learner.module.eval()(learner.to_device(batch)[0]).double()
    assert found.logits.tolist() == (logits_BK[:, 1] - logits_BK[:, 0]).tolist()
    assert len(set(found.logits.tolist())) == 12
    assert found.probabilities.tolist() == pytest.approx(logits_BK.softmax(dim=1)[:, 1].tolist(), rel=1e-14)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_does_not_wait_for_the_device() -> None:
    learner, batch, config = learner_and_batch()
    set_train_mode(learner.model, False)
    pinned = Batch(*(tensor.pin_memory() for tensor in batch))
    train_step(learner, [pinned], 12, 0, config)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(learner, [pinned], 12, 1, config)
    finally:
        torch.cuda.set_sync_debug_mode("default")
