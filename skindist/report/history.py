"""How a run came about, in sentences and tables: its training, its data, its settings, and how to repeat it."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from skindist.config import Config, marked
from skindist.data.split import PARTS
from skindist.evaluation.metrics import METRICS
from skindist.recipe import DataConfig
from skindist.report.html import Table, attempt
from skindist.report.words import crossed, figure_text
from skindist.run.folder import Run
from skindist.wording import plural


def early_stopping_story(
    stop: Mapping[str, Any] | None, settings: Mapping[str, Any], events: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What training watched, when it was best, and why it ended: a sentence each."""
    if not stop:
        return []
    rule, most = settings.get("early_stopping") or {}, (settings.get("train") or {}).get("epochs")
    watched = f"After each epoch the run looked at {stop['monitor']}."
    if (first := stop.get("first_epoch", 1)) > 1:
        why = "as was asked for" if rule.get("first_epoch") else "the learning rate was still high"
        watched += f" Epochs before number {first} did not count: {why}."
    best = f"The best was {stop['best']:.4f}, in epoch {stop['best_epoch']}."
    if later := slightly_better(stop, events):
        best += f" What epoch {later['epoch']} gained on that, {later[stop['monitor']]:.4f}, is too little to count"
        best += f" (min_delta {rule['min_delta']})." if "min_delta" in rule else "."
    after = stop["epochs"] - stop["best_epoch"]
    if stop.get("stopped_early"):
        least = f" by at least {rule['min_delta']}" if "min_delta" in rule else ""
        what = "the next epoch" if after == 1 else f"the next {after} epochs"
        end = f"It did not improve{least} in {what}, so training stopped early, after {plural(stop['epochs'], 'epoch')}"
        end += f" of at most {most}." if most else "."
    else:
        end = f"Training went on to its last epoch, {stop['epochs']}."
        end += " That was the best one: more epochs might help." if after == 0 else ""
    return [watched, best, end, "The weights of the best epoch were tested and saved."]


