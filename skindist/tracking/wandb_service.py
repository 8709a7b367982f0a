"""The process that wandb starts beside ours, held to time limits: when one is over it is killed, and whatever waits for
it fails at once. And what W&B's variables say: whether to be online, and under which names."""

import netrc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from skindist.config import Config, TrackingConfig

GRACE = 10.0  # seconds for a call of W&B, beside what it is told to take itself


class Notices:
    """Takes what W&B says on the terminal; notes whether it has given up uploading."""

    def __init__(self) -> None:
        self.gave_up = False

    def warning(self, message: str) -> None:
        """Called by W&B."""
        self.gave_up |= "Fatal error while uploading" in message

    debug = info = error = warning


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Kill W&B's service when the block takes longer: calls that wait for it fail.

    Raises:
        TimeoutError: the time was over.
    """
    over = threading.Event()

    def end() -> None:
        over.set()
        kill_service()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception:
        if not over.is_set():
            raise
    finally:
        timer.cancel()
    if over.is_set():
        raise TimeoutError(f"no answer within {seconds:.0f} s")


def kill_service() -> None:
    """End the service process that wandb started for this process, if there is one."""
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            if child.name() == "wandb-core":
                child.kill()
                child.wait(GRACE)


def teardown() -> None:
    """Let wandb forget its service, in whatever state it is."""
    import wandb

    with suppress(Exception, SystemExit):  # it exits with the status of a service that was killed
        wandb.teardown()


def synced_mark(record: Path) -> Path:
    """The empty file by which `wandb sync` knows a .wandb file that was uploaded."""
    return record.with_name(f"{record.name}.synced")


def wandb_mode(asked: str) -> str:
    """online, offline or disabled: "auto" follows WANDB_DISABLED and WANDB_MODE, else is online where an API key is
    found."""
    if asked != "auto":
        return asked
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    if mode := os.environ.get("WANDB_MODE"):
        return {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline"}.get(mode, "disabled")
    return "online" if _has_key() else "offline"


def names_there(config: Config, wandb_id: str) -> tuple[str, str]:
    """What the run belongs to and is called there: what the config gives, else what WANDB_PROJECT and WANDB_NAME say.
    The default project counts as none."""
    project, name = config.tracking.project, config.tracking.name
    if project == TrackingConfig.project:
        project = os.environ.get("WANDB_PROJECT") or project
    return project, name or os.environ.get("WANDB_NAME") or f"{config.model.name}-{wandb_id}"


def _has_key() -> bool:
    """Look where `wandb login` and CI systems put it; wandb's own look-up would ask the server and wait for it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    host = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
