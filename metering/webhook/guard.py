"""Which addresses a webhook may go to, and connections that go nowhere else.

A tenant chooses the URL of a receiver, and the worker stands inside the operator's network. So
names are resolved here, every address is checked, and the connection is made to a checked address:
a name that resolves to another address a moment later changes nothing. TLS still verifies the name.
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

# The registries of special-purpose addresses, written out: the ones in `ipaddress` change with the
# patch release of Python.
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
# It contains all public IPv6 addresses, and none that is loopback, unique local, link-local,
# multicast, mapped or translated.
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
# How a network without IPv4 shows an IPv4 host.
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
    """Tell whether `address` is this machine."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return parsed in _LOOPBACK_V4 if isinstance(parsed, IPv4Address) else parsed == _LOOPBACK_V6


@dataclass(frozen=True, slots=True)
class Reach:
    """Which addresses a webhook may go to in addition to public ones."""

    loopback: bool = False
    private: bool = False

    def holds(self, address: str) -> bool:
        """Tell whether a webhook may go to `address`."""
        return self.private or is_public(address) or (self.loopback and is_loopback(address))

    def refusal_of(self, url: str) -> str | None:
        """Return why the address in `url` is never called. Resolves no name.

        Returns None if it may be called, or is no URL.
        """
        return self._refusal(url, addresses_in)

    def refusal_now(self, url: str) -> str | None:
        """Return why a call to `url` would be refused now. Resolves the name.

        Returns None also if the name cannot be resolved, because later it may be.
        """
        return self._refusal(url, lambda host: addresses_in(host) or _addresses(host, 0))

    def _refusal(self, url: str, resolve: Callable[[str], Iterable[str]]) -> str | None:
        try:
            found = resolve(httpx.URL(url).host)
        except (httpx.InvalidURL, ValueError, UnresolvedHostError):
            return None
        return None if all(map(self.holds, found)) else _REFUSED


def addresses_in(host: str) -> list[str]:
    """Return the address that a host spells out, in any spelling; nothing for a name."""
    if host.rstrip(".").lower().rpartition(".")[2] == "localhost":
        return ["127.0.0.1"]
    try:
        rows = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []
    return [str(row[4][0]) for row in rows]


def is_this_machine(url: str) -> bool:
    """Tell whether the host of a URL is this very machine, without a resolver."""
    try:
        named = addresses_in(httpx.URL(url).host)
    except (httpx.InvalidURL, ValueError):
        return False
    return bool(named) and all(map(is_loopback, named))


def _is_public_v4(address: IPv4Address) -> bool:
    return address.is_global and not any(address in network for network in _SPECIAL_V4)


def _is_public_v6(address: IPv6Address) -> bool:
    return (
        address in _GLOBAL_V6
        and address.is_global
        and not any(address in network for network in _SPECIAL_V6)
    )


def system_resolver(threads: Executor) -> Resolve:
    """Return a resolver that asks the system, on its own `threads`.

    An event loop waits for its own threads when it ends, so a name server that does not answer
    would hold it beyond every deadline.
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
    """A network that connects only to addresses within reach."""

    def __init__(
        self, resolve: Resolve, *, reach: Reach, network: httpcore.AsyncNetworkBackend | None = None
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
        """Connect to a checked address of `host`.

        Raises: UnresolvedHostError if the name has no address. RefusedAddressError if one of its
        addresses is out of reach. httpcore.ConnectError or ConnectTimeout if none of them accepts.
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
        """Resolve a name. One bad address among good ones is an attack: all are refused."""
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
        """Refuse, because no receiver is a file of this machine."""
        raise RefusedAddressError

    async def sleep(self, seconds: float) -> None:
        """Wait, as the network below does."""
        await self._network.sleep(seconds)
