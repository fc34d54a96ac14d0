"""The addresses that a webhook may go to; names that resolve to others, at once or a moment later.

No sockets: the network below the guard is a fake that records where it connects.
"""

import asyncio
from collections.abc import Iterable, Sequence

import httpcore
import pytest

from metering.errors import RefusedAddressError, UnresolvedHostError
from metering.webhook.guard import (
    ADDRESSES_TRIED_MAX,
    GuardedBackend,
    Reach,
    Resolve,
    SocketOption,
    is_public,
)
from metering.webhook.send import Call, Flight, HttpSender

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.1",
    "2606:4700:4700::1111",
    "2a00:1450:4001:81b::200e",
    "64:ff9b::8.8.8.8",  # a public IPv4 host, seen through NAT64
]
NOT_PUBLIC = [
    "0.0.0.0",  # noqa: S104
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",  # metadata of a cloud, in carrier-grade NAT
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.7",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::10.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:8.8.8.8",  # no name server answers so
    "::ffff:0:10.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::10.0.0.1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:0a00:0001::1",  # 6to4 of 10.0.0.1
    "2002:7f00:0001::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700:4700::1111%eth0",
    "fec0::1",
    "ff02::1",
    "",
    "localhost",
    "0x7f.1",
    "2130706433",
    "127.1",
]


class Recorder(httpcore.AsyncNetworkBackend):
    """Records the addresses of connections. Addresses in `dead` refuse."""

    def __init__(self, dead: Sequence[str] = ()) -> None:
        self.connected: list[str] = []
        self.dead = dead

    async def connect_tcp(
        self,
        host: str,
        port: int,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002, ASYNC109
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[SocketOption] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        self.connected.append(host)
        if host in self.dead:
            raise httpcore.ConnectError
        return httpcore.AsyncMockStream([b"HTTP/1.1 204 No Content\r\n\r\n"])


def answers(*rounds: Sequence[str]) -> Resolve:
    """A name server with a different answer each time. The last answer repeats."""
    left = list(rounds)

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(0)
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


def connect(resolve: Resolve, network: Recorder, *, allow_private: bool = False) -> None:
    guard = GuardedBackend(resolve, reach=Reach(private=allow_private), network=network)
    asyncio.run(guard.connect_tcp("receiver.example", 443, timeout=1))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_all_other_addresses_are_refused(address: str) -> None:
    assert not is_public(address)


def test_the_connection_goes_to_the_checked_address_not_to_the_name() -> None:
    network = Recorder()
    connect(answers(["93.184.216.34"], ["127.0.0.1"]), network)

    assert network.connected == ["93.184.216.34"]


def test_a_name_that_changes_to_a_private_address_is_refused() -> None:
    network = Recorder()
    resolve = answers(["93.184.216.34"], ["169.254.169.254"])
    connect(resolve, network)

    with pytest.raises(RefusedAddressError):
        connect(resolve, network)
    assert network.connected == ["93.184.216.34"]


def test_a_name_with_one_private_address_is_refused() -> None:
    network = Recorder()
    with pytest.raises(RefusedAddressError) as refusal:
        connect(answers(["93.184.216.34", "::ffff:10.0.0.1"]), network)

    assert network.connected == []
    assert "10.0.0.1" not in str(refusal.value)


def test_private_addresses_can_be_allowed() -> None:
    network = Recorder()
    connect(answers(["127.0.0.1"]), network, allow_private=True)

    assert network.connected == ["127.0.0.1"]


def test_the_next_address_is_tried_after_a_dead_one_up_to_a_limit() -> None:
    network = Recorder(dead=["1.1.1.1"])
    connect(answers(["1.1.1.1", "8.8.8.8"]), network)
    assert network.connected == ["1.1.1.1", "8.8.8.8"]

    many = [f"1.1.1.{last}" for last in range(50)]
    network = Recorder(dead=many)
    with pytest.raises(httpcore.ConnectError):
        connect(answers(many), network)
    assert len(network.connected) == ADDRESSES_TRIED_MAX


def test_the_error_says_that_a_name_has_no_address() -> None:
    with pytest.raises(UnresolvedHostError):
        connect(answers([]), Recorder())


def test_a_socket_file_is_refused_as_a_receiver() -> None:
    guard = GuardedBackend(answers([]), reach=Reach(private=True), network=Recorder())
    with pytest.raises(RefusedAddressError):
        asyncio.run(guard.connect_unix_socket("/run/docker.sock"))


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1/", "http://[::1]/", "http://[::ffff:10.0.0.1]/", "http://metadata.example/"],
)
def test_the_failure_of_a_refused_receiver_names_no_address(url: str) -> None:
    sender = HttpSender(timeout_s=1, resolve=answers(["10.0.0.1"]))
    with Flight[str](sender) as flight:
        flight.start("ticket", lambda _at: Call(url, (), b"{}"))
        [(_, answer)] = flight.wait(2)
    sender.close()

    assert answer.status_code is None
    assert answer.error == RefusedAddressError().message
    assert not answer.is_success


