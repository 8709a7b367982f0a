"""The command line: defaults, precedence, and what is said about a mistake."""

from pathlib import Path

import pytest
import yaml

from skindist.config import Config, EarlyStoppingConfig, parse_config
from skindist.errors import UserError


def test_the_defaults_are_the_reference_recipe() -> None:
    config = parse_config([])
    assert config == Config()
    assert (config.model.name, config.model.pretrained, config.data.image_size) == ("efficientnet_b0", True, 224)
    assert (config.optim.name, config.optim.rho, config.optim.eps) == ("adadelta", 0.9, 1e-6)
    assert (config.train.epochs, config.data.fractions) == (10, (0.90, 0.05, 0.05))
    assert config.early_stopping == EarlyStoppingConfig(patience=2, min_delta=0.001, monitor="val/loss")


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train: {epochs: 3, batch_size: 8}\nmodel: {name: resnet18}\n")
    config = parse_config([f"--config={file}", "--train.epochs=4"])
    assert (config.train.epochs, config.train.batch_size, config.model.name) == (4, 8, "resnet18")
    assert config.train.log_every == Config().train.log_every


def test_a_printed_config_reads_back_as_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data.fractions=[0.8,0.1,0.1]", "--optim.lr=0.5", "--data.num_workers=3"]
    with pytest.raises(SystemExit, match="0"):
        parse_config([*flags, "--print_config"])
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse_config([f"--config={file}"]) == parse_config(flags)


def test_to_dict_is_plain_yaml() -> None:
    config = Config()
    assert yaml.safe_load(yaml.safe_dump(config.to_dict())) == config.to_dict()
    assert config.to_dict()["data"]["fractions"] == [0.9, 0.05, 0.05]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.pth=x"], "--data.pth=x; nearest: --data.path"),
        (["--train.batchsize=8"], "nearest: --train.batch_size"),
        (["--train.batch=8"], "nearest: --train.batch_size"),
        (["--train.epochs=x"], "--train.epochs: expected int. Got value: x"),
        (["--data.num_workers=x"], "--data.num_workers: expected int. Got value: x"),
        (["--train.micro_batch_size=x"], "--train.micro_batch_size: expected int or Literal['auto']. Got value: x"),
        (["--train.micro_batch_size=-1"], "--train.micro_batch_size -1: must be 1 or more, or auto"),
        (["--run.timeout_minutes=0"], "--run.timeout_minutes 0.0: must be 0.5 or more"),
        (["--run.resume=maybe"], "--run.resume: expected Literal['auto', 'never', 'must']. Got value: maybe"),
        (["--config=no.yaml"], "no.yaml"),
        (["--train.epochs=0"], "--train.epochs 0: must be 1 or more"),
        (["--data.fractions=[0.5,0.2,0.2]"], "--data.fractions [0.5, 0.2, 0.2]: must be three shares"),
        (["--data.fractions=[1.0,0.0,0.0]"], "--data.fractions"),
        (["--optim.lr=.inf"], "--optim.lr inf: must be above 0"),
        (["--optim.lr=0"], "--optim.lr 0.0: must be above 0"),
        (["--optim.lr=nan"], "--optim.lr: expected float. Got value: nan"),
        (["--data.num_workers=-1"], "--data.num_workers -1"),
        (["--early_stopping.patience=0"], "--early_stopping.patience 0"),
        (["--early_stopping.monitor=val/f1"], "--early_stopping.monitor"),
        (["--optim.warmup_epochs=11"], "--optim.warmup_epochs 11.0: must be from 0 to train.epochs"),
    ],
)
def test_a_mistake_is_named_in_one_line(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_in_a_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {nme: resnet18}\n")
    with pytest.raises(UserError, match=r"nme.*nearest: --model\.name"):
        parse_config([f"--config={file}"])


@pytest.mark.parametrize(("monitor", "mode"), [("val/loss", "min"), ("val/auroc", "max"), ("val/accuracy", "max")])
def test_the_mode_follows_from_the_monitor(monitor: str, mode: str) -> None:
    config = parse_config([f"--early_stopping.monitor={monitor}"]).early_stopping
    assert (config.mode, f"val/{config.metric}") == (mode, monitor)
