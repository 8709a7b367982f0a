"""Commands as users type them, and the flags of a run that takes a second."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch",
    f"--config_file={ROOT / 'accelerate_config.yaml'}", "--main_process_port=0",
]  # fmt: skip
PATIENCE = 600
"""Seconds that a command may take, even where a start takes ten times as long as usual; what takes more hangs."""
TINY = [
    "--model.name=test_resnet",
    "--model.pretrained=false",
    "--data.image_size=32",
    "--data.fractions=[0.6,0.2,0.2]",
    "--train.batch_size=12",
    "--train.epochs=2",
    "--train.log_every=2",
    "--evaluation.views=1",
]
"""Flags of a run that takes a second of training."""


def flags(demo: Path, run: Path, *more: str) -> list[str]:
    """Those of such a run, in its folder."""
    return [*TINY, f"--data.path={demo}", f"--run.dir={run}", *more]


def run(*command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; it must come."""
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def launch(processes: int, *words: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run launch/train.py to its end under `accelerate launch`, which may have options of its own."""
    return run(*LAUNCH, *options, f"--num_processes={processes}", ROOT / "launch/train.py", *words)
