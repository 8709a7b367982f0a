"""The config: what its fields say of themselves. Its command line: defaults, precedence, what is said of a mistake."""

import math
import re
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from skindist.cli import main
from skindist.config import Config, RunConfig, changes, marked
from skindist.errors import UserError
from skindist.parsing import parse_config
from skindist.recipe import DataConfig, EarlyStoppingConfig, ModelConfig, OptimConfig, TrainConfig
from skindist.report import curves
from skindist.section import Section, setting

OUT_OF_RANGE: dict[str, tuple[Any, str]] = {
    "data.max_bad": (1.1, "from 0 to 1"),
    "data.fold": (-1, "0 or more, or null"),
    "data.folds": (1, "2 or more"),
    "data.fractions": ([0.5, 0.2, 0.2], "three shares above 0 that add up to 1"),
    "data.image_size": (31, "from 32 to 4096 pixels"),
    "data.num_workers": (-1, "from 0 to 1000"),
    "model.drop_rate": (1.0, "from 0 to below 1"),
    "model.drop_path_rate": (-0.1, "from 0 to below 1"),
    "optim.lr": (0.0, "above 0 and at most 1000"),
    "optim.rho": (1.0, "from 0 to below 1"),
    "optim.eps": (0.0, "above 0 and at most 1000, or null"),
    "optim.layer_decay": (0.0, "above 0 and at most 1"),
    "optim.head_lr_factor": (0.0, "above 0 and at most 1000, or null"),
    "early_stopping.first_epoch": (0, "1 or more, or null"),
    "train.label_smoothing": (1.0, "from 0 to below 1"),
    "train.class_weights": (1.1, "from 0 to 1"),
    "optim.weight_decay": (-0.1, "from 0 to 1000"),
    "optim.warmup_epochs": (-1.0, "from 0 to train.epochs"),
    "train.epochs": (0, "1 or more"),
    "train.batch_size": (0, "1 or more"),
    "train.micro_batch_size": (0, "1 or more, or auto"),
    "train.eval_batch_size": (0, "1 or more"),
    "train.ema": (1.0, "from 0 to below 1"),
    "train.max_skipped": (-1, "0 or more"),
    "train.log_every": (0, "1 or more"),
    "early_stopping.patience": (0, "1 or more"),
    "early_stopping.min_delta": (-0.1, "0 or more"),
    "evaluation.sensitivity": (0.0, "above 0 and at most 1"),
    "evaluation.prevalence": (1.0, "above 0 and below 1, or null"),
    "evaluation.views": (9, "from 1 to 8"),
    "evaluation.explain": (101, "from 0 to 100"),
    "run.seed": (-1, "0 or more"),
    "run.timeout_minutes": (0.4, "from 0.5 to 10000"),
    "checkpoint.every_steps": (0, "1 or more, or null"),
    "checkpoint.every_minutes": (0.0, "above 0, or null"),
    "checkpoint.keep": (1, "2 or more, in case the newest is damaged"),
}
RANGED = [
    f"{name}.{key.name}" for name, part in vars(Config()).items() for key in fields(part) if key.metadata.get("holds")
]


@pytest.mark.parametrize("name", RANGED)
def test_no_number_is_infinite(name: str) -> None:
    """Saved in config.yaml, it would be refused when that file is given again."""
    section, key = name.split(".")
    with pytest.raises(UserError, match=rf"^--{section}\.{key} inf: must be "):
        replace(getattr(Config(), section), **{key: math.inf})


