"""Ports of this machine."""

import contextlib
import socket
from typing import Final

from metering.errors import ConfigurationError

HOST: Final = "127.0.0.1"


def free_port(wanted: int = 0) -> int:
    """Return `wanted` if nobody listens on it, else a port that is free now."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            # As the servers do: an old connection in TIME_WAIT blocks no port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise ConfigurationError("no free port")
