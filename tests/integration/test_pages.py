"""The pages are true: every command on them is run or parsed as it stands, every link and path leads somewhere."""

import functools
import importlib
import io
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import launch as launching
from torch.distributed.run import get_args_parser

import skindist
from skindist import cli, folds, verify
from skindist.commands import models
from skindist.config import Config
from skindist.data import unpack as unpacking
from skindist.inference import evaluation, export, joining, push
from skindist.inference.sources import find_model
from skindist.launcher import read_launch
from skindist.recipe import DataConfig
from skindist.report import words as report_words
from skindist.run.folder import Run
from skindist.training import trainer
from tests.helpers.commands import ROOT, TINY
from tests.helpers.fault_table import BEGIN

README = ROOT / "README.md"
PAGES = [README, *(page for room in ("skindist", "launch", "tests") for page in sorted(ROOT.glob(f"{room}/**/*.md")))]
STARTERS = [ROOT / "launch" / name for name in ("slurm.sbatch", "kubernetes.yaml", "skypilot.yaml", "Dockerfile")]
SCRIPTS = [file for file in sorted(ROOT.glob("launch/*.py")) if "__main__" in file.read_text()]
PROGRAMS = ("skindist", "accelerate", "torchrun", "python", "pytest", "pip", "wandb")
FILES = [*sorted({*ROOT.glob("launch/*.yaml")} - {*STARTERS}), *SCRIPTS, ROOT / "accelerate_config.yaml"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WORDS = 30  # in one sentence
WHOLE = ["--tracking.wandb=disabled", "--evaluation.stress=true"]


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in BLOCK.findall(page.read_text()) if name == language]


def prose(page: Path) -> str:
    """All but the blocks and the comments."""
    return re.sub(r"<!--.*?-->", "", BLOCK.sub("", page.read_text()))


def spans(page: Path) -> list[str]:
    """What is set as code in a line of text or in a table."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def commands(page: Path) -> list[str]:
    """Each command of the bash blocks and of transcripts, and each span of more than one word."""
    lines = "\n".join(blocks(page, "bash")).replace("&&", "\n").splitlines()
    typed = [line.removeprefix("$ ") for block in blocks(page, "") for line in block.splitlines() if line[:2] == "$ "]
    found = (shlex.split(line, comments=True) for line in [*lines, *typed, *(s for s in spans(page) if " " in s)])
    return [shlex.join(words) for words in found if words]


def commands_above(file: Path) -> list[str]:
    """The commands in the comment at the top of a file."""
    text = "\n".join(re.findall(r"^# {5}(.*)", file.read_text(), re.MULTILINE))
    lines = text.replace("\\\n", "").replace("&&", "\n").splitlines()
    return [shlex.join(shlex.split(line)) for line in lines]


def commands_of(file: Path) -> list[str]:
    """Each line of a file's first words that begins with a program, without what is in brackets; and each span."""
    text = file.read_text()
    head = (
        text.split('"""')[1] if file.suffix == ".py" else re.sub(r"^# ?", "", text.split("\n\n")[0], flags=re.MULTILINE)
    )
    lines = re.sub(r"\[[^]]*\]|\\+\n", "", head).splitlines()
    typed = [line for line in lines if line.split(" ")[0] in PROGRAMS]
    found = map(shlex.split, typed + [span for span in re.findall(r"`([^`]+)`", head) if " " in span])
    return [shlex.join(words) for words in found]


DX = {"benign": "nv", "malignant": "mel"}


