"""Which addresses a webhook may go to, and connections that go nowhere else.

A receiver's URL is a tenant's text, and the worker stands inside the operator's network. So names
are resolved here, every answer is checked, and the connection is made to a checked address itself:
a name that resolves to something else a moment later changes nothing. TLS still verifies the name.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, TypeAlias

import httpcore
import httpx

from metering.errors import RefusedAddressError, UnresolvedHostError

# Returns the addresses of a host, as text, in the order to try them.
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
SocketOption: TypeAlias = (
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
)

# Of a host with many addresses, this many are tried.
ADDRESSES_TRIED_MAX: Final = 4
# An address that does not answer leaves time for the next one.
CONNECT_TIMEOUT_S: Final = 5.0

# The registries of special-purpose addresses, written out: what `ipaddress` knows of them changes
# with the patch release of Python.
_SPECIAL_V4: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # public by number, but a cloud's own agent for its machines
            "169.254.0.0/16",  # link-local, and the clouds' metadata
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
# All public IPv6 addresses are in here; loopback, unique local, link-local, multicast, mapped and
# translated ones are not.
_GLOBAL_V6: Final = IPv6Network("2000::/3")
_SPECIAL_V6: Final = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments, and Teredo
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: wraps any IPv4 address
            "3fff::/20",  # documentation
        ),
    )
)
_LOOPBACK_V4: Final = IPv4Network("127.0.0.0/8")
_LOOPBACK_V6: Final = IPv6Address("::1")
# What a network without IPv4 shows of a public IPv4 host.
_NAT64: Final = IPv6Network("64:ff9b::/96")

_REFUSED: Final = (
    "is not a public address: nothing is sent there, unless the operator allows it by"
    " GULLAK_WEBHOOK_ALLOW_LOOPBACK (this machine) or GULLAK_WEBHOOK_ALLOW_PRIVATE (all)"
)


def is_public(address: str) -> bool:
    """Tell whether `address` (text of IPv4 or IPv6) is a public unicast address."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return _is_public_v4(parsed)
    if parsed.scope_id is not None:
        return False
    if parsed in _NAT64:
        return _is_public_v4(IPv4Address(int(parsed) & 0xFFFF_FFFF))
    return _is_public_v6(parsed)


def is_loopback(address: str) -> bool:
    """Tell whether `address` is this very machine."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return parsed in _LOOPBACK_V4 if isinstance(parsed, IPv4Address) else parsed == _LOOPBACK_V6


@dataclass(frozen=True, slots=True)
class Reach:
    """Which addresses a webhook may go to beside public ones."""

    loopback: bool = False
    private: bool = False

    def holds(self, address: str) -> bool:
        """Tell whether a webhook may go to `address`."""
        return self.private or is_public(address) or (self.loopback and is_loopback(address))

    def refusal_of(self, url: str) -> str | None:
        """Return why no call to `url` would ever be made, as far as no name has to be resolved.

        None if it may be made, and for what is no URL.
        """
        try:
            host = httpx.URL(url).host
        except (httpx.InvalidURL, ValueError):
            return None
        named = addresses_in(host)
        return None if all(map(self.holds, named)) else _REFUSED

    def refusal_now(self, url: str) -> str | None:
        """Return why a call to `url` would be refused now; asks the system for the name.

        None also if the name cannot be resolved: it may be later.
        """
        try:
            host = httpx.URL(url).host
            named = addresses_in(host) or _addresses(host, 0)
        except (httpx.InvalidURL, ValueError, UnresolvedHostError):
            return None
        return None if all(map(self.holds, named)) else _REFUSED


def addresses_in(host: str) -> list[str]:
    """Return the addresses that a host is in itself, in any spelling; of a name there are none."""
    if host.rstrip(".").lower().rpartition(".")[2] == "localhost":
        return ["127.0.0.1"]
    try:
        rows = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []
    return [str(row[4][0]) for row in rows]


def _is_public_v4(address: IPv4Address) -> bool:
    return address.is_global and not any(address in network for network in _SPECIAL_V4)


def _is_public_v6(address: IPv6Address) -> bool:
    return (
        address in _GLOBAL_V6
        and address.is_global
        and not any(address in network for network in _SPECIAL_V6)
    )


def system_resolver(threads: Executor) -> Resolve:
    """Return a resolver that asks the system, on `threads` of its own.

    Not on the event loop's: a loop waits for its threads when it ends, and a name server that
    does not answer would hold it for longer than any deadline of ours.
    """

    async def resolve(host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        rows = await loop.run_in_executor(threads, _addresses, host, port)
        return list(dict.fromkeys(rows))

    return resolve


def _addresses(host: str, port: int) -> list[str]:
    try:
        rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UnresolvedHostError from error
    return [str(row[4][0]) for row in rows]


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """A network in which only the addresses within reach exist."""

    def __init__(
        self,
        resolve: Resolve,
        *,
        reach: Reach,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._resolve = resolve
        self._reach = reach
        self._network = network or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is the base class's
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to an address of `host` that was checked.

        Raises:
            UnresolvedHostError: the name has no address.
            RefusedAddressError: one of its addresses is out of reach.
            httpcore.ConnectError, httpcore.ConnectTimeout: none of them took the connection.

        """
        addresses = await self._checked(host, port)
        limit_s = CONNECT_TIMEOUT_S if timeout is None else min(timeout, CONNECT_TIMEOUT_S)
        last: httpcore.NetworkError | httpcore.TimeoutException | None = None
        for address in addresses[:ADDRESSES_TRIED_MAX]:
            try:
                return await self._network.connect_tcp(
                    address, port, limit_s, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        raise last or UnresolvedHostError

    async def _checked(self, host: str, port: int) -> Sequence[str]:
        """Resolve. One bad answer among good ones is enough to refuse: that is a trick."""
        addresses = await self._resolve(host, port)
        if not all(map(self._reach.holds, addresses)):
            raise RefusedAddressError
        return addresses

    async def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002 - the signature is the base class's
        timeout: float | None = None,  # noqa: ARG002, ASYNC109
        socket_options: Iterable[SocketOption] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        """Refuse: no receiver is a file of this machine."""
        raise RefusedAddressError

    async def sleep(self, seconds: float) -> None:
        """Wait, as the network below does."""
        await self._network.sleep(seconds)