def test_a_silent_name_server_costs_no_more_than_the_deadline() -> None:
    async def never(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    sender = HttpSender(timeout_s=0.05, resolve=never)
    with Flight[str](sender) as flight:
        flight.start("ticket", lambda _at: Call("http://slow.example/", (), b""))
        [(_, answer)] = flight.wait(5)
    sender.close()

    assert answer.error == "no answer within 0.05 s"
    assert answer.duration_ms < 2000


def test_tls_verifies_the_name_although_the_connection_goes_to_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: list[str] = []

    async def start_tls(
        stream: httpcore.AsyncMockStream, *, server_hostname: str, **_: object
    ) -> httpcore.AsyncNetworkStream:
        await asyncio.sleep(0)
        names.append(server_hostname)
        return stream

    monkeypatch.setattr(httpcore.AsyncMockStream, "start_tls", start_tls)
    network = Recorder()
    sender = HttpSender(timeout_s=1, resolve=answers(["93.184.216.34"]))
    sender._backend._network = network
    with Flight[str](sender) as flight:
        flight.start("ticket", lambda _at: Call("https://bücher.example:8443/", (), b"{}"))
        [(_, answer)] = flight.wait(5)
    sender.close()

    assert answer.status_code == 204
    assert network.connected == ["93.184.216.34"]
    assert names == ["xn--bcher-kva.example"]


def test_a_call_that_cannot_be_prepared_is_a_failed_attempt() -> None:
    def broken(_at: object) -> Call:
        raise ValueError("whsec_of_someone")

    sender = HttpSender(timeout_s=1, resolve=answers([]))
    with Flight[str](sender) as flight:
        flight.start("ticket", broken)
        [(_, answer)] = flight.wait(5)
    sender.close()

    assert answer.error == "the call failed (ValueError)"


# --- receivers on this machine --------------------------------------------------------------------

HERE = ["127.0.0.1", "127.255.255.255", "::1"]
NOT_HERE = ["10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "0.0.0.0", "fe80::1"]  # noqa: S104


@pytest.mark.parametrize("address", HERE)
def test_this_machine_is_allowed_only_by_the_setting(address: str) -> None:
    assert Reach(loopback=True).holds(address)
    assert Reach(private=True).holds(address)
    assert not Reach().holds(address)


@pytest.mark.parametrize("address", NOT_HERE)
def test_other_private_addresses_stay_refused(address: str) -> None:
    assert not Reach(loopback=True).holds(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_always_allowed(address: str) -> None:
    assert Reach().holds(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9999/hook",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://017700000001/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "https://10.1.2.3/",
        "http://169.254.169.254/latest",
        "http://localhost:3000/",
        "http://LOCALHOST./",
        "http://shop.localhost/",
    ],
)
def test_a_forbidden_receiver_is_refused_without_resolving_its_name(
    url: str,
) -> None:
    assert Reach().refusal_of(url)
    assert Reach(private=True).refusal_of(url) is None


@pytest.mark.parametrize(
    "url", ["https://example.com/", "http://8.8.8.8/", "", "no url", "http://[", "http://x.invalid"]
)
def test_other_receivers_are_not_refused_for_their_address(url: str) -> None:
    assert Reach().refusal_of(url) is None