@pytest.fixture(scope="module")
def folder(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: the project's files, images with a table, and two finished runs called RUN and OTHER."""
    here = tmp_path_factory.mktemp("pages")
    for name in ("launch", "skindist", "tests", "accelerate_config.yaml"):
        (here / name).symlink_to(ROOT / name)
    (here / "lesions").symlink_to(demo)
    rows = [f"{file.relative_to(demo)},{file.stem},{DX[file.parent.name]}" for file in demo.glob("*/*")]
    for table in ("ham.csv", "patients.csv"):
        (here / table).write_text("\n".join(["path,lesion_id,dx", *rows]))
    run = here / "RUN"
    assert cli.train([*TINY, f"--data.path={demo}", f"--run.dir={run}", *WHOLE]) == 0
    shutil.copytree(run, here / "OTHER", symlinks=True)
    (here / "runs").mkdir()
    (here / "runs/...").symlink_to(run)
    return here


class Check:
    """The rules: what must hold of a command, by its program."""

    def __init__(self, folder: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytestconfig, self.monkeypatch = pytestconfig, monkeypatch
        self.configs: list[Config] = []
        monkeypatch.chdir(folder)
        monkeypatch.setenv("SKINDIST_CACHE", str(folder / "cache"))
        for home in (trainer, skindist):
            monkeypatch.setattr(home, "fit", self.fit)

    def fit(self, config: Config) -> dict[str, Any]:
        """Instead of a run that takes long: its config, and the results of a finished one."""
        self.configs.append(config)
        return Run(Path("RUN")).results()

    def __call__(self, words: Sequence[str]) -> None:
        rules: dict[str, Callable[[Sequence[str]], None]] = {
            "skindist": self.skindist, "accelerate": self.accelerate, "torchrun": self.torchrun, "pytest": self.pytest,
            "python": self.python, "pip": self.pip, "wandb": self.wandb,
            "sbatch": self.sbatch, "docker": self.docker, "kubectl": self.file, "sky": self.file,
            "ruff": self.run_by_ci, "mypy": self.run_by_ci, "python3": self.in_readme, ".": self.in_readme,
        }  # fmt: skip
        if words[0].startswith("--"):
            return self.flag(words[0], *words[1:])
        assert words[0] in rules, f"no rule covers {shlex.join(words)}"
        rules[words[0]](words[1:])

    def skindist(self, words: Sequence[str]) -> None:
        """Run; but `demo-data` draws few, `verify-resume` and `folds` run nothing, `evaluate`, `export`, `push`,
        `ensemble` and `unpack` look at their words alone, and a name alone is asked for help."""
        commands: list[Sequence[str]] = []

        def verify_resume(command: Sequence[str], *_: object) -> verify.Verdict:
            commands.append(command)
            return verify.Verdict(True, "exact")

        def evaluate_model(model: str, data: DataConfig, out: Path, asked: evaluation.Asked) -> None:
            assert evaluation.look_up(model, out, data.path, asked.views)
            assert all(Path(path).exists() for path in (data.path, data.metadata) if path)

        def export_model(model: str, out: Path, overwrite: bool) -> None:
            assert find_model(model).folder.is_dir()
            assert out.suffix in export.WRITERS

        def run_folds(command: Sequence[str], number: int, seeds: int, out: Path, *_: object) -> None:
            commands.append(command[3:] if command[0] == sys.executable else command)

        def join_runs(runs: Sequence[Path], out: Path) -> None:
            assert len(runs) > 1

        self.monkeypatch.setattr(folds, "run_folds", run_folds)
        self.monkeypatch.setattr(joining, "join_runs", join_runs)
        self.monkeypatch.setattr(report_words, "describe_ensemble", str)
        self.monkeypatch.setattr(unpacking, "unpack", lambda source, out, column: 0)
        self.monkeypatch.setattr(verify, "verify_resume", verify_resume)
        self.monkeypatch.setattr(models, "require", lambda *_: None)  # tests do without the packages of export
        self.monkeypatch.setattr(export, "export_model", export_model)
        self.monkeypatch.setattr(push, "push_model", lambda model, *_: push.checked(model))
        self.monkeypatch.setattr(evaluation, "evaluate_model", evaluate_model)
        if words[0] == "train" and words[1:]:
            return self.train(words[1:])
        if len(words) == 1 and words[0] != "clear-cache":
            assert f" {words[0]} " in help_of(lambda: cli.main([*words, "--help"]))
            return
        few = ["--count=4", "--size=32"] if words[0] == "demo-data" else []
        assert cli.main([*words, *few]) == 0
        for command in commands:
            if command[0] == "train":
                self.train(command[1:])
            elif command != ["COMMAND"]:
                self(command)

    def accelerate(self, words: Sequence[str]) -> None:
        assert words[0] == "launch"
        if words[1:]:
            asked = launch_command_parser().parse_args(words[1:])
            assert asked.multi_gpu if asked.config_file is None else Path(asked.config_file).is_file()
            self.on_8_gpus(asked)
            if asked.module:
                assert asked.training_script == "skindist"
                return self.skindist(asked.training_script_args)
            self.script(asked.training_script, asked.training_script_args)

    def on_8_gpus(self, asked: Any) -> None:
        """Accelerate's own checks of a launch, on a machine with 8 GPUs."""
        with self.monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "device_count", lambda: 8)
            patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **options: True)
            patch.setattr(launching, "is_port_in_use", lambda *_: False)
            checked, _, _ = _validate_launch_command(asked)
            env = launching.prepare_multi_gpu_env(checked)
        assert checked.multi_gpu
        assert int(checked.nproc_per_node) * checked.num_machines == checked.num_processes
        assert int(checked.nproc_per_node) <= 8
        assert read_launch(env, ["accelerate", "launch"]).precision in (None, asked.mixed_precision)

    def torchrun(self, words: Sequence[str]) -> None:
        asked = get_args_parser().parse_args(words)
        if asked.module:
            return self.skindist(asked.training_script_args)
        self.script(asked.training_script, asked.training_script_args)

    def python(self, words: Sequence[str]) -> None:
        if words[0] == "-c":
            return exec(compile(words[1].replace("=True", "=False"), "a page", "exec"), {})
        if words[0].startswith("-"):
            return self.run_by_ci(words)
        self.script(words[0], words[1:])

    def script(self, name: str, words: Sequence[str]) -> None:
        assert Path(name).is_file()
        scripts = {"launch/train.py": self.train, "launch/benchmark.py": self.benchmark, "launch/folds.py": self.folds}
        scripts[name](words)

    def folds(self, words: Sequence[str]) -> None:
        self.skindist(["folds", *words])

    def train(self, words: Sequence[str]) -> None:
        """Parsed as for a run; or it prints, and ends."""
        if {"--help", "--print_config"} & set(words):
            assert "data" in help_of(lambda: cli.train(words))
        else:
            assert cli.train(words) == 0
            assert self.configs.pop().data.path

    def benchmark(self, words: Sequence[str]) -> None:
        """Parsed, with few pictures drawn and nothing measured."""
        benchmark: Any = importlib.import_module("benchmark")
        few = functools.partial(benchmark.draw_set, count=2, size=32)
        self.monkeypatch.setattr(benchmark, "draw_set", lambda root, count, size: few(root))
        nothing: dict[str, Any] = dict.fromkeys(benchmark.BENCHMARKS, lambda data, folder: [])
        self.monkeypatch.setattr(benchmark, "BENCHMARKS", nothing)
        self.monkeypatch.setattr(benchmark, "beside_peers", lambda data, folder: [])
        self.monkeypatch.setattr(benchmark.steps, "profile_step", lambda: "")
        self.monkeypatch.setattr(sys, "argv", ["launch/benchmark.py", *words])
        benchmark.main()

    def pytest(self, words: Sequence[str]) -> None:
        asked, unknown = self.pytestconfig._parser.parse_known_and_unknown_args(list(words))
        markers = {line.split(":")[0] for line in self.pytestconfig.getini("markers")}
        assert not unknown
        assert all(Path(name).exists() for name in asked.file_or_dir)
        assert set(asked.markexpr.split()) <= markers | {"and", "or", "not"}
        assert not asked.fault_table or BEGIN in asked.fault_table.read_text()

    def pip(self, words: Sequence[str]) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = [extra for word in words for extra in re.findall(r"\[(\w+)\]", word)]
        assert words[0] == "install"
        assert words[1].startswith("skindist[") or words[-1][0] == "." or words[1:] == ["/path/to/this/folder"]
        assert set(extras) <= set(project["optional-dependencies"])

    def wandb(self, words: Sequence[str]) -> None:
        from wandb.cli.cli import cli as wandb

        assert words[0] in wandb.commands

    def sbatch(self, words: Sequence[str]) -> None:
        """The flags after the file are those of a run; in an array, of `skindist folds`."""
        assert "launch/slurm.sbatch" in words
        place = words.index("launch/slurm.sbatch")
        names, rest = set(words[:place:2]), words[place + 1 :]
        assert names <= {"--array", "--nodes", "--gpus-per-node", "--cpus-per-task"}
        self.skindist(["folds", *rest]) if "--array" in names else self.train(rest)

    def docker(self, words: Sequence[str]) -> None:
        assert words[0] in ("build", "push", "run")
        if words[0] == "build":
            assert Path(words[words.index("-f") + 1]).is_file()
        elif words[0] == "run":
            entrypoint = self.torchrun if "torchrun" in words else self.skindist
            entrypoint(words[words.index("skindist") + 1 :])

    def file(self, words: Sequence[str]) -> None:
        assert list(words[:-1]) in (["apply", "-f"], ["jobs", "launch"])
        assert Path(words[-1]).is_file()

    def run_by_ci(self, words: Sequence[str]) -> None:
        assert not words or f" {shlex.join(words)}\n" in (ROOT / ".ci/run").read_text()

    def in_readme(self, words: Sequence[str]) -> None:
        """The first steps of the two commands, which .ci/run runs word for word."""
        assert list(words) in (["-m", "venv", ".venv"], [".venv/bin/activate"])

    def flag(self, name: str, *value: str) -> None:
        """A flag on its own, maybe with a value, or with several of them to choose from."""
        assert name in known_flags()
        for word in value[0].split("|") if "." in name and value else ():
            self.train(["--data.path=lesions", name, word])


