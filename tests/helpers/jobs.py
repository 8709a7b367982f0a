"""What the ranks of a test do; they return plain values, and the tests compare those between ranks and group sizes."""

import ctypes
import gc
import hashlib
import importlib
import importlib.util
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import torch
import yaml
from torch import nn

from skindist.cli import main, show_log, train
from skindist.config import CheckpointConfig, Config
from skindist.data.listing import Item
from skindist.data.loading import Batch, heed_only_the_parent
from skindist.distributed import buffers, ending, group, host
from skindist.distributed.contact import Contact
from skindist.errors import OutOfMemory, Stopped, TrainingError, UserError
from skindist.inference import batches, evaluation
from skindist.inference.table import GrowingTable, Row
from skindist.launcher import side_by_side
from skindist.parsing import parse_config
from skindist.prediction.evaluate import evaluate
from skindist.run.folder import Run
from skindist.run.lock import RunLock
from skindist.run.opening import prepare_data
from skindist.training import engine, interruption, trainer
from skindist.training.engine import set_train_mode, train_step
from skindist.training.interruption import Interruptions
from skindist.training.learner import Learner
from skindist.training.rehearsal import warm_up
from skindist.training.saving import Saver
from tests.helpers.commands import TINY
from tests.helpers.faults import replace

LATE = (
    "skindist.evaluation.modules", "skindist.training.results", "matplotlib.backends.backend_svg", "scipy.optimize",
    "scipy.sparse.csgraph", "scipy.stats", "faiss", "captum.attr",
)  # fmt: skip
for name in LATE:  # what a process imports when it needs it: the server has it for all ranks
    importlib.import_module(name)
parse_config([])  # it builds its parser once: a tenth of what a rank does before its first step
gc.freeze()  # it stays for good: a rank that looked for garbage in it would copy its pages


def tiny_config(data: Path, run: Path, *flags: str) -> Config:
    """The config of a run that takes seconds."""
    return parse_config([*TINY, f"--data.path={data}", f"--run.dir={run}", "--tracking.wandb=disabled", *flags])


def observe(data: Path, run: Path, *flags: str) -> dict[str, Any]:
    """What this rank loads in two epochs, predicts with the first weights, and has learnt after 5 steps."""
    config = tiny_config(data, run, *flags)
    accelerator = group.join_group()
    torch.set_num_threads(1)  # the number of threads, like the kind of device, decides the last bit of a sum
    prepared = group.decide(accelerator, prepare_data, config, Run(run))
    learner = trainer.build_learner(accelerator, config)
    loaders = trainer.build_loaders(learner, config, prepared)
    batches = loaders.train.batches
    warm_up(learner, config.data.image_size)
    for model in learner.models:
        head = head_weight(model).data  # a zero one would predict the same for every image; a GPU draws others
        head.copy_(torch.randn(head.shape, generator=torch.Generator().manual_seed(1)))

    loaded = []
    for epoch in range(2):
        loaded.append([_fingerprints(batch) for batch in loaders.train.start(epoch)[0]])
    before = evaluate(learner, loaders.val)

    set_train_mode(learner.model, config.keeps_statistics)
    losses: list[float] = []
    micro_batches, sizes = loaders.train.start(0)
    for step, size in enumerate((sizes * 2)[:5]):
        if step == len(sizes):
            micro_batches, _ = loaders.train.start(1)
        mine = list(islice(micro_batches, batches.passes(size)[batches.rank]))
        losses.append(
            accelerator.reduce(train_step(learner, mine, size, step, config, loaders.train.class_weights_K))[0].item()
        )
    buffers.average_buffers(accelerator, learner.models)
    after = evaluate(learner, loaders.val)
    result = {
        "loaded": loaded,
        "train_ids": batches.ids.tolist(),
        "first_logits": before.logits.tolist(),
        "probabilities": after.probabilities.tolist(),
        "losses": losses,
        "weights": {name: tensor.cpu().numpy() for name, tensor in learner.module.state_dict().items()},
        "backend": str(accelerator.distributed_type),
    }
    group.leave_group(accelerator)
    return result


