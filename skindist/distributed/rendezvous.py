"""How the processes of one attempt of a launch find each other."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from skindist.distributed.network import check_way
from skindist.launcher import check_complete, this_launch

ATTEMPT = "attempt://"


def _join_attempt(url: str, timeout: timedelta, **options: Any) -> Iterator[tuple[Any, int, int]]:
    """As env://, but with a store of each attempt's own, and over the network that leads from machine to machine.

    A launcher that restarts its workers keeps the store, and in it the addresses of those that died: whoever reads one
    before it is overwritten waits for ever.
    """
    launch = this_launch()
    check_complete(launch)
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    store = of_this_attempt(store)
    if launch.world_size > launch.local_world_size:
        check_way(store, launch)
    yield store, rank, world_size


def of_this_attempt(store: Any) -> Any:
    """A view of a launcher's store in which a restarted attempt sees nothing of those before it."""
    return PrefixStore(f"attempt-{this_launch().attempt}", store)


register_rendezvous_handler(ATTEMPT.removesuffix("://"), _join_attempt)  # type: ignore[no-untyped-call]