def help_of(command: Callable[[], object]) -> str:
    """What a command prints that then ends with status 0."""
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as end:
        command()
    assert end.value.code in (0, None)
    return printed.getvalue()


@functools.cache
def known_flags() -> set[str]:
    """All flags of the launchers and of the project's own commands."""
    own = (
        "unpack", "audit", "folds", "ensemble", "curves", "evaluate", "predict", "export", "push", "report",
        "demo-data", "verify-resume", "clear-cache",
    )  # fmt: skip
    launchers = (parser._option_string_actions for parser in (launch_command_parser(), get_args_parser()))
    texts = [help_of(functools.partial(cli.main, [name, "--help"])) for name in own]
    texts += [help_of(lambda: cli.train(["--help"]))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["launch/benchmark.py", "--help"])
        texts += [help_of(importlib.import_module("benchmark").main)]
    return {*chain(*launchers), *re.findall(r"--[\w.-]+", "\n".join(texts))}


@pytest.fixture
def check(folder: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> Check:
    return Check(folder, pytestconfig, monkeypatch)


@pytest.mark.parametrize("command", sorted({*chain(*map(commands, PAGES)), *chain(*map(commands_of, FILES))}))
def test_command(check: Check, command: str) -> None:
    check(shlex.split(command))


@pytest.mark.parametrize("command", [command for file in STARTERS for command in commands_above(file)])
def test_command_above_a_file(check: Check, command: str) -> None:
    check(shlex.split(command))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_first_lines_of_a_file_say_how_it_is_used(file: Path) -> None:
    assert commands_of(file)


@pytest.mark.parametrize("flag", sorted({span for page in PAGES for span in spans(page) if re.match(r"--\S+$", span)}))
def test_flag(check: Check, flag: str) -> None:
    check([flag])


def test_what_no_rule_covers_fails(check: Check) -> None:
    for command in ("sbatch job.sh", "skindist adit lesions", "python launch/train.py --data.pth lesions",
                    "accelerate launch --num_proceses 2 launch/train.py", "--run.dri", "pytest -m slwo",
                    "skindist verify-resume -- python launch/trian.py", "pip install -e .[tset]"):  # fmt: skip
        with pytest.raises((AssertionError, SystemExit)):
            check(shlex.split(command))


@pytest.mark.parametrize("code", [code for page in PAGES for code in blocks(page, "python")])
def test_python(check: Check, code: str) -> None:
    exec(compile(code, "page", "exec"), {})


@pytest.mark.extra
@pytest.mark.parametrize("typed", [typed for page in PAGES for typed in blocks(page, "pycon")])
def test_what_is_typed_into_python_runs_with_onnx(folder: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"needs {package} (pip install -e '.[export]')")
    monkeypatch.chdir(folder)
    assert cli.main(["export", "RUN", "--out=model.onnx", "--overwrite"]) == 0
    shutil.copy(next(Path("lesions").glob("*/*")), "lesion.jpg")
    said: dict[str, Any] = {}
    exec(re.sub(r"^>>> ", "", typed, flags=re.MULTILINE), said)
    assert said["probability"].shape == said["decision"].shape == (1,)


def test_no_block_is_of_a_kind_that_no_test_reads() -> None:
    assert {kind for page in PAGES for kind, _ in BLOCK.findall(page.read_text())} == {"", "bash", "python", "pycon"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", re.sub(r"https?://[^)]*", ".", prose(page))):
        target = page.parent / link if link else page
        assert target.exists(), link
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles], anchor
    for span in spans(page):
        if re.match(r"(skindist|tests|launch|\.ci)/\S*$", span):
            assert (ROOT / span).exists(), span
        elif re.match(r"\w+\.py$", span):
            assert (page.parent / span).exists(), span


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_are_short(page: Path) -> None:
    text = re.sub(r"`[^`]*`", "code", re.sub(r"\]\([^)]*\)", "]", prose(page)))
    lines = [line for line in text.splitlines() if not line.startswith(("#", "|"))]
    paragraphs = re.split(r"\n\s*\n|\n(?=- |\d\. )", "\n".join(lines))
    sentences = [sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.!?:;])\W*\s", paragraph)]
    assert [sentence for sentence in sentences if len(sentence.split()) > WORDS] == []