def prepare(data: Path, run: Path, *flags: str) -> dict[str, Any]:
    """What this rank knows of a folder: the rows, what was left out, and the pixels of every image."""
    config = tiny_config(data, run, *flags)
    accelerator = group.join_group()
    prepared = group.decide(accelerator, prepare_data, config, Run(run))
    learner = trainer.build_learner(accelerator, config)
    images: Any = trainer.build_loaders(learner, config, prepared).val.loader.dataset
    images = images.__getitems__([(0, sample_id) for sample_id in range(len(prepared.rows))])
    pixels = hashlib.sha256(images.images_BCHW.numpy().tobytes()).hexdigest()
    group.leave_group(accelerator)
    return {"rows": prepared.rows, "quarantine": prepared.quarantine, "pixels": pixels}


def head_weight(module: nn.Module) -> torch.Tensor:
    """The weight of a timm model's classifier."""
    head: Any = module
    weight: torch.Tensor = head.get_classifier().weight
    return weight


def _fingerprints(batch: Batch) -> list[tuple[int, str]]:
    looks = zip(batch.images_BCHW, batch.colours_B2C, strict=True)
    pixels = [hashlib.sha256(image.numpy().tobytes() + colour.numpy().tobytes()).hexdigest() for image, colour in looks]
    return list(zip(batch.ids_B.tolist(), pixels, strict=True))


def fit(data: Path, run: Path, *flags: str) -> dict[str, Any]:
    """A whole run."""
    return trainer.fit(tiny_config(data, run, *flags))


def evaluate_elsewhere(model: Path, data: Path, out: Path, *flags: str) -> int:
    """The exit status of `skindist evaluate`, in small batches, so that each rank has some, and with the number of
    threads that decides the last bits."""
    torch.set_num_threads(1)
    replace(evaluation, "BATCH", 8)
    return main(["evaluate", str(model), str(data), f"--out={out}", *flags])


def predict_files(model: Path, images: Path, out: Path, die_after: int | None, *flags: str) -> int:
    """The exit status of `skindist predict`; the main process is killed once rows were saved so often."""
    replace(batches, "AHEAD", 1)  # so that there are several savings
    saved = itertools.count(1)

    def append(table: GrowingTable, rows: Any) -> None:
        original(table, rows)
        if next(saved) == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    original = GrowingTable.append
    replace(GrowingTable, "append", append)
    return main(["predict", str(model), str(images), f"--out={out}", *flags])


def batches_of(count: int, first: int) -> list[list[Any]]:
    """For each of so many files, by `batches.in_order` on several threads: its name, its batch, and the threads that
    computed that."""

    def reader(start: int, items: Sequence[Item]) -> list[Row]:
        return [[item.name, start, len(items), torch.get_num_threads()] for item in items]

    accelerator = group.join_group()
    torch.set_num_threads(3)
    files = (Item(str(number), "") for number in range(first, count))
    rows = batches.in_order(accelerator, reader, files, first, batch=4, threads=3)
    return [list(row) for row in itertools.chain.from_iterable(rows)]


def fit_aloud(data: Path, run: Path, *flags: str) -> dict[str, Any]:
    """A whole run, which says what it does."""
    show_log()
    return fit(data, run, *flags)


def fit_until(step: int, data: Path, run: Path, *flags: str) -> list[list[int]]:
    """A run that dies on every rank after the checkpoint of `step`; returns the ids of the batches it trained on."""
    return _fit(data, run, flags, dies_after=step)


def fit_and_watch(data: Path, run: Path, *flags: str) -> list[list[int]]:
    """A whole run; returns the ids of each batch that this rank trained on."""
    return _fit(data, run, flags, dies_after=None)


def _fit(data: Path, run: Path, flags: tuple[str, ...], dies_after: int | None) -> list[list[int]]:
    original_save, original_step, seen = Saver.save, engine.train_step, []

    def save_and_die(self: Any, state: Any, *args: Any) -> None:
        original_save(self, state, *args)
        if state.global_step == dies_after:
            raise TrainingError("died on purpose")

    def watch(learner: Any, micro_batches: Any, *args: Any) -> Any:
        seen.append([sample_id for batch in micro_batches for sample_id in batch.ids_B.tolist()])
        return original_step(learner, micro_batches, *args)

    replace(Saver, "save", save_and_die)
    replace(engine, "train_step", watch)
    try:
        trainer.fit(tiny_config(data, run, *flags))
    except TrainingError:
        return seen
    assert dies_after is None, "the run ended before it could die"
    return seen


