"""While a server fails, events wait; none is refused for the fault of a server."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from api.app import create_app
from metering.buffer.stream import connect
from support.edge import Api, running_api
from support.tenant import Shop, event
from support.tiers import mostly_slow
from support.traffic import wait_for
from worker.faults import Faults
from worker.settings import Settings
from worker.watchdog import postgres_works

# A full disk, no memory, a broken disk, a wrong state, a broken page, a standby, a trigger of the
# operator; and a renamed table.
STATES = ("53100", "53200", "58030", "55000", "XX001", "25006", "P0001")
RENAMED = "42P01"


READ_ONLY = " SET default_transaction_read_only = on"
ENTRY = {"amount": 5, "currency": "USD", "entry_type": "credit"}


@contextmanager
def failing(shop: Shop, sqlstate: str, table: str = "ledger_entries") -> Iterator[None]:
    """Let the server fail at every write into a table."""
    if sqlstate == RENAMED:
        shop.run(f"ALTER TABLE {table} RENAME TO zz_away")
        yield
        shop.run(f"ALTER TABLE zz_away RENAME TO {table}")
        return
    shop.run(
        "CREATE OR REPLACE FUNCTION zz_fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" RAISE EXCEPTION USING ERRCODE = '{sqlstate}', MESSAGE = 'a fault'; END $$"
    )
    shop.run(
        f"CREATE TRIGGER zz_fault BEFORE INSERT ON {table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION zz_fault()"
    )
    yield
    shop.run(f"DROP TRIGGER zz_fault ON {table}")


@pytest.mark.parametrize(
    "table", mostly_slow(["ledger_entries", "usage_batches", "usage_event_keys"], "ledger_entries")
)
@pytest.mark.parametrize("sqlstate", mostly_slow([*STATES, RENAMED], "53100", "25006", RENAMED))
def test_good_events_wait_while_the_server_fails(shop: Shop, sqlstate: str, table: str) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.send(*(event(shop.customers[0]) for _ in range(50)))

    with failing(shop, sqlstate, table):
        for _ in range(30):  # more attempts than a chunk gets that kills its workers
            with pytest.raises((DBAPIError, psycopg.Error)):
                shop.drain()
    outcome = shop.drain()

    assert (outcome.posted, outcome.refused, shop.wallet().balance_minor) == (50, 0, -50)
    assert shop.faults() == []


def test_an_attempt_that_fails_before_the_ledger_does_not_count(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.send(event(shop.customers[0]))

    with failing(shop, RENAMED, "businesses"):  # read when a batch is prepared
        for _ in range(30):
            with pytest.raises((DBAPIError, psycopg.Error)):
                shop.drain()
    outcome = shop.drain()

    assert (outcome.posted, outcome.refused) == (1, 0)


def test_a_batch_is_not_split_when_the_server_fails(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.send(*(event(shop.customers[0]) for _ in range(200)))
    savepoints: list[str] = []
    listen = lambda _conn, name: savepoints.append(name)  # noqa: E731
    sqlalchemy_event.listen(shop.sessions.engine, "savepoint", listen)

    with failing(shop, "53100"), pytest.raises((DBAPIError, psycopg.Error)):
        shop.drain()

    assert len(savepoints) <= 3


def test_a_write_gets_503_and_is_done_once_when_it_is_repeated(api: Api, shop: Shop) -> None:
    customer = shop.customers[0]
    entry = {"amount": 5, "currency": "USD", "entry_type": "credit", "idempotency_key": "k"}
    with api.client() as client:
        for sqlstate in [*STATES, RENAMED]:
            with failing(shop, sqlstate):
                refused = client.post(f"/customers/{customer}/wallets/ledger-entries", json=entry)
            assert (refused.status_code, refused.json()["code"]) == (503, "UNAVAILABLE"), sqlstate
            assert int(refused.headers["Retry-After"]) >= 1
            assert "x-should-retry" not in refused.headers
        for _ in range(2):
            assert client.post(
                f"/customers/{customer}/wallets/ledger-entries", json=entry
            ).is_success

    assert shop.wallet().balance_minor == 5


def test_data_that_the_database_refuses_is_no_fault_of_the_server(api: Api, shop: Shop) -> None:
    entry = {"amount": 5, "currency": "USD", "entry_type": "credit"}
    with api.client() as client, failing(shop, "23514"):
        refused = client.post(f"/customers/{shop.customers[0]}/wallets/ledger-entries", json=entry)

    assert (refused.status_code, refused.json()["code"]) == (422, "INVALID_REQUEST_BODY")
    assert "CheckViolation" in refused.json()["message"]


def test_readiness_and_a_metric_name_the_cause(api: Api, shop: Shop) -> None:
    with api.client() as client, failing(shop, "53100"):
        client.post(f"/customers/{shop.customers[0]}/wallets/ledger-entries", json=ENTRY)
        ready = client.get("/readyz")
        metrics = client.get("/metrics").text

    assert (ready.status_code, ready.json()["missing"]) == (503, ["postgres"])
    assert ready.json()["causes"] == {"api": "disk_full"}
    assert 'gullak_server_faults_total{sqlstate_class="53",stage="api"}' in metrics


def test_readiness_shows_the_faults_of_workers_until_they_work_again(
    api: Api, config: Settings
) -> None:
    with (
        connect(config.redis_url.get_secret_value(), timeout_s=1) as redis,
        api.client() as client,
    ):
        faults = Faults(redis)
        faults.note("debit.drain", psycopg.errors.DiskFull())
        broken = client.get("/readyz")
        faults.clear("debit.drain")
        wait_for(lambda: client.get("/readyz").is_success)

    assert broken.json()["causes"] == {"debit.drain": "disk_full"}


def test_the_watchdog_does_not_end_a_worker_that_waits_for_a_server(config: Settings) -> None:
    with connect(config.redis_url.get_secret_value(), timeout_s=1) as redis:
        at_first = postgres_works(config, redis)
        Faults(redis).note("debit.drain", psycopg.errors.LockNotAvailable())

        assert (at_first, postgres_works(config, redis)) == (True, False)


def test_a_cause_is_logged_once_a_minute_over_all_processes(config: Settings) -> None:
    url = config.redis_url.get_secret_value()
    with capture_logs() as logged, connect(url, timeout_s=1) as redis:
        for process in (Faults(redis), Faults(redis)):
            for part in ("debit.drain", "purchase.inbox"):
                for _ in range(50):
                    process.note(part, psycopg.errors.DiskFull())
                    process.note(part, psycopg.errors.UndefinedTable())

    assert [line["cause"] for line in logged] == ["disk_full", "table_missing"]


def filled(path: str, shop: Shop) -> str:
    return path.replace("{customer_id}", shop.customers[0]).replace("{currency}", "USD")


def test_a_read_only_database_serves_reads_and_readiness_says_so(
    config: Settings, shop: Shop
) -> None:
    """A standby, or a server whose operator stopped all writes. Tries every GET without an id."""
    key = Api("", shop.sessions, shop.business_id, "").key_for()
    shop.enter(5)
    shop.run("ALTER DATABASE " + shop.sessions.engine.url.database + READ_ONLY)  # type: ignore[operator]
    app = create_app(config)
    paths = [path for path, ways in app.openapi()["paths"].items() if "get" in ways]
    paths.remove("/readyz")
    with (
        running_api(config) as url,
        Api(url, shop.sessions, shop.business_id, key).client() as client,
    ):
        ready = client.get("/readyz")
        read = {path: client.get(filled(path, shop)).status_code for path in paths}
        refused = client.post("/customers", json={"email": "a@example.com", "name": "A"})

    assert {path: status for path, status in read.items() if status not in {200, 404}} == {}
    assert ready.json()["causes"] == {"api": "read_only"}
    assert refused.status_code == 503


def test_the_first_use_of_a_key_may_read_from_a_read_only_database(api: Api, shop: Shop) -> None:
    shop.run("ALTER TABLE api_keys RENAME COLUMN last_used_at TO zz_last_used_at")

    with api.client() as client:
        answer = client.get("/customers")

    assert answer.status_code == 200
