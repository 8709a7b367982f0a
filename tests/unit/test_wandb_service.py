"""What is asked of W&B, and for how long."""

import os
import threading

import pytest

from skindist.tracking.wandb_service import time_limit, wandb_mode


@pytest.mark.parametrize(
    ("asked", "variable", "key", "mode"),
    [
        ("auto", "", "", "offline"),
        ("auto", "", "k" * 40, "online"),
        ("auto", "offline", "k" * 40, "offline"),
        ("auto", "dryrun", "k" * 40, "offline"),
        ("auto", "online", "", "online"),
        ("auto", "disabled", "k" * 40, "disabled"),
        ("online", "offline", "", "online"),
        ("disabled", "online", "k" * 40, "disabled"),
    ],
)
def test_the_flag_then_the_variable_then_the_key_decide(
    monkeypatch: pytest.MonkeyPatch, asked: str, variable: str, key: str, mode: str
) -> None:
    for name, value in (("WANDB_MODE", variable), ("WANDB_API_KEY", key), ("NETRC", os.devnull)):
        monkeypatch.setenv(name, value)
    assert wandb_mode(asked) == mode


def test_a_time_limit_says_that_it_is_over() -> None:
    waiting = threading.Event()
    with pytest.raises(TimeoutError, match="no answer within 0 s"), time_limit(0.01):
        waiting.wait(0.1)


def test_within_the_time_limit_errors_are_what_they_were() -> None:
    with pytest.raises(KeyError, match="mine"), time_limit(60):
        raise KeyError("mine")