def slightly_better(stop: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The epoch whose value is better than that of the best one, but by less than counts; None if there is none."""
    key = stop["monitor"]
    metric = METRICS.get(key.rpartition("/")[2])
    sign = -1 if metric and metric.direction == "min" else 1
    rivals = [event for event in events if event.get(key) is not None and event["epoch"] > stop["best_epoch"]]
    top = max(rivals, key=lambda event: sign * event[key], default=None)
    return top if top and sign * top[key] > sign * stop["best"] else None


def points(events: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Epoch and value of each event that has both."""
    return [(event["epoch"], event[key]) for event in events if event.get(key) is not None and "epoch" in event]


def epoch_table(events: Sequence[Mapping[str, Any]]) -> Table | None:
    """The validation figures of each epoch."""
    ends = [event for event in events if "val/loss" in event]
    names = [name for name in METRICS if any(event.get(f"val/{name}") is not None for event in ends)]
    rows = [[str(end["epoch"]), *(figure_text(end.get(f"val/{name}"), name) for name in names)] for end in ends]
    return Table(["epoch", *(METRICS[name].title for name in names)], rows) if rows else None


def members_table(results: Mapping[str, Any], named: bool) -> Table | None:
    """The runs of an ensemble, a row each; their folders only where names are wanted."""
    rows = [
        [
            *([str(member["run"])] if named else []),
            str(member["seed"]),
            "none" if member["fold"] is None else str(member["fold"]),
            f"{member['best_epoch']} of {member['epochs']}",
            figure_text(member["val_auroc"], "auroc"),
            figure_text(member["test_auroc"], "auroc"),
            f"{member['train_seconds'] / 60:.1f}",
        ]
        for member in results.get("members") or []
    ]
    head = ["seed", "fold", "best epoch", "validation AUROC", "test AUROC", "minutes"]
    return Table([*(["run"] if named else []), *head], rows) if rows else None


def seeds_table(results: Mapping[str, Any]) -> Table | None:
    """The out-of-fold figures of each seed of an ensemble; None where its members have no folds."""
    if not crossed(member["fold"] for member in results.get("members") or []):
        return None
    rows = [
        [str(seed["seed"]), *(figure_text(seed["auroc"][key], "auroc") for key in ("value", "low", "high"))]
        for seed in results.get("by_seed") or []
    ]
    return Table(["seed", "out-of-fold AUROC", "from", "to"], rows) if rows else None


def parts_table(images: Mapping[str, Mapping[str, int]]) -> Table | None:
    """How many images of each class there are in each part."""
    rows = []
    for part, counts in images.items():
        total = sum(counts.values())
        share = figure_text(counts["malignant"] / total if total else None, "share")
        rows.append([PARTS.get(part, part), *(f"{count:,}" for count in (*counts.values(), total)), share])
    return Table(["part", *next(iter(images.values())), "total", "malignant share"], rows) if rows else None


def quarantine_table(run: Run, named: bool) -> Table | None:
    """The images that were left out; without names, only how many for each first word of the reason."""
    rows = attempt(run.quarantine)
    if not rows:
        return None
    if named:
        return Table(["image", "reason"], rows)
    counts = Counter(reason.split(":")[0].split(" as ")[0] for _, reason in rows)
    return Table(["reason", "images"], [[reason, str(count)] for reason, count in counts.most_common()])


def changed_settings(settings: Mapping[str, Any], named: bool) -> Table | None:
    """The settings that are not the defaults; local paths only where names are wanted."""
    defaults = Config().to_dict() if named else Config().without_paths()
    rows = [
        [f"{section}.{key}", str(value), str(defaults[section][key])]
        for section, values in settings.items()
        for key, value in values.items()
        if section in defaults and key in defaults[section] and str(value) != str(defaults[section][key])
    ]
    return Table(["setting", "this run", "default"], rows) if rows else None


def repeat_command(run: Run, results: Mapping[str, Any], settings: Mapping[str, Any], named: bool) -> str:
    """The command that makes the same run or evaluation again, in a new folder."""
    if "model" in results:
        flags = evaluation_flags(settings, results, named)
        return " ".join(["skindist evaluate MODEL", *flags, "--out NEW"])
    if "members" in results:
        runs = [shlex.quote(member["run"]) if named else "RUN" for member in results["members"]]
        return " ".join(["skindist ensemble", *runs, "--out NEW"])
    config = shlex.quote(str(run.config_file)) if named else f"RUN/{run.config_file.name}"
    launcher = "accelerate launch --config_file accelerate_config.yaml"
    precision = results.get("mixed_precision", "no")
    asked = f"--num_processes {results.get('world_size', 1)} --mixed_precision {precision}"
    return f"{launcher} {asked} launch/train.py --config {config}"


def evaluation_flags(settings: Mapping[str, Any], results: Mapping[str, Any], named: bool) -> list[str]:
    """The images and the flags of an evaluation that are not the defaults; without names, a path is a word."""
    data, default = settings.get("data") or {}, DataConfig().to_dict()
    given = {
        key: value for key, value in data.items() if value != default.get(key) and key not in ("path", "image_size")
    }
    given |= {
        "views": results["model"].get("views"),
        "prevalence": (results.get("operating_point") or {}).get("prevalence"),
    }
    flags = [shlex.quote(str(data.get("path") or "DATA")) if named else "DATA"]
    for key, value in given.items():
        if value is not None:
            text = f"[{', '.join(value)}]" if isinstance(value, list) else str(value)
            secret = not named and ("data", key) in marked("path")
            flags.append(f"--{key} {key.upper() if secret else shlex.quote(text)}")
    return flags + [
        f"--{key}" for key, part in {"recalibrate": "recalibrated", "stress": "stress"}.items() if results.get(part)
    ]


def facts(results: Mapping[str, Any]) -> dict[str, Table]:
    """What the run cost, what it ran on, and with which versions."""
    cost = {
        "processes": results.get("world_size"),
        "mixed precision": results.get("mixed_precision"),
        "images seen": f"{results['images_seen']:,}" if results.get("images_seen") else None,
        "training time": f"{results['train_seconds'] / 60:.1f} minutes" if results.get("train_seconds") else None,
        "images a second": f"{results['images_per_second']:.1f}" if results.get("images_per_second") else None,
        "skipped steps": len(results.get("skipped_steps") or []) or None,
    }
    blocks = {"The run": cost, "Hardware": results.get("hardware") or {}, "Versions": results.get("versions") or {}}
    tables = {}
    for title, values in blocks.items():
        rows = [
            [key.replace("_gib", "_GiB").replace("_", " "), str(value)]
            for key, value in values.items()
            if value is not None
        ]
        if rows:
            tables[title] = Table(("what", "value"), rows)
    return tables
