"""The loop's parts on one process: accumulation, frozen BatchNorm, logging, and no waiting for the device."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from skindist.config import Config
from skindist.data.loading import Batch, EvalLoader
from skindist.data.transforms import IDENTITY, turned
from skindist.distributed import group
from skindist.errors import OutOfMemory, TrainingError
from skindist.folding import for_prediction
from skindist.prediction.evaluate import evaluate
from skindist.prediction.predictor import Predictor
from skindist.recipe import TrainConfig
from skindist.training import trainer
from skindist.training.engine import collect_window, set_train_mode, train_step
from skindist.training.learner import Learner
from skindist.training.state import TrainState
from tests.gpu.jobs import NoAnswer
from tests.helpers.jobs import head_weight, tiny_config


def learner_and_batch(*flags: str, scaler: torch.amp.GradScaler | None = None) -> tuple[Learner, Batch, Config]:
    config, accelerator = tiny_config(Path("unused"), Path("unused"), *flags), group.join_group()
    accelerator.scaler = scaler  # as Accelerate sets one for fp16, on a GPU only
    learner = trainer.build_learner(accelerator, config)
    pixels = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return learner, Batch(torch.arange(12), pixels, torch.arange(12) % 2, IDENTITY.repeat(12, 1, 1)), config


def parts(batch: Batch, count: int) -> list[Batch]:
    return [Batch(*tensors) for tensors in zip(*(tensor.tensor_split(count) for tensor in batch), strict=True)]


def weights_after_a_step(count: int, folds: bool = True) -> dict[str, torch.Tensor]:
    learner, batch, config = learner_and_batch("--train.freeze_batchnorm=true")
    if not folds:
        learner.pairs = ()
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


def test_batchnorm_that_keeps_its_statistics_is_folded_which_changes_no_more_than_rounding() -> None:
    assert learner_and_batch("--train.freeze_batchnorm=true")[0].pairs
    assert not learner_and_batch("--train.freeze_batchnorm=false")[0].pairs, "this BatchNorm sees each batch"
    expected = weights_after_a_step(1, folds=False)
    for name, tensor in weights_after_a_step(1).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6, msg=name)


def test_a_step_reports_the_mean_loss_and_the_share_of_right_answers() -> None:
    learner, batch, config = learner_and_batch()
    set_train_mode(learner.model, False)
    loss, right, gradient = train_step(learner, parts(batch, 3), 12, 0, config).tolist()
    assert loss == pytest.approx(0.693147, abs=1e-5), "a zero head knows nothing: ln 2"
    assert right == pytest.approx(0.5), "and says benign to all, half of them rightly"
    assert 0 < gradient < 100


def test_smoothed_labels_are_those_of_both_classes() -> None:
    learner, batch, config = learner_and_batch("--train.label_smoothing=0.2")
    set_train_mode(learner.model, False)
    nn.init.zeros_(head_weight(learner.module))
    head: Any = learner.module.get_classifier()  # type: ignore[operator]
    head.bias.data = torch.tensor([0.0, 2.0])
    loss = train_step(learner, parts(batch._replace(labels_B=torch.ones_like(batch.labels_B)), 3), 12, 0, config)[0]
    surely, hardly = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert loss.item() == pytest.approx(0.9 * surely + 0.1 * hardly, abs=1e-5)


def test_dropout_is_a_function_of_the_step_and_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(step: int, rank: int = 0) -> float:
        learner, batch, config = learner_and_batch("--model.drop_rate=0.5")
        monkeypatch.setattr(type(learner.accelerator), "process_index", rank)
        nn.init.ones_(head_weight(learner.module)).data[0] = -1
        set_train_mode(learner.model, True)
        torch.rand(step * 7)
        return train_step(learner, [batch], 12, step, config)[0].item()

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)
    assert loss(3) != loss(3, rank=1)


def test_frozen_batchnorm_keeps_its_statistics() -> None:
    learner, batch, config = learner_and_batch()
    before = {name: buffer.clone() for name, buffer in learner.module.named_buffers()}
    set_train_mode(learner.model, True)
    train_step(learner, [batch], 12, 0, config)
    assert all(torch.equal(buffer, before[name]) for name, buffer in learner.module.named_buffers())
    set_train_mode(learner.model, False)
    train_step(learner, [batch], 12, 1, config)
    assert not all(torch.equal(buffer, before[name]) for name, buffer in learner.module.named_buffers())


def test_a_frozen_backbone_keeps_all_but_the_head(tmp_path: Path) -> None:
    """A linear probe, with the average of the weights; BatchNorm keeps its statistics, too."""
    torch.manual_seed(1)
    trained = timm.create_model("test_resnet", num_classes=10)
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    learner, batch, config = learner_and_batch(
        "--train.freeze_backbone=true", f"--model.weights={tmp_path / 'w.safetensors'}", "--train.ema=0.9"
    )
    head = {"fc.weight", "fc.bias"}
    set_train_mode(learner.model, config.keeps_statistics)
    for step in range(2):
        train_step(learner, parts(batch, 2), 12, step, config)
    assert all(parameter.requires_grad == (name in head) for name, parameter in learner.module.named_parameters())
    for module in (learner.module, learner.judged):
        now = module.state_dict()
        changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, now[name])}
        assert changed - head == set()
        assert now["fc.weight"].abs().max() > 0


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
    nn.init.normal_(head_weight(learner.judged))
    split: Any = [batch]
    found = evaluate(learner, EvalLoader("val", list(range(12)), split))
    with torch.inference_mode():
        logits_BK = for_prediction(learner.judged)(learner.to_device(batch)[0]).double()
    assert found.logits.tolist() == (logits_BK[:, 1] - logits_BK[:, 0]).tolist()
    assert len(set(found.logits.tolist())) == 12
    assert found.probabilities.tolist() == pytest.approx(logits_BK.softmax(dim=1)[:, 1].tolist(), rel=1e-14)


def take_steps_in_fp16(
    steps: int, spoilt: set[int], state: TrainState, *flags: str
) -> tuple[Learner, Exception | None]:
    """Take steps as fp16 does, each a window; in those of `spoilt`, from 1, a gradient is NaN but not the loss."""
    learner, batch, config = learner_and_batch(*flags, scaler=torch.amp.GradScaler("cpu"))
    weight = next(learner.module.parameters())
    spoil = lambda gradient: gradient * (math.nan if state.global_step + 1 in spoilt else 1.0)  # noqa: E731
    weight.register_hook(spoil)  # type: ignore[no-untyped-call]
    set_train_mode(learner.model, False)
    for _ in range(steps):
        learner.pending.append(train_step(learner, [batch], 12, state.global_step, config))
        state.global_step += 1
        try:
            collect_window(learner, state, config.train)
        except TrainingError as error:
            return learner, error
    return learner, None


def test_fp16_that_overflows_at_every_scale_ends_the_run() -> None:
    state = TrainState()
    learner, error = take_steps_in_fp16(40, set(range(2, 41)), state)
    assert "overflows in fp16 at step 18, after 16 skipped steps: lower --optim.lr, train without fp16" in str(error)
    assert "bf16" in str(error)
    assert learner.accelerator.scaler.get_scale() == 0.5, "halved 17 times from 2**16"
    assert (state.overflowed, state.skipped) == (list(range(2, 18)), [18])


def test_fp16_may_search_for_its_scale(caplog: pytest.LogCaptureFixture) -> None:
    state = TrainState()
    learner, error = take_steps_in_fp16(9, {1, 2, 3, 6}, state)
    assert error is None
    assert (state.overflowed, state.skipped, len(state.window)) == ([1, 2, 3, 6], [], 9)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert learner.accelerator.scaler.get_scale() == 2.0**12
    state = TrainState(global_step=1999, overflowed=list(range(100, 116)))  # in 2,000 steps it tries twice the scale
    assert take_steps_in_fp16(1, {2000}, state)[1] is None
    assert "at step 2001, after 17 skipped steps" in str(take_steps_in_fp16(1, {2001}, state)[1])


def test_a_step_that_overflows_changes_neither_weights_nor_their_average() -> None:
    two, three = (take_steps_in_fp16(steps, {3}, TrainState())[0] for steps in (2, 3))
    for name in ("module", "judged"):
        before, after = (getattr(learner, name).parameters() for learner in (two, three))
        assert all(torch.equal(*pair) for pair in zip(before, after, strict=True)), name
    assert not torch.equal(head_weight(two.module), head_weight(two.judged))


def test_overflows_beyond_that_obey_the_flags_for_bad_steps(caplog: pytest.LogCaptureFixture) -> None:
    state = TrainState(global_step=90, overflowed=list(range(1, 17)))  # as restored from a checkpoint
    flags = ("--train.non_finite=skip", "--train.max_skipped=2")
    _, error = take_steps_in_fp16(9, {91, 93, 96}, state, *flags)
    assert "step 93 is skipped: the gradient overflows in fp16 (2 of at most 2)" in caplog.text
    assert "overflows in fp16 at step 96, after 18 skipped steps" in str(error)


class Copied:
    """A tensor that notes whether it was copied to the device without waiting."""

    def __init__(self, pinned: bool) -> None:
        self.pinned = pinned
        self.waits: bool | None = None

    def is_pinned(self) -> bool:
        return self.pinned

    def to(self, device: torch.device, non_blocking: bool) -> "Copied":
        self.waits = not non_blocking
        return self

    def contiguous(self, memory_format: torch.memory_format) -> "Copied":
        return self


@pytest.mark.parametrize(
    ("device", "pinned", "waits"), [("cuda", True, False), ("cuda", False, True), ("mps", True, True)]
)
def test_only_a_copy_from_pinned_memory_to_cuda_does_not_wait(device: str, pinned: bool, waits: bool) -> None:
    """On MPS, one that does not wait may copy what is not there any more (pytorch#189690)."""
    tensors = [Copied(pinned) for _ in range(4)]
    accelerator: Any = SimpleNamespace(device=torch.device(device))
    predictor = Predictor(accelerator, nn.Identity(), lambda images, colours: images)
    predictor.to_device(Batch(*tensors))  # type: ignore[arg-type]
    assert [tensor.waits for tensor in tensors[1:]] == [waits] * 3


@pytest.mark.parametrize("flags", [(), ("--model.drop_rate=0.5", "--model.drop_path_rate=0.5")])
def test_a_step_reads_nothing_from_the_device(flags: tuple[str, ...]) -> None:
    """tests/gpu shows the same on a GPU."""
    learner, batch, config = learner_and_batch(*flags)
    set_train_mode(learner.model, False)
    train_step(learner, [batch], 12, 0, config)
    with NoAnswer():  # type: ignore[no-untyped-call]
        learner.pending.append(train_step(learner, parts(batch, 2), 12, 1, config))
    with pytest.raises(AssertionError, match="waits for aten"), NoAnswer():  # type: ignore[no-untyped-call]
        learner.pending[0][0].item()


def test_an_evaluation_without_memory_says_what_to_lower() -> None:
    learner, batch, _ = learner_and_batch()

    def refuse(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    learner.judged.register_forward_pre_hook(refuse)
    one: Any = [batch]
    with pytest.raises(OutOfMemory, match=r"with 12 images at a time: .* a smaller --train\.eval_batch_size"):
        evaluate(learner, EvalLoader("val", list(range(12)), one))


def test_the_rehearsal_tries_what_training_and_evaluation_will_hold() -> None:
    """40 images fit in a forward pass alone and 5 with a backward pass: 12 a step become 3 at a time, 64 become 32."""
    learner, _, config = learner_and_batch("--train.micro_batch_size=auto")
    tried: dict[bool, list[int]] = {True: [], False: []}

    def room(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        training = torch.is_grad_enabled()
        tried[training].append(len(args[0]))
        if len(args[0]) > (5 if training else 40):
            raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED")

    for module in learner.models:
        module.register_forward_pre_hook(room)
    found = trainer.settle_memory(learner, config, 24).train
    assert tried == {True: [12, 6, 3], False: [64, 32]}
    assert (found.micro_batch_size, found.eval_batch_size) == (3, 32)


@pytest.mark.parametrize(("images", "said"), [(12, []), (7, ["--train.batch_size 12: there are 7 training images"])])
def test_a_batch_larger_than_the_training_set_is_mentioned(
    caplog: pytest.LogCaptureFixture, images: int, said: list[str]
) -> None:
    learner, _, config = learner_and_batch()
    with caplog.at_level(logging.INFO, "skindist"):
        trainer.settle_memory(learner, config, images)
    assert [message.partition(",")[0] for message in caplog.messages if "batch_size" in message] == said


def test_the_views_of_an_image_are_its_eight_positions_and_their_logits_are_averaged() -> None:
    corner = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2)
    seen = [turned(corner, number).flatten().tolist() for number in range(8)]
    assert seen == [
        [0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0],
        [0, 2, 1, 3], [1, 3, 0, 2], [2, 0, 3, 1], [3, 1, 2, 0],
    ]  # fmt: skip
    learner, batch, _ = learner_and_batch()
    nn.init.normal_(head_weight(learner.judged))
    split: Any = [batch]
    learner.views = 2
    found = evaluate(learner, EvalLoader("val", list(range(12)), split))
    with torch.inference_mode():
        images_BCHW = learner.to_device(batch)[0]
        one, other = (learner.judged(images).double() for images in (images_BCHW, images_BCHW.flip(3)))
    expected = ((one + other)[:, 1] - (one + other)[:, 0]) / 2
    assert found.logits.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)


def test_the_average_follows_the_weights_and_is_what_is_judged() -> None:
    """It begins with the weights after the first step; of the second, its decay is 1 / (1 + 3)."""
    learner, batch, config = learner_and_batch()
    assert learner.average is not None
    train_step(learner, [batch], 12, 0, config)
    first = {name: tensor.clone() for name, tensor in learner.module.named_parameters()}
    averaged = dict(learner.average.module.named_parameters())
    for name, now in first.items():
        torch.testing.assert_close(averaged[name], now)
    train_step(learner, [batch], 12, 1, config)
    for name, now in learner.module.named_parameters():
        torch.testing.assert_close(averaged[name], 0.25 * first[name] + 0.75 * now)
    assert learner.judged is learner.average.module
