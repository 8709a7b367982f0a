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
    store, rank, world_size = _meet(timeout)
    launch = this_launch()
    if launch.world_size > launch.local_world_size:
        check_way(store, launch)
    yield store, rank, world_size


def tell_machines(mistake: str) -> None:
    """Tell the processes of all machines why this one does not join them, and wait until they have joined or told.

    Raises:
        UserError: as on those that join.
    """
    check_way(_meet(timedelta(minutes=1))[0], this_launch(), mistake)


def _meet(timeout: timedelta) -> tuple[Any, int, int]:
    """The store of this attempt, rank and world size."""
    check_complete(this_launch())
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    return of_this_attempt(store), rank, world_size


def of_this_attempt(store: Any) -> Any:
    """A view of a launcher's store in which a restarted attempt sees nothing of those before it."""
    return PrefixStore(f"attempt-{this_launch().attempt}", store)


register_rendezvous_handler(ATTEMPT.removesuffix("://"), _join_attempt)  # type: ignore[no-untyped-call]