def test_the_first_page_is_short_and_in_order() -> None:
    text = README.read_text()
    assert len(text.splitlines()) < 200
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Two commands", "What you get", "Your own images", "Where it runs", "When it stops", "Where to read on",
        "The house", "Licence",
    ]  # fmt: skip
    for name in ("demo", "test"):
        assert f"<!-- {name} -->\n```bash\n" in text, "where .ci/run looks for it"
    assert all(f"({page.relative_to(ROOT)})" in text for page in PAGES[1:]), "every page is linked"


def test_the_map_is_true() -> None:
    (house,) = re.findall(r"^## The house\n\n```\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    shown = [line.split()[0] for line in house.splitlines()]
    assert [path for path in shown if not (ROOT / path).exists()] == []
    assert {f"{module.parent.relative_to(ROOT)}/" for module in ROOT.glob("skindist/**/*.py")} <= set(shown)


def test_the_page_on_the_run_folder_names_every_file(folder: Path) -> None:
    text = (ROOT / "skindist/run/README.md").read_text()
    table, checkpoint = (re.findall(r"^\| (`.*?) \|", part, re.MULTILINE) for part in text.split("### The checkpoints"))
    named = {name.rstrip("/") for cell in table for name in re.findall(r"`([^`]+)`", cell)}
    assert named - {"wandb"} == {path.name for path in (folder / "RUN").iterdir()} - {"curves.png"}
    assert {name.strip("`") for name in checkpoint} == {p.name for p in (folder / "RUN/checkpoints/last").iterdir()}
