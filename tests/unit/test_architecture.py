"""The house's rules, read from the imports: layers, no cycle, Accelerate in one room, public names that exist."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import skindist

ROOT = Path(skindist.__file__).parent
LAYERS = [  # from the ground up: a module may import its own layer and those before it
    {"errors", "files", "machine", "randomness", "section", "config", "parsing", "early_stopping"},
    {"data.inspection", "data.scan", "data.metadata", "data.duplicates", "data.split", "data.transforms", "data.demo"},
    {"data.prepare", "data.store", "data.loading", "model", "optim", "training.state"},
    {"evaluation.metrics", "evaluation.intervals", "evaluation.shortcut"},
    {"run.lock", "run.checkpoint"},
    {"distributed.rendezvous", "distributed.group", "distributed.buffers", "distributed.ending"},
    {"training.memory", "training.wandb_service", "training.run_folder", "training.interruption"},
    {"training.engine", "training.rehearsal"},
    {"training.tracking", "training.results"},
    {"training.saving"},
    {"training.trainer", "report.curves", "report.page"},
    {"report.audit", "verify"},
    {"cli"},
]


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
    known = modules()
    return {name: {other for other in known if f"skindist.{other}" in imports(tree)} for name, tree in known.items()}


def test_every_module_has_a_layer() -> None:
    assert set(modules()) == set().union(*LAYERS)


def test_no_import_points_upwards() -> None:
    layer = {name: level for level, names in enumerate(LAYERS) for name in names}
    assert [(a, b) for a, others in edges().items() for b in others if layer[b] > layer[a]] == []


def test_no_cycle() -> None:
    TopologicalSorter(edges()).prepare()


def test_accelerate_stays_in_two_rooms() -> None:
    users = {name for name, tree in modules().items() if any(i.split(".")[0] == "accelerate" for i in imports(tree))}
    assert users
    assert all(name.startswith(("training.", "distributed.")) for name in users)


def test_early_stopping_and_config_know_no_framework() -> None:
    for name in ("section", "config", "parsing", "early_stopping", "errors", "randomness", "data.scan", "data.split"):
        assert not {"torch", "accelerate", "timm", "datasets"} & {i.split(".")[0] for i in imports(modules()[name])}


def test_public_names_are_sorted_and_exist() -> None:
    assert skindist.__all__ == sorted(set(skindist.__all__))
    assert all(getattr(skindist, name).__name__ == name for name in skindist.__all__)


def test_importing_the_package_costs_nothing() -> None:
    code = "import sys, skindist; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
