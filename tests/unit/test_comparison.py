"""What differs in two checkpoints, by name and by how much: bits count, measured times do not."""

from pathlib import Path

import pytest
import torch

from skindist.run.checkpoint import Checkpoint, save_checkpoint
from skindist.run.comparison import differences


def checkpoint(bias: torch.Tensor | None, **state: object) -> Checkpoint:
    weights = {"weight": torch.zeros(2, 3), "count": torch.tensor(7)} | ({} if bias is None else {"bias": bias})
    train = {"global_step": 1, "train_seconds": 1.5, "window": [[0.5, 1.0]]} | state
    optimizer = {"state": {0: {"square_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    return Checkpoint(weights, optimizer, {"train": train, "environment": {"processes": 2}}, torch.zeros(2, 4))


BIAS = torch.tensor([1.0, 2.0])
EXAMPLES = [
    (checkpoint(BIAS, train_seconds=9.0), {}),
    (checkpoint(BIAS + torch.tensor([0.25, -0.5])), {"model.safetensors, bias": "largest difference 0.5"}),
    (checkpoint(BIAS.half()), {"model.safetensors, bias": "torch.float32 and torch.float16"}),
    (checkpoint(BIAS[None]), {"model.safetensors, bias": "shapes (2,) and (1, 2)"}),
    (checkpoint(None), {"model.safetensors, bias": "only in the whole run"}),
    (checkpoint(BIAS, global_step=2), {"state.json, train.global_step": "1 and 2"}),
    (
        checkpoint(BIAS, window=[[0.5, 1.0], [0.25, 1.0]]),
        {
            "state.json, train.window.1.0": "only in the cut run",
            "state.json, train.window.1.1": "only in the cut run",
        },
    ),
]


@pytest.mark.parametrize(("other", "expected"), EXAMPLES)
def test_differences_are_named(tmp_path: Path, other: Checkpoint, expected: dict[str, str]) -> None:
    """But not the time that training took, nor the random name of the W&B run."""
    save_checkpoint(tmp_path / "whole", checkpoint(BIAS))
    save_checkpoint(tmp_path / "cut", other)
    assert differences(tmp_path / "whole", tmp_path / "cut") == expected


def test_the_sign_of_zero_and_nan_count_by_their_bits(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", checkpoint(torch.tensor([0.0, torch.nan])))
    save_checkpoint(tmp_path / "b", checkpoint(torch.tensor([-0.0, torch.nan])))
    assert differences(tmp_path / "a", tmp_path / "a") == {}
    assert list(differences(tmp_path / "a", tmp_path / "b")) == ["model.safetensors, bias"]