def steps_saved(steps: int, seconds_a_step: list[float], signal_at: dict[int, int]) -> list[Any]:
    """The steps after which this rank saves when it is to do so every minute, by a clock of its own; it may send
    itself SIGTERM at a step. The last entry is the exit status that ends it."""
    accelerator = group.join_group()
    rank, now, saved = accelerator.process_index, [0.0], []
    replace(interruption, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Interruptions(Config(checkpoint=CheckpointConfig(every_minutes=1.0)), accelerator, RunLock()) as interruptions:
        for step in range(1, steps + 1):
            now[0] += seconds_a_step[rank]
            if signal_at.get(rank) == step:
                signal.raise_signal(signal.SIGTERM)
            if interruptions.should_save(step):
                saved.append(step)
            try:
                interruptions.stop_if_agreed()
            except Stopped as stop:
                return [*saved, stop.status]
    return [*saved, 0]


def questions(calls: list[str], seconds_a_call: list[float]) -> list[int]:
    """The calls, from 1, at which this rank asks all ranks, by a clock of its own; each call is a step or a batch."""
    accelerator = group.join_group()
    rank, now, asked, number = accelerator.process_index, [0.0], list[int](), 0
    original = host.ask_largest

    def ask_largest(values: torch.Tensor) -> Any:
        asked.append(number)
        return original(values)

    replace(host, "ask_largest", ask_largest)
    replace(interruption, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Interruptions(Config(), accelerator, RunLock()) as interruptions:
        for number, call in enumerate(calls, start=1):
            now[0] += seconds_a_call[rank]
            if call == "step":
                interruptions.should_save(number)
            else:
                interruptions.should_stop()
    return asked


def steps_ahead(steps: int) -> int:
    """The steps that rank 0 takes while rank 1, after its second one, waits until it has taken them all."""
    accelerator = group.join_group(timeout_minutes=1 / 12)
    store, now = torch.distributed.distributed_c10d._get_default_store(), [0.0]
    replace(interruption, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Interruptions(Config(), accelerator, RunLock()) as interruptions:
        for step in range(1, steps + 1):
            now[0] += 1 / 32
            if (accelerator.process_index, step) == (1, 3):
                store.wait(["taken"], timedelta(minutes=2))
            interruptions.should_save(step)
    store.set("taken", "yes")
    group.leave_group(accelerator)
    return step


def status_after_a_signal_in_evaluation(data: Path, run: Path, *flags: str) -> int:
    """The exit status of a run that rank 1 (or the only one) sends SIGTERM when it evaluates for the second time."""
    original, evaluations, before = Learner.to_device, [0], [True]

    def to_device(self: Any, batch: Batch) -> Any:
        evaluations[0] += before[0] and not self.module.training
        before[0] = self.module.training
        if evaluations[0] == 2 and os.environ.get("RANK", "1") == "1":
            evaluations[0] += 1
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch)

    replace(Learner, "to_device", to_device)
    return train([*TINY, f"--data.path={data}", f"--run.dir={run}", "--tracking.wandb=disabled", *flags])


def status_with_flags_of_its_own(flags: list[list[str]]) -> int:
    """Train, each rank with its own flags, as on machines where they were typed one by one."""
    return train(flags[int(os.environ["RANK"])])


def status_on_a_machine_of_its_own(flags: list[list[str]]) -> int:
    """The same, as the one process of its machine."""
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return status_with_flags_of_its_own(flags)


def status_in(precision: str, flags: list[str]) -> int:
    """The exit status of a launch that asks for a precision."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    return train(flags)


def fit_in_bf16(data: Path, run: Path, dies_after: int | None, *flags: str) -> list[list[int]]:
    """As `fit_and_watch`, or as `fit_until`, in bf16."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    return _fit(data, run, flags, dies_after)


def fit_in_little_memory(data: Path, run: Path, *flags: str) -> dict[str, Any]:
    """A whole run where rank 1 alone has room for 2 images; returns the largest micro-batch that this rank trained on,
    the results, and what the run's config says."""
    original, room = Learner.to_device, 2 if os.environ["RANK"] == "1" else 100
    seen = [0]

    def to_device(self: Any, batch: Batch) -> Any:
        if self.module.training and not torch.is_inference_mode_enabled():
            if len(batch.ids_B) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            seen.append(len(batch.ids_B))
        return original(self, batch)

    replace(Learner, "to_device", to_device)
    results = fit(data, run, *flags)
    saved = yaml.safe_load((run / "config.yaml").read_text())["train"]["micro_batch_size"]
    return {"largest": max(seen), "results": results, "saved": saved}


def timeouts(minutes: float) -> list[Any]:
    """The limits of the default group, the prompt and the patient one, and the groups before and after decisions."""
    accelerator = group.join_group(timeout_minutes=minutes)
    groups: list[Any] = [torch.distributed.group.WORLD, *host._groups]
    before = torch.distributed.get_pg_count()
    for _ in range(3):
        group.decide(accelerator, lambda: 1, may_take_hours=True)
        group.on_each_machine(accelerator, lambda: 1)
    limits = [each._get_backend(torch.device("cpu")).options._timeout for each in groups]
    return [limits, before, torch.distributed.get_pg_count()]


def threads_of(cores: int, at_once: int = 1) -> tuple[int, bool, list[str]]:
    """A rank's threads on a machine of so many cores, which so many launches share and where nobody named a number;
    whether its environment names one then, and what Python warned of."""
    os.environ.pop("OMP_NUM_THREADS")
    os.environ.update(side_by_side({}, 0, at_once, cores, gpus=0))
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    replace(group, "available_cores", lambda: cores)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        group.join_group()
    return torch.get_num_threads(), "OMP_NUM_THREADS" in os.environ, [str(warning.message) for warning in warned]


def gathered(rows: list[list[list[float]]]) -> tuple[list[list[float]], int]:
    """The rows of all ranks together, given those of each, and the objects of more than 100 bytes pickled for it."""
    accelerator = group.join_group()
    mine = torch.tensor(rows[accelerator.process_index], dtype=torch.float64).reshape(-1, 3)
    pickled: list[int] = []
    original_gather = torch.distributed.all_gather_object

    def all_gather_object(parts: list[Any], part: Any, group: Any = None) -> None:
        pickled.append(len(pickle.dumps(part)))
        original_gather(parts, part, group=group)

    replace(torch.distributed, "all_gather_object", all_gather_object)
    together = host.gather_rows(mine)
    assert together.dtype == torch.float64
    return together.tolist(), sum(size > 100 for size in pickled)


class OnADevice:
    """Looks like a tensor on a GPU that waits for ever: whoever reads it hangs."""

    device = torch.device("cuda")
    read = False

    def cpu(self) -> torch.Tensor:
        self.read = True
        return torch.zeros(1)


def reads_from_a_device(gone: str) -> list[Any]:
    """Rank 1 hangs, or is killed; what rank 0 says then, whether it has read from its device, and after how long."""
    accelerator = group.join_group(timeout_minutes=1 / 30)
    store = torch.distributed.distributed_c10d._get_default_store()
    if accelerator.process_index == 1:
        if gone == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        store.wait(["seen"], timedelta(minutes=2))
        os._exit(0)
    tensor: Any = OnADevice()
    began = time.monotonic()
    try:
        host.sum_ranks(tensor)
        error = None
    except RuntimeError as caught:
        error = caught
    seconds = time.monotonic() - began
    store.set("seen", "yes")
    return [tensor.read, error is not None and ending._lost_contact(error), seconds]


def waits_for_a_device(what: str) -> None:
    """Rank 1 is killed, raises or hangs. The others' main threads are deep in the system, where no Python runs."""
    accelerator = group.join_group()
    sleep = ctypes.CDLL(None).sleep  # unlike Python's, it heeds no signal of ours

    def wait() -> None:
        with Contact(torch.device("cuda"), 1 / 30) as contact:
            host.meet()
            if accelerator.process_index == 1:
                if what == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if what == "raises":
                    raise OutOfMemory("out of memory with 8 images")
            elif what == "hangs":
                contact.beat()
            sleep(600)

    os._exit(ending.together(wait))


def leaves_contact() -> float:
    """How long it takes to leave a contact after a second and a half, in seconds."""
    accelerator = group.join_group()
    with Contact(torch.device("cuda"), 1.0) as contact:
        for _ in range(3):
            contact.beat()
            time.sleep(0.5)
        began = time.monotonic()
    seconds = time.monotonic() - began
    group.leave_group(accelerator)
    return seconds


def benchmark_training(data: Path) -> None:
    """`launch/benchmark.py --only training`, with little to do."""
    names = ("benchmark", "benchmarks.measuring", "benchmarks.steps")
    benchmark, measuring, steps = map(cast(Any, importlib.import_module), names)
    measuring.BATCH = steps.BATCH = 4
    measuring.side_by_side.__defaults__ = (1,)
    measuring.training_loader.__defaults__ = (None, 32, 0, 1)
    sys.argv = ["launch/benchmark.py", f"--data={data}", "--only=training"]
    benchmark.main()


def warm_up_without_memory(data: Path, run: Path, *flags: str) -> int:
    """The exit status of a run in which rank 1 has no room for the passes before training."""
    original = Learner.to_device

    def to_device(self: Any, batch: Batch) -> Any:
        if len(batch.ids_B) == 2 and os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, batch)

    replace(Learner, "to_device", to_device)
    return train([*TINY, f"--data.path={data}", f"--run.dir={run}", "--tracking.wandb=disabled", *flags])


def status_when_a_loader_worker_dies(killer: int, data: Path, run: Path, *flags: str) -> int:
    """The exit status of a run whose loader worker is killed before the second step."""
    original, steps = engine.train_step, itertools.count()

    def train_step(*args: Any) -> Any:
        if next(steps) == 1:
            for worker in psutil.Process().children():
                worker.send_signal(killer)
                while worker.status() != psutil.STATUS_ZOMBIE:  # not waited for: torch is to see it, and its batches
                    time.sleep(0.01)
        return original(*args)

    replace(engine, "train_step", train_step)
    more = ["--data.num_workers=1", "--train.batch_size=2", "--tracking.wandb=disabled"]  # more steps than are ready
    return train([*TINY, f"--data.path={data}", f"--run.dir={run}", *more, *flags])


def leave_an_orphan(pipe: Path) -> None:
    """A process that dies while a loader worker of its own begins; that one says whether it lives on."""
    me = os.getpid()

    def begin() -> None:
        with pipe.open("w") as words:
            while os.getppid() == me:
                time.sleep(0.01)
            heed_only_the_parent(0)
            words.write("lives on")

    multiprocessing.get_context("fork").Process(target=begin).start()
    os.kill(me, signal.SIGKILL)


def joins_twice() -> list[int]:
    """What the main process decides in two runs, of which the first one fails and does not leave its group."""
    decided = []
    for _ in range(2):
        accelerator = group.join_group()
        decided.append(group.decide(accelerator, int, accelerator.process_index))
    group.leave_group(accelerator)
    return decided


def one_decision(values: list[float]) -> list[Any]:
    """Each rank has an opinion; the main process's counts, an error of its is everyone's.

    Returns:
        What was decided, what `on_main` gave to this rank, and what each of the two refused.
    """
    accelerator = group.join_group()
    mine = values[accelerator.process_index]
    decided = group.decide(accelerator, lambda: mine)

    def refuse() -> None:
        raise UserError("no such folder")

    kept = group.on_main(accelerator, lambda: mine)
    refusals = []
    for run_there in (group.decide, group.on_main):
        try:
            run_there(accelerator, refuse)
        except UserError as error:
            refusals.append(str(error))
    return [decided, kept, *refusals]
