"""Ports for servers that are started as processes, perhaps again and again on the same one."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

_LOWEST = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_luck = random.SystemRandom()  # not that of the tests, which begins anew with each: runs beside each other would meet
_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has now, that were not given before, and that the system gives to no client.

    A port that it might give away is gone when a client has it while the server is being started again; one that looks
    for the server may even get the port that it is looking for, and be connected to itself.
    """
    first_of_clients = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            port = _luck.randrange(_LOWEST, max(first_of_clients, 2 * _LOWEST))
            if port in _given:
                continue
            try:
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            ports.append(port)
            _given.add(port)
    return ports


def free_port() -> int:
    """One such port."""
    (port,) = free_ports(1)
    return port
