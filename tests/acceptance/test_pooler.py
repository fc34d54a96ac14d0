"""Everything through a real PgBouncer in transaction mode: each transaction gets any session."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import httpx
import psycopg
import pytest
from pytest_httpserver import HTTPServer
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from metering.buffer.stream import UsageBuffer
from metering.db import driver
from metering.ids import Currency
from metering.low_credit.rules import set_rule
from metering.webhook.endpoints import NewEndpoint, create_endpoint, endpoint_secret
from support.own_pooler import running_pooler
from support.tenant import NOW, Shop
from support.traffic import wait_for
from support.webhook_receiver import Inbox
from worker.local.up import Stack
from worker.session import Sessions, make_engine
from worker.settings import settings_from

SENT = 90


@pytest.fixture
def pooled_url(data_dir: Path, database_url: str) -> Iterator[str]:
    with running_pooler(data_dir, database_url) as url:
        yield url


def sessions_of(url: str, **limits: str) -> Sessions:
    return Sessions(make_engine(settings_from({"DATABASE_URL": url, **limits})))


@pytest.fixture
def pooled(pooled_url: str) -> Iterator[Sessions]:
    opened = sessions_of(pooled_url)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def shop(pooled: Sessions, buffer: UsageBuffer) -> Shop:
    """One customer with a credit of 100 cents and a threshold of 20; a call costs 1 cent."""
    opened = Shop.open(pooled, buffer)
    opened.meter("tokens", {"USD": "1"})
    opened.enter(100)
    with pooled.transaction() as conn:
        set_rule(conn, opened.business_id, Currency("USD"), 20)
    return opened


def ingest(stack: Stack, customer_id: str, numbers: Sequence[int]) -> None:
    events = [
        {
            "event_id": f"call-{number}",
            "customer_id": customer_id,
            "event_name": "llm.completion",
            "timestamp": NOW,
            "metadata": {"tokens": 1},
        }
        for number in numbers
    ]
    answer = call(stack, "POST", "/events/ingest", json={"events": events})
    assert answer == {"ingested_count": len(numbers)}


def call(stack: Stack, method: str, path: str, **more: Any) -> Any:
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    answer = httpx.request(method, f"{stack.api_url}{path}", headers=headers, **more)
    assert answer.is_success, answer.text
    return answer.json()


def test_a_whole_stack_works_through_a_pooler(
    shop: Shop, pooled_url: str, start_stack: Callable[..., Stack], httpserver: HTTPServer
) -> None:
    with shop.sessions.transaction() as conn:
        wanted = NewEndpoint(url=httpserver.url_for("/alerts"))
        made = create_endpoint(conn, shop.business_id, wanted)
        inbox = Inbox(endpoint_secret(conn, shop.business_id, made.endpoint_id))
    httpserver.expect_request("/alerts", method="POST").respond_with_handler(inbox)
    stack = start_stack(DATABASE_URL=pooled_url, GULLAK_WEBHOOK_ALLOW_PRIVATE="true")
    (customer,) = shop.customers

    for first in range(0, SENT, 10):
        ingest(stack, customer, range(first, first + 10))
        wait_for(lambda: not shop.buffer.backlog().busy)
        ingest(stack, customer, range(first + 10))  # posted events again, with new ones

    def lows() -> list[str]:
        types = [json.loads(body)["type"] for body in inbox.bodies]
        return [kind for kind in types if kind == "credit.balance_low"]

    wait_for(lambda: not shop.buffer.backlog().busy)
    wait_for(lows)
    wallets = call(stack, "GET", f"/customers/{customer}/wallets")["items"]
    assert {w["currency"]: w["balance"] for w in wallets}["USD"] == 10
    entries = call(stack, "GET", f"/customers/{customer}/wallets/ledger-entries?page_size=100")
    assert sum(e["amount"] for e in entries["items"] if not e["is_credit"]) == SENT
    assert len(lows()) == 1
    assert shop.faults() == []
    httpserver.check_handler_errors()


def test_requests_of_many_tenants_share_few_sessions_and_see_only_their_own(
    data_dir: Path, database_url: str, buffer: UsageBuffer
) -> None:
    with running_pooler(data_dir, database_url, sessions=3) as url:
        pooled = sessions_of(url)
        shops = [Shop.open(pooled, buffer, name=f"Shop {n}") for n in range(8)]
        together, wrong = Barrier(len(shops)), []

        def read(shop: Shop) -> None:
            together.wait()
            for _ in range(30):
                with pooled.tenant(shop.business_id) as conn:
                    seen = conn.exec_driver_sql("SELECT business_id FROM customers").all()
                if seen != [(shop.business_id,)]:
                    wrong.append(seen)

        readers = [Thread(target=read, args=[shop]) for shop in shops]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        with pooled.transaction() as conn:
            everyone = conn.exec_driver_sql("SELECT count(*) FROM customers").scalar_one()
        pooled.engine.dispose()

    assert wrong == []
    assert everyone == len(shops)


LOCK = text("SELECT 1 FROM wallets FOR UPDATE")


def freeze(frozen: Sessions, meanwhile: Sessions) -> None:
    """Hold a lock and do nothing until another session has it."""
    with frozen.transaction() as conn:
        conn.execute(LOCK)
        with meanwhile.transaction() as other:
            other.execute(LOCK)
        conn.execute(LOCK)


def run(sessions: Sessions, statement: str) -> None:
    with sessions.transaction() as conn:
        conn.execute(text(statement))


def test_a_frozen_transaction_ends_with_its_locks(shop: Shop, pooled_url: str) -> None:
    frozen = sessions_of(pooled_url, GULLAK_IDLE_IN_TRANSACTION_TIMEOUT_MS="300")

    with pytest.raises(DBAPIError):
        freeze(frozen, meanwhile=shop.sessions)
    frozen.engine.dispose()


@pytest.mark.parametrize(
    ("limit", "statement", "error"),
    [
        ("GULLAK_STATEMENT_TIMEOUT_MS", "SELECT pg_sleep(20)", psycopg.errors.QueryCanceled),
        ("GULLAK_LOCK_TIMEOUT_MS", str(LOCK), psycopg.errors.LockNotAvailable),
    ],
)
def test_a_statement_and_a_wait_for_a_lock_have_a_time_limit(
    shop: Shop, pooled_url: str, limit: str, statement: str, error: type[psycopg.Error]
) -> None:
    limited = sessions_of(pooled_url, **{limit: "200"})

    with shop.sessions.transaction() as holder:
        holder.execute(LOCK)
        with pytest.raises(DBAPIError) as ended:
            run(limited, statement)
    limited.engine.dispose()

    assert isinstance(ended.value.orig, error)


def test_nothing_of_a_transaction_stays_with_its_session(pooled: Sessions) -> None:
    with pooled.transaction() as conn:
        for _ in range(10):
            conn.execute(text("SELECT CAST(:x AS int)"), {"x": 1})
        prepared = conn.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar_one()
        inside = conn.exec_driver_sql("SHOW statement_timeout").scalar_one()
        session = driver(conn)
    after = session.execute("SHOW statement_timeout").fetchone()

    assert prepared == 0
    assert (inside, after) == ("30s", ("0",))
