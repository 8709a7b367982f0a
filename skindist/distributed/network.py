"""The way from machine to machine: which network interface gloo uses, and whether the others are reached over it."""

import ipaddress
import os
import socket
from contextlib import suppress
from typing import Any

import psutil

from skindist.errors import UserError
from skindist.launcher import Launch

INTERFACE = "GLOO_SOCKET_IFNAME"
OF_NCCL = "NCCL_SOCKET_IFNAME"
ELSEWHERE = "192.0.2.1"  # an address that no machine has: nothing is sent there, it shows the way out
NO_WAY = "nowhere 0"
REMEDY = (
    f"Set {INTERFACE} on every machine to the interface that leads to the others (ip -brief address lists them), and "
    "let its firewall pass"
)
ANSWER = 10.0  # seconds for a machine that is there


def choose_interface(first: str) -> str:
    """Let gloo and NCCL use the network interface that leads to the first machine, unless the user names one. Gloo
    would take the address that this machine's own name means, which on Debian is 127.0.1.1: others cannot reach that.

    Args:
        first: name or address of the first machine.

    Returns:
        This machine's address there.

    Raises:
        UserError: no such interface is found.
    """
    addresses = {
        address.address: name
        for name, found in psutil.net_if_addrs().items()
        for address in found
        if address.family in (socket.AF_INET, socket.AF_INET6) and "%" not in address.address
    }
    if asked := os.environ.get(INTERFACE):
        for address, name in addresses.items():
            if name == asked.split(",")[0]:
                _tell_nccl(name)
                return address
        raise UserError(f"{INTERFACE} {asked}: this machine has no such network interface with an address")
    outward = [address for address in addresses if not ipaddress.ip_address(address).is_loopback]
    # The first machine may be given by a name that means 127.0.1.1 to itself, and have no way to anywhere else.
    if not outward:  # alone in the world
        return next(iter(addresses))
    for address in (_own_address(first), _own_address(ELSEWHERE), *outward[: len(outward) == 1]):
        if address in outward:
            os.environ[INTERFACE] = addresses[address]
            _tell_nccl(addresses[address])
            return address
    raise UserError(f"no network interface of this machine leads to {first}")


def _tell_nccl(interface: str) -> None:
    """Let NCCL use it, too, unless the user names one: it would take the first one that it finds."""
    os.environ[OF_NCCL] = os.environ.get(OF_NCCL) or f"={interface}"  # "=": not all whose names begin so


def _own_address(target: str) -> str:
    """The address that this machine would send from; "" if it knows no way."""
    with suppress(OSError):
        for family, kind, _, _, there in socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as sender:
                sender.connect(there)  # sends nothing yet
                return str(sender.getsockname()[0])
    return ""


def check_way(store: Any, launch: Launch, mistake: str = "") -> None:
    """Let each machine try whether it reaches the next one, before gloo waits for minutes.

    Args:
        mistake: what ends this process before it joins the others, who may know nothing of it.

    Raises:
        UserError: on every process, if one does not reach the next, or has made a mistake.
    """
    me, following = launch.rank, (launch.rank + launch.local_world_size) % launch.world_size
    try:
        if mistake:
            raise UserError(mistake)
        address = choose_interface(launch.address)
        with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
            store.set(f"way/{me}", f"{address} {server.getsockname()[1]}")
            fault = _fault_on_the_way(store.get(f"way/{following}").decode())
            faults = _tell(store, launch, f"it does not reach rank {following} at {fault}. {REMEDY}" if fault else "")
    except UserError as error:
        store.set(f"way/{me}", NO_WAY)
        faults = _tell(store, launch, mistake or f"{error}. {REMEDY}")
    for rank, fault in enumerate(faults):
        if fault:
            raise UserError(f"rank {rank}: {fault}")


def _fault_on_the_way(there: str) -> str:
    """What is wrong with the way to "address port"; "" if nothing is."""
    address, port = there.split()
    try:
        if there != NO_WAY:  # else that machine has a fault to tell
            socket.create_connection((address, int(port)), timeout=ANSWER).close()
        return ""
    except OSError as error:
        return f"{address} ({error})"


def _tell(store: Any, launch: Launch, fault: str) -> list[str]:
    """Tell all processes of a fault; return those of all, "" where there is none."""
    store.compare_set(f"fault/{launch.rank}", "", f"fault: {fault}")  # the first one: others may still read it
    faults = [store.get(f"fault/{rank}").decode().removeprefix("fault: ") for rank in range(launch.world_size)]
    store.set(f"told/{launch.rank}", "yes")
    if launch.rank == 0:  # its end may take the store away
        store.wait([f"told/{rank}" for rank in range(launch.world_size)])
    return faults
