"""The house's rules, read from the imports: layers, no cycle, Accelerate in one room, public names that exist."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import skindist

ROOT = Path(skindist.__file__).parent
LAYERS = [  # from the ground up: a module may import its own layer and those before it
    {
        "downloads",
        "errors",
        "extras",
        "determinism",
        "files",
        "machine",
        "cpu_threads",
        "randomness",
        "early_stopping",
        "launcher",
        "wording",
        "section",
        "recipe",
        "config",
        "parsing",
        "programs",
    },
    {
        "data.inspection",
        "data.remembering",
        "data.scan",
        "data.metadata",
        "data.duplicates",
        "data.split",
        "data.transforms",
        "data.demo",
    },
    {"data.listing", "data.labels", "data.resizing", "data.survey"},
    {"data.prepare", "data.store", "data.loading", "weights", "model", "folding", "cpu_kernels", "optim"},
    {"training.cuda_graph", "training.loss", "training.state", "data.unpack"},
    {f"evaluation.{name}" for name in ("predictions", "counts", "metrics", "modules", "resampling")},
    {
        f"evaluation.{name}"
        for name in (
            "bands",
            "intervals",
            "known",
            "calibration",
            "operating_point",
            "subgroups",
            "shortcut",
        )
    },
    {"evaluation.frozen", "evaluation.beside_shortcut", "evaluation.differences"},
    {"evaluation.judgement"},
    {"evaluation.recalibration", "evaluation.stress", "evaluation.mistakes"},
    {"run.lock", "run.owner", "run.checkpoint", "run.comparison", "run.record", "report.words"},
    {"run.folder"},
    {"report.html", "report.plots", "report.scores"},
    {"report.page", "report.mistakes", "report.history"},
    {"report.run_page", "report.runs_page"},
    {"run.opening"},
    {f"distributed.{name}" for name in ("network", "rendezvous", "host", "peers", "group", "buffers", "last_words")},
    {"distributed.ending", "distributed.contact"},
    {"prediction.memory", "prediction.predictor", "prediction.loaders"},
    {"prediction.evaluate", "tracking.wandb_service", "report.model_card", "inference.ensemble"},
    {"training.learner", "training.interruption"},
    {"training.engine", "training.rehearsal"},
    {"inference.description", "inference.saved_model", "inference.explain"},
    {"inference.graph", "inference.single", "report.pictures"},
    {"prediction.outcome", "prediction.pictures", "prediction.stress"},
    {"tracking.wandb_sink", "training.results", "training.saving", "inference.sources", "inference.table"},
    {"inference.seeing", "inference.seen", "inference.batches"},
    {"tracking.other_trackers", "training.restoring"},
    {"training.tracker"},
    {
        "training.trainer",
        "report.curves",
        "report.live",
        "inference.evaluation",
        "inference.predict",
        "inference.export",
        "inference.push",
    },
    {"report.audit", "inference.joining", "verify"},
    {"fold_runs", "folds"},
    {"commands.data", "commands.models", "commands.runs"},
    {"cli"},
    {"__main__"},
]


@cache
def modules() -> dict[str, ast.Module]:
    paths = [path for path in ROOT.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text()) for path in paths}


def imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def edges() -> dict[str, set[str]]:
    found = {name: imports(tree) for name, tree in modules().items()}
    return {name: {other for other in found if f"skindist.{other}" in names} for name, names in found.items()}


def test_every_module_has_a_layer() -> None:
    assert set(modules()) == set().union(*LAYERS)


def test_no_import_points_upwards() -> None:
    layer = {name: level for level, names in enumerate(LAYERS) for name in names}
    assert [(a, b) for a, others in edges().items() for b in others if layer[b] > layer[a]] == []


def test_no_cycle() -> None:
    TopologicalSorter(edges()).prepare()


@pytest.mark.parametrize(
    ("framework", "rooms"),
    [
        ("accelerate", ("training.", "distributed.", "tracking.")),  # its trackers are used there
        ("torch.distributed", ("training.", "distributed.")),
    ],
)
def test_processes_are_the_business_of_few_rooms(framework: str, rooms: tuple[str, ...]) -> None:
    users = {
        name for name, tree in modules().items() if any(f"{i}.".startswith(f"{framework}.") for i in imports(tree))
    }
    assert users
    assert all(name.startswith(rooms) for name in users)


def test_two_rooms_speak_to_the_group() -> None:
    calls = {name for name in modules() if "torch.distributed." in (ROOT / f"{name.replace('.', '/')}.py").read_text()}
    assert calls
    assert all(name.startswith(("training.", "distributed.")) for name in calls)


def test_early_stopping_and_config_know_no_framework() -> None:
    for name in ("config", "recipe", "early_stopping", "errors", "launcher", "randomness", "data.scan", "data.split"):
        assert not {"torch", "accelerate", "timm", "datasets"} & {i.split(".")[0] for i in imports(modules()[name])}


def test_no_module_has_grown_past_250_lines() -> None:
    lengths = {name: len((ROOT / f"{name.replace('.', '/')}.py").read_text().splitlines()) for name in modules()}
    assert {name: lines for name, lines in lengths.items() if lines > 250} == {}