@pytest.mark.parametrize(
    ("flag", "digits", "said"),
    [
        ("train.epochs", 400, f"--train.epochs {200 * '1'}...: must be at most 1e+30"),
        ("optim.lr", 400, "a value of the config cannot be read (int too large to convert to float)"),
        ("optim.lr", 39, f"--optim.lr {float(39 * '1')}: must be above 0 and at most 1000"),
    ],
)
def test_a_number_of_too_many_digits_is_refused(flag: str, digits: int, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config([f"--{flag}={digits * '1'}"])
    assert str(caught.value) == said


@pytest.mark.parametrize("flag", ["optim.eps", "optim.weight_decay", "optim.head_lr_factor"])
def test_a_factor_that_float32_cannot_hold_is_refused(flag: str) -> None:
    with pytest.raises(UserError, match=rf"^--{flag} 1e\+48: must be .* 1000"):
        parse_config([f"--{flag}=1e48"])


@pytest.mark.parametrize("flag", ["--run.resume", "--train.epochs", "--data.malignant", "--no.such"])
def test_a_very_long_value_is_not_repeated_whole(flag: str) -> None:
    with pytest.raises(UserError, match=rf"{flag}.*x{{150,200}}\.\.\.") as caught:
        parse_config([f"{flag}={10_000 * 'x'}"])
    assert len(str(caught.value)) < 400


def test_an_image_size_that_no_memory_holds_is_refused_before_it_is_tried() -> None:
    with pytest.raises(UserError, match=r"--data\.image_size 20000: must be from 32 to 4096 pixels"):
        parse_config(["--data.image_size=20000"])


def test_the_defaults_are_the_reference_recipe() -> None:
    config = parse_config([])
    assert config == Config()
    assert (config.model.name, config.model.pretrained, config.data.image_size) == ("efficientnet_b0", True, 224)
    assert (config.optim.name, config.optim.rho, config.optim.eps) == ("adadelta", 0.9, None)
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
        (["--run.timeout_minutes=0"], "--run.timeout_minutes 0.0: must be from 0.5 to 10000"),
        (["--run.resume=maybe"], "--run.resume: expected Literal['auto', 'never', 'must']. Got value: maybe"),
        (["--config=no.yaml"], "--config: File does not exist: '"),
        (["--train.epochs=0"], "--train.epochs 0: must be 1 or more"),
        (["--data.fractions=[0.5,0.2,0.2]"], "--data.fractions [0.5, 0.2, 0.2]: must be three shares"),
        (["--data.fractions=[1.0,0.0,0.0]"], "--data.fractions"),
        (["--optim.lr=.inf"], "--optim.lr inf: must be above 0"),
        (["--optim.lr=0"], "--optim.lr 0.0: must be above 0"),
        (["--optim.lr=nan"], "--optim.lr: must be a finite number. Got value: nan"),
        (["--data.num_workers=-1"], "--data.num_workers -1"),
        (["--early_stopping.patience=0"], "--early_stopping.patience 0"),
        (["--early_stopping.monitor=val/f1"], "--early_stopping.monitor"),
        (
            ["--train.freeze_backbone=true", "--model.pretrained=false"],
            "--train.freeze_backbone true: random weights would be kept; start from trained ones with",
        ),
        (["--early_stopping.first_epoch=11"], "--early_stopping.first_epoch 11: must be at most --train.epochs 10"),
        (["--optim.warmup_epochs=11"], "--optim.warmup_epochs 11.0: must be from 0 to train.epochs"),
    ],
)
def test_a_mistake_is_named_in_one_line(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "--config: must hold sections"),
        (b"hello", "--config: must hold sections"),
        (b"data: [", "--config: is no YAML"),
        ("data: {path: x}".encode("utf-16"), "--config: is not UTF-8 text; save it as such"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        parse_config([f"--config={file}"])
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_config_is_not_to_blame_for_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte that UTF-8 does not have stands for a letter that ASCII does not have."""
    (file := tmp_path / "c.yaml").write_bytes(b"data: {path: f\xfc}")
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UserError, match=r"^--config: cannot be read; .* set PYTHONUTF8=1$"):
        parse_config([f"--config={file}"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "M", "I", "--ot=x"], "--ot=x; nearest: --out"),
        (["predict", "M", "I", "--over"], "--over; nearest: --overwrite"),
        (["audit", "D", "--metdata", "x"], "--metdata x; nearest: --metadata"),
        (["folds", "--seds", "3"], "--seds; nearest: --seeds"),
        (
            ["predict", "M", "1.png", "2.png", "3.png", "4.png", "--out=x.csv"],
            "2.png and 2 more; is a pattern not in quotes?",
        ),
        (["predict", "M", "1.png", "2.png", "--out=x.csv"], "2.png; is a pattern not in quotes?"),
        (["predict", "M", "I", "out"], "out"),
        (["evaluate", "M", "D", "--qqqqqq", "3"], "--qqqqqq 3; --help lists them all"),
    ],
)
def test_every_command_names_the_nearest_flag(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: unrecognized arguments: {said}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "RUN", "", "--out=x.csv"],
        ["audit", ""],
        ["clear-cache", "--cache_dir", ""],
        ["audit", "D", "--page="],
    ],
)
def test_an_empty_argument_is_not_the_folder_that_one_is_in(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == "error: an argument is empty; is a variable unset?\n"


def test_an_unknown_key_in_a_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {nme: resnet18}\n")
    with pytest.raises(UserError, match=r"nme.*nearest: --model\.name"):
        parse_config([f"--config={file}"])


@pytest.mark.parametrize("flag", RANGED)
def test_a_value_out_of_range_is_the_same_mistake_in_python_in_a_file_and_as_a_flag(flag: str, tmp_path: Path) -> None:
    section, key = flag.split(".")
    value, wanted = OUT_OF_RANGE[flag]
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({section: {key: value}}))
    for build in (
        lambda: replace(getattr(Config(), section), **{key: value}),
        lambda: parse_config([f"--config={file}"]),
        lambda: parse_config([f"--{flag}={value}"]),
    ):
        with pytest.raises(UserError) as caught:
            build()
        assert str(caught.value) == f"--{flag} {value}: must be {wanted}"


@pytest.mark.parametrize("flag", ["model.name", "train.epochs", "data.fractions", "tracking.images"])
def test_null_is_refused_where_the_type_has_none(flag: str, tmp_path: Path) -> None:
    section, key = flag.split(".")
    file = tmp_path / "c.yaml"
    file.write_text(f"{section}: {{{key}: null}}")
    with pytest.raises(UserError, match=f"--{flag} None: must be "):
        parse_config([f"--config={file}"])
    with pytest.raises(UserError, match=f"--{flag} None: must be "):
        replace(getattr(Config(), section), **{key: None})


@pytest.mark.parametrize(
    ("flag", "value", "wanted"),
    [
        ("early_stopping.monitor", "val/los", "val/loss, val/accuracy, .* or val/brier"),
        ("run.resume", "Must", "auto, never or must"),
        ("optim.schedule", "cosin", "constant or cosine"),
        ("train.non_finite", "skp", "error or skip"),
        ("data.leaks", "eror", "warn, error or drop-from-train"),
        ("tracking.wandb", "disable", "auto, online, offline or disabled"),
        ("train.epochs", 2.5, r"a whole number \(int\)"),
        ("train.epochs", True, r"a whole number \(int\)"),
        ("train.micro_batch_size", "atuo", r"a whole number \(int\), auto or null"),
        ("optim.lr", "0.1", r"a number \(float\)"),
        ("optim.lr", np.float64(0.1), r"a number \(float\)"),
        ("data.augment", "no", r"true or false \(bool\)"),
        ("data.malignant", "melanoma", r"a list, each entry text \(str\) or .*"),
        ("data.fractions", ["0.8", 0.1, 0.1], r"a list, each entry a number \(float\)"),
    ],
)
def test_a_value_of_another_type_is_refused_in_python_as_on_the_command_line(
    flag: str, value: object, wanted: str
) -> None:
    section, key = flag.split(".")
    with pytest.raises(UserError, match=f"^--{flag} {re.escape(repr(value))}: must be {wanted}$"):
        replace(getattr(Config(), section), **{key: value})


def test_what_is_no_section_is_refused() -> None:
    wrong: Any = "runs/1"
    with pytest.raises(UserError, match=r"^run: must be RunConfig\(\.\.\.\), not 'runs/1'$"):
        Config(run=wrong)


@pytest.mark.parametrize("flag", [f"{section}.{key}" for section, key in marked("path")])
def test_an_empty_path_is_not_taken_for_none(flag: str, tmp_path: Path) -> None:
    """As of `--run.dir "$DIR"` where DIR is not set: each start would begin a new run."""
    section, key = flag.split(".")
    file = tmp_path / "c.yaml"
    file.write_text(f"{section}: {{{key}: ''}}")
    for build in (
        lambda: replace(getattr(Config(), section), **{key: ""}),
        lambda: parse_config([f"--config={file}"]),
        lambda: parse_config([f"--{flag}", ""]),
    ):
        with pytest.raises(UserError, match=f"^--{flag} is empty: give a path, or leave it out; is a variable unset"):
            build()


def test_a_whole_number_is_a_number_and_a_list_does_for_a_tuple() -> None:
    assert OptimConfig(lr=1).lr == 1
    assert Config.from_dict({"data": {"fractions": [0.8, 0.1, 0.1], "benign": ["nevus", 0]}}).data.benign == (
        "nevus",
        0,
    )
    values: dict[str, Any] = {"fractions": [0.8, 0.1, 0.1]}
    assert DataConfig(**values).to_dict()["fractions"] == [0.8, 0.1, 0.1]


def test_warm_up_cannot_be_longer_than_training() -> None:
    assert Config(optim=OptimConfig(warmup_epochs=5), train=TrainConfig(epochs=5)).optim.warmup_epochs == 5
    with pytest.raises(UserError, match=r"^--optim\.warmup_epochs 6: must be from 0 to train\.epochs$"):
        Config(optim=OptimConfig(warmup_epochs=6), train=TrainConfig(epochs=5))


PRETRAINED, SCRATCH = ModelConfig(), ModelConfig(pretrained=False)


@pytest.mark.parametrize(
    ("model", "train", "kept"),
    [
        (PRETRAINED, TrainConfig(), True),
        (ModelConfig(pretrained=False, weights="mine.pth"), TrainConfig(), True),
        (SCRATCH, TrainConfig(), False),
        (PRETRAINED, TrainConfig(sync_batchnorm=True), False),
        (PRETRAINED, TrainConfig(freeze_batchnorm=False), False),
        (SCRATCH, TrainConfig(freeze_batchnorm=True), True),
        (PRETRAINED, TrainConfig(freeze_batchnorm=False, freeze_backbone=True), True),
    ],
)
def test_batchnorm_keeps_statistics_that_were_trained(model: ModelConfig, train: TrainConfig, kept: bool) -> None:
    assert Config(model=model, train=train).keeps_statistics == kept


def test_a_new_field_says_all_of_itself() -> None:
    @dataclass(frozen=True)
    class DiceGameConfig(Section):
        sides: int | None = setting(6, lambda n: n >= 2, "2 or more")

    assert DiceGameConfig(sides=None).sides is None
    with pytest.raises(UserError, match=r"^--dice_game\.sides 1: must be 2 or more$"):
        DiceGameConfig(sides=1)


def test_local_paths_are_made_absolute_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    config = Config(
        data=DataConfig(path="lesions", metadata="../table.csv", cache_dir="~/cache"),
        model=ModelConfig(weights="/w.pth"),
        run=RunConfig(dir="runs/one"),
    )
    absolute = config.with_absolute_paths()
    assert (absolute.data.path, absolute.data.metadata) == (f"{tmp_path}/lesions", f"{tmp_path.parent}/table.csv")
    assert absolute.data.cache_dir == str(Path("/home/me/cache").resolve())
    assert (absolute.model.weights, absolute.run.dir) == ("/w.pth", f"{tmp_path}/runs/one")
    assert Config().with_absolute_paths() == Config()
    assert config.without_paths() == absolute.without_paths() == Config().without_paths()
    left_out = {(name, key) for name, part in config.to_dict().items() for key in part} - {
        (name, key) for name, part in config.without_paths().items() for key in part
    }
    assert left_out == {
        ("data", "path"), ("data", "metadata"), ("data", "cache_dir"), ("model", "weights"), ("run", "dir"),
    }  # fmt: skip


def test_a_run_may_go_on_with_other_values_of_these_alone() -> None:
    assert {f"{section}.{key}" for section, key in marked("free")} == {
        "run.dir", "run.resume", "run.timeout_minutes", "data.cache_dir", "data.num_workers", "train.eval_batch_size",
        "train.log_every", "train.non_finite", "train.max_skipped", "train.deterministic", "train.cuda_graph",
        "checkpoint.every_steps", "checkpoint.every_minutes", "checkpoint.keep",
        "evaluation.sensitivity", "evaluation.prevalence", "evaluation.views", "evaluation.stress",
        "evaluation.explain", "tracking.to", "tracking.wandb", "tracking.project", "tracking.name", "tracking.images",
    }  # fmt: skip


def test_changes_are_named_but_for_free_fields() -> None:
    now = parse_config(
        ["--optim.lr=0.5", "--checkpoint.keep=5", "--train.log_every=3", "--data.fractions=[0.8,0.1,0.1]"]
    )
    assert changes(Config().to_dict(), now.to_dict()) == [
        "data.fractions [0.9, 0.05, 0.05] -> [0.8, 0.1, 0.1]",
        "optim.lr 0.1 -> 0.5",
    ]


def test_a_run_of_an_older_version_is_another_one() -> None:
    saved = Config().to_dict()
    del saved["train"]["ema"], saved["train"]["log_every"], saved["tracking"]
    said = "train.ema (unknown to the skindist that began it) -> 0.999"
    assert changes(saved, Config().to_dict()) == [said], "free fields may be new"


@pytest.mark.parametrize(("monitor", "mode"), [("val/loss", "min"), ("val/auroc", "max"), ("val/accuracy", "max")])
def test_the_mode_follows_from_the_monitor(monitor: str, mode: str) -> None:
    config = parse_config([f"--early_stopping.monitor={monitor}"]).early_stopping
    assert (config.mode, f"val/{config.metric}") == (mode, monitor)


def test_a_path_of_python_does_for_a_path() -> None:
    folder: Any = Path("lesions")
    assert DataConfig(path=folder).path == "lesions"
    assert DataConfig(path=folder) == DataConfig(path="lesions")
    with pytest.raises(UserError, match=r"^--model.name PosixPath\(.lesions.\): must be text \(str\)"):
        ModelConfig(name=folder)


def test_help_names_types_as_people_do(capsys: pytest.CaptureFixture[str]) -> None:
    for command, line in (
        ("report", "together. (required, type: Path)"),
        ("curves", "Run folder. (required, type: Path)"),
    ):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert line in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("locale", "remedy"), [("ascii", "set PYTHONUTF8=1"), ("utf-8", "")])
def test_a_name_that_the_locale_cannot_write_has_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], locale: str, remedy: str
) -> None:
    """An argument that is not ASCII comes as stand-ins for its bytes."""
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: locale)
    assert main(["curves", "f\udcc3\udcbc"]) == 2
    said = capsys.readouterr().err
    assert said.startswith('error: Parser key "run": ')
    assert said.count("\n") == 1
    assert ("PYTHONUTF8" in said) == bool(remedy)
    assert remedy in said


def test_an_error_of_letters_is_one_line_where_the_locale_is_to_blame(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(run: Path) -> None:
        str(run / "f\xfc").encode("ascii")

    monkeypatch.setattr(curves, "draw_curves", fail)
    with pytest.raises(UnicodeError):
        main(["curves", "run"])
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert main(["curves", "run"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: 'ascii' codec can't encode character")
    assert said.endswith("set PYTHONUTF8=1\n")
