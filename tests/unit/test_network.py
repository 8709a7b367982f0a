"""Which network interface leads to the first machine, on machines that are made up."""

import os
import socket
from types import SimpleNamespace

import psutil
import pytest

from skindist.distributed import network
from skindist.distributed.network import INTERFACE, OF_NCCL, choose_interface
from skindist.errors import UserError

LO, ETH0, ETH1 = ("lo", "127.0.0.1"), ("eth0", "10.0.0.1"), ("eth1", "192.168.7.1")


def chosen(
    monkeypatch: pytest.MonkeyPatch, interfaces: list[tuple[str, str]], ways: dict[str, str], asked: str = ""
) -> tuple[str, str]:
    """The address and the interface, on a machine with these interfaces that sends to others from these addresses."""
    found = {name: [SimpleNamespace(family=socket.AF_INET, address=address)] for name, address in interfaces}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(network, "_own_address", lambda target: ways.get(target, ""))
    monkeypatch.setenv(INTERFACE, asked)
    monkeypatch.setenv(OF_NCCL, os.environ.get(OF_NCCL, ""))
    return choose_interface("first"), os.environ[INTERFACE]


def test_the_interface_that_leads_to_the_first_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, [LO, ETH0, ETH1], {"first": "192.168.7.1"}) == ("192.168.7.1", "eth1")


def test_the_first_machine_whose_name_means_127_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out, or the only interface there is."""
    ways = {"first": "127.0.0.1", network.ELSEWHERE: "10.0.0.1"}
    assert chosen(monkeypatch, [LO, ETH0, ETH1], ways) == ("10.0.0.1", "eth0")
    assert chosen(monkeypatch, [LO, ETH1], {"first": "127.0.0.1"}) == ("192.168.7.1", "eth1")
    with pytest.raises(UserError, match="no network interface of this machine leads to first"):
        chosen(monkeypatch, [LO, ETH0, ETH1], {"first": "127.0.0.1"})


def test_what_the_user_names_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, [LO, ETH0, ETH1], {"first": "10.0.0.1"}, "eth1") == ("192.168.7.1", "eth1")
    with pytest.raises(UserError, match=f"{INTERFACE} eth9: this machine has no such network interface"):
        chosen(monkeypatch, [LO, ETH0], {}, "eth9")


def test_nccl_takes_the_same_unless_the_user_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen(monkeypatch, [LO, ETH0, ETH1], {"first": "192.168.7.1"})
    assert os.environ[OF_NCCL] == "=eth1"
    monkeypatch.setenv(OF_NCCL, "ib0,ib1")
    chosen(monkeypatch, [LO, ETH0], {}, "eth0")
    assert os.environ[OF_NCCL] == "ib0,ib1"
    monkeypatch.delenv(OF_NCCL)
    chosen(monkeypatch, [LO, ETH0], {}, "eth0")
    assert os.environ[OF_NCCL] == "=eth0"


def test_a_machine_without_a_network_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, [LO], {}) == ("127.0.0.1", "")


def test_the_address_that_this_machine_sends_from() -> None:
    assert network._own_address("127.0.0.1") == "127.0.0.1"
    assert network._own_address("no such machine.invalid") == ""
