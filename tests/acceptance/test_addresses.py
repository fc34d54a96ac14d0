"""Addresses of servers in every supported form, on a stack; and addresses that cannot work."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from metering.buffer.stream import UsageBuffer
from support.own_redis import OwnRedis
from support.tenant import Shop, event
from support.tiers import mostly_slow
from support.tls_proxy import tls_in_front_of
from support.traffic import wait_for
from worker.context import open_buffer
from worker.local.up import Stack
from worker.session import Sessions
from worker.settings import settings_from

START_TIMEOUT_S = 60


@pytest.fixture(params=mostly_slow(["tls", "socket"], "tls"))
def address(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[str]:
    """The address of a Redis for one test: behind TLS, or on a socket."""
    socket = data_dir / "r.sock"
    server = OwnRedis(data_dir, "everysec", f"unixsocket {socket}")
    server.start()
    try:
        if request.param == "socket":
            yield f"unix://:secret@{socket}"
        else:
            with tls_in_front_of(int(urlsplit(server.url).port or 0), data_dir) as proxy:
                yield f"rediss://:secret@127.0.0.1:{proxy.port}/0?ssl_ca_certs={proxy.ca_file}"
    finally:
        server.kill()


@pytest.fixture
def own_buffer(address: str) -> Iterator[UsageBuffer]:
    opened = open_buffer(settings_from({"REDIS_URL": address}))
    yield opened
    opened.redis.close()


def test_a_stack_debits_through_tls_or_a_socket(
    start_stack: Callable[..., Stack], sessions: Sessions, own_buffer: UsageBuffer, address: str
) -> None:
    shop = Shop.open(sessions, own_buffer)
    shop.meter("tokens", {"USD": "1"})
    stack = start_stack(REDIS_URL=address)

    shop.send(event(shop.customers[0], {"tokens": 3}))

    wait_for(lambda: shop.wallet().balance_minor == -3, 30)
    assert httpx.get(f"{stack.api_url}/readyz").json()["missing"] == []
    assert own_buffer.backlog().events == 0


PROCESSES = {
    "worker": ("-m", "celery", "-A", "worker.app", "--quiet", "worker", "-Q", "debit"),
    "beat": ("-m", "celery", "-A", "worker.app", "--quiet", "beat"),
    "api": ("-m", "api.server"),
}
DATABASE = {"DATABASE_URL": "postgresql://u:hidden@127.0.0.1:1/d"}
CANNOT_WORK = {
    "sentinel": ({"REDIS_URL": "redis+sentinel://:hidden@h/m/0"}, "Sentinel addresses are not"),
    "a wrong parameter": ({"REDIS_URL": "rediss://:hidden@h/0?ssl_cert_reqs=x"}, "cannot be used"),
    "no Redis": ({}, "REDIS_URL is not set"),
}


@pytest.mark.parametrize("fault", mostly_slow(CANNOT_WORK, "a wrong parameter"))
@pytest.mark.parametrize("name", mostly_slow(PROCESSES, "api"))
def test_a_process_with_a_bad_address_ends_at_the_start_with_one_clear_error(
    variables: Mapping[str, str], name: str, fault: str
) -> None:
    given, error = CANNOT_WORK[fault]
    ended = subprocess.run(
        [sys.executable, *PROCESSES[name]],
        env={**variables, **DATABASE, **given},
        timeout=START_TIMEOUT_S,
        capture_output=True,
        text=True,
        check=False,
    )
    output = ended.stdout + ended.stderr

    assert (ended.returncode, output.count(error)) == (78, 1)
    assert "Traceback" not in output
    assert "hidden" not in output
