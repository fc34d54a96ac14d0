"""Addresses a webhook may go to; names that resolve to others, or to something else a moment later.

No sockets: the network below the guard is a fake that writes down where it was told to connect.
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
    """Notes where it is told to connect; what is in `dead` does not take the connection."""

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
    """A name server that answers differently each time, and for ever as the last time."""
    left = list(rounds)

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(0)
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


def connect(resolve: Resolve, network: Recorder, *, allow_private: bool = False) -> None:
    guard = GuardedBackend(resolve, reach=Reach(private=allow_private), network=network)
    asyncio.run(guard.connect_tcp("receiver.example", 443, timeout=1))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_taken(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_all_others_are_refused(address: str) -> None:
    assert not is_public(address)


def test_the_connection_goes_to_the_address_that_was_checked_not_to_the_name() -> None:
    network = Recorder()
    connect(answers(["93.184.216.34"], ["127.0.0.1"]), network)

    assert network.connected == ["93.184.216.34"]


def test_a_name_that_rebinds_is_refused_when_it_does() -> None:
    network = Recorder()
    resolve = answers(["93.184.216.34"], ["169.254.169.254"])
    connect(resolve, network)

    with pytest.raises(RefusedAddressError):
        connect(resolve, network)
    assert network.connected == ["93.184.216.34"]


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    network = Recorder()
    with pytest.raises(RefusedAddressError) as refusal:
        connect(answers(["93.184.216.34", "::ffff:10.0.0.1"]), network)

    assert network.connected == []
    assert "10.0.0.1" not in str(refusal.value)


def test_private_addresses_can_be_allowed() -> None:
    network = Recorder()
    connect(answers(["127.0.0.1"]), network, allow_private=True)

    assert network.connected == ["127.0.0.1"]


def test_a_dead_address_is_followed_by_the_next_and_few_are_tried() -> None:
    network = Recorder(dead=["1.1.1.1"])
    connect(answers(["1.1.1.1", "8.8.8.8"]), network)
    assert network.connected == ["1.1.1.1", "8.8.8.8"]

    many = [f"1.1.1.{last}" for last in range(50)]
    network = Recorder(dead=many)
    with pytest.raises(httpcore.ConnectError):
        connect(answers(many), network)
    assert len(network.connected) == ADDRESSES_TRIED_MAX


def test_a_name_without_addresses_is_said_to_be_so() -> None:
    with pytest.raises(UnresolvedHostError):
        connect(answers([]), Recorder())


def test_no_receiver_is_a_socket_file() -> None:
    guard = GuardedBackend(answers([]), reach=Reach(private=True), network=Recorder())
    with pytest.raises(RefusedAddressError):
        asyncio.run(guard.connect_unix_socket("/run/docker.sock"))


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1/", "http://[::1]/", "http://[::ffff:10.0.0.1]/", "http://metadata.example/"],
)
def test_a_refused_receiver_is_an_answer_that_names_no_address(url: str) -> None:
    sender = HttpSender(timeout_s=1, resolve=answers(["10.0.0.1"]))
    with Flight[str](sender) as flight:
        flight.start("ticket", lambda _at: Call(url, (), b"{}"))
        [(_, answer)] = flight.wait(2)
    sender.close()

    assert answer.status_code is None
    assert answer.error == RefusedAddressError().message
    assert not answer.is_success


def test_a_name_server_that_does_not_answer_costs_the_deadline_and_not_more() -> None:
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


def test_tls_asks_for_the_name_while_the_connection_goes_to_the_address(
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


def test_a_call_that_cannot_be_prepared_is_an_answer_too() -> None:
    def broken(_at: object) -> Call:
        raise ValueError("whsec_of_someone")

    sender = HttpSender(timeout_s=1, resolve=answers([]))
    with Flight[str](sender) as flight:
        flight.start("ticket", broken)
        [(_, answer)] = flight.wait(5)
    sender.close()

    assert answer.error == "the call failed (ValueError)"


# --- what is on this machine ----------------------------------------------------------------------

HERE = ["127.0.0.1", "127.255.255.255", "::1"]
NOT_HERE = ["10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "0.0.0.0", "fe80::1"]  # noqa: S104


@pytest.mark.parametrize("address", HERE)
def test_this_machine_is_in_reach_only_where_it_is_allowed(address: str) -> None:
    assert Reach(loopback=True).holds(address)
    assert Reach(private=True).holds(address)
    assert not Reach().holds(address)


@pytest.mark.parametrize("address", NOT_HERE)
def test_what_is_private_but_not_this_machine_stays_out_of_reach(address: str) -> None:
    assert not Reach(loopback=True).holds(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_is_always_in_reach(address: str) -> None:
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
def test_a_receiver_that_will_never_be_called_is_known_without_asking_for_its_name(
    url: str,
) -> None:
    assert Reach().refusal_of(url)
    assert Reach(private=True).refusal_of(url) is None


@pytest.mark.parametrize(
    "url", ["https://example.com/", "http://8.8.8.8/", "", "no url", "http://[", "http://x.invalid"]
)
def test_what_may_be_called_or_is_no_url_is_not_refused_for_its_address(url: str) -> None:
    assert Reach().refusal_of(url) is None
