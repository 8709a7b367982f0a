"""What is asked of W&B, and for how long."""

import os
import threading

import pytest

from skindist.config import Config, TrackingConfig
from skindist.recipe import ModelConfig
from skindist.tracking.wandb_service import names_there, time_limit, wandb_mode


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
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    for name, value in (("WANDB_MODE", variable), ("WANDB_API_KEY", key), ("NETRC", os.devnull)):
        monkeypatch.setenv(name, value)
    assert wandb_mode(asked) == mode


@pytest.mark.parametrize(
    ("asked", "variable", "mode"),
    [
        ("auto", "true", "disabled"),
        ("auto", "1", "disabled"),
        ("auto", "false", "online"),
        ("auto", "", "online"),
        ("offline", "true", "offline"),
    ],
)
def test_a_true_variable_disables(monkeypatch: pytest.MonkeyPatch, asked: str, variable: str, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_DISABLED", variable)
    assert wandb_mode(asked) == mode


@pytest.mark.parametrize(
    ("tracking", "variables", "names"),
    [
        (TrackingConfig(), ("", ""), ("skindist", "vit-1a")),
        (TrackingConfig(), ("moles", "first"), ("moles", "first")),
        (TrackingConfig(project="mine", name="second"), ("moles", "first"), ("mine", "second")),
    ],
)
def test_the_config_then_the_variables_name_a_run(
    monkeypatch: pytest.MonkeyPatch, tracking: TrackingConfig, variables: tuple[str, str], names: tuple[str, str]
) -> None:
    for name, value in zip(("WANDB_PROJECT", "WANDB_NAME"), variables, strict=True):
        monkeypatch.setenv(name, value)
    assert names_there(Config(model=ModelConfig("vit"), tracking=tracking), "1a") == names


def test_a_time_limit_says_that_it_is_over() -> None:
    waiting = threading.Event()
    with pytest.raises(TimeoutError, match="no answer within 0 s"), time_limit(0.01):
        waiting.wait(0.1)


def test_within_the_time_limit_errors_are_what_they_were() -> None:
    with pytest.raises(KeyError, match="mine"), time_limit(60):
        raise KeyError("mine")
