"""A key gives no access to objects of another business, on any route of the application."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import httpx
import pytest

from support.edge import Api, description
from support.one_of_each import one_of_each
from support.tenant import Shop

# A webhook of a provider brings a signature instead of a key.
PUBLIC = {"/livez", "/readyz", "/metrics", "/providers/{provider}/webhooks"}
_numbers = count(1)


def routes() -> list[tuple[str, str]]:
    """Method and path of every route that asks for a key."""
    paths = description()["paths"]
    return [
        (method.upper(), path)
        for path, methods in paths.items()
        for method in methods
        if path not in PUBLIC
    ]


BODIES: dict[tuple[str, str], Callable[[dict[str, str]], object]] = {
    ("POST", "/customers"): lambda _: {"email": "x@example.com", "name": "X"},
    ("PATCH", "/customers/{customer_id}"): lambda _: {"name": "stolen"},
    ("POST", "/customers/{customer_id}/wallets/ledger-entries"): lambda _: {
        "amount": 1,
        "currency": "USD",
        "entry_type": "credit",
    },
    ("PUT", "/customers/{customer_id}/wallets/{currency}/overdraft"): lambda _: {"limit": 7},
    ("POST", "/customers/{customer_id}/wallets/ledger-entries/{entry_id}/refunds"): lambda _: {
        "amount": 1
    },
    ("POST", "/packages"): lambda _: {"name": "p", "currency": "USD", "price": 1},
    ("POST", "/customers/{customer_id}/purchases"): lambda ids: {"package_id": ids["package_id"]},
    ("POST", "/purchases/{purchase_id}/payments"): lambda _: {"payment_id": "pay_stolen"},
    ("POST", "/purchases/{purchase_id}/page"): lambda ids: {"account_id": ids["account_id"]},
    ("POST", "/purchases/{purchase_id}/refunds"): lambda _: {"refund_id": "re_stolen"},
    ("POST", "/purchases/{purchase_id}/disputes"): lambda _: {
        "dispute_id": "dp_stolen",
        "status": "lost",
    },
    ("PATCH", "/business"): lambda _: {"reversal_policy": "stop_at_zero"},
    ("POST", "/meters"): lambda _: {
        "name": "n",
        "event_name": "e",
        "measurement_unit": "u",
        "aggregation": {"type": "count"},
    },
    ("POST", "/prices"): lambda ids: {
        "meter_id": ids["meter_id"],
        "currency": "USD",
        "price_per_unit": "7",
    },
    ("POST", "/low-credit-rules"): lambda ids: {
        "currency": "USD",
        "threshold": 7,
        "customer_id": ids["customer_id"],
    },
    ("POST", "/customers/{customer_id}/checkouts"): lambda _: {
        "amount": 1,
        "currency": "USD",
        "idempotency_key": "stolen",
    },
    ("PUT", "/customers/{customer_id}/wallets/{currency}/top-up"): lambda ids: {
        "threshold": 7,
        "package_id": ids["package_id"],
        "payment_method": "pm_stolen",
        "day_cap": 1000,
        "month_cap": 1000,
        "account_id": ids["account_id"],
    },
    ("POST", "/webhooks"): lambda _: {"url": "https://example.com/"},
    ("PATCH", "/webhooks/{webhook_id}"): lambda _: {"url": "https://evil.example.com/"},
    ("PATCH", "/webhooks/{webhook_id}/headers"): lambda _: {"headers": {"X-Evil": "1"}},
    ("POST", "/webhooks/{webhook_id}/replay"): lambda _: {"since": "2020-01-01T00:00:00Z"},
    ("POST", "/refused-events/replay"): lambda ids: {"event_id": ids["refused_event_id"]},
    ("POST", "/provider-events/replay"): lambda ids: {"id": ids["provider_event_id"]},
    ("POST", "/events/ingest"): lambda ids: {
        "events": [
            {
                "event_id": f"evt-{next(_numbers)}",
                "customer_id": ids["customer_id"],
                "event_name": "llm.completion",
                "metadata": {"tokens": 1},
            }
        ]
    },
}
# They make objects of the caller's own business; the drain checks the customer of an event.
NO_WEBHOOKS = {"data": [], "done": True, "iterator": None, "prev_iterator": None}
OWN = {
    ("POST", "/customers"),
    ("POST", "/packages"),
    ("PATCH", "/business"),
    ("POST", "/meters"),
    ("POST", "/events/ingest"),
    ("POST", "/webhooks"),
    ("POST", "/refused-events/replay"),
}


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def api(module_api: Api) -> Api:
    return module_api


@dataclass(frozen=True)
class Victim:
    """A business that has one of everything, and the ids of it. No test changes any."""

    shop: Shop
    ids: dict[str, str]


@pytest.fixture(scope="module")
def victim(module_shop: Shop, module_api_url: str) -> Victim:
    api = Api(module_api_url, module_shop.sessions, module_shop.business_id, "")
    with api.client(api.key_for()) as client:
        return Victim(module_shop, one_of_each(module_shop, client))


@pytest.fixture
def stranger(module_api_url: str, victim: Victim) -> Iterator[httpx.Client]:
    """A client of another business."""
    sessions = victim.shop.sessions
    other = Shop.open(sessions, victim.shop.buffer, name="Other", customers=0)
    api = Api(module_api_url, sessions, other.business_id, "")
    with api.client(api.key_for()) as client:
        yield client


def everything(shop: Shop) -> list[object]:
    tables = (
        "customers",
        "wallets",
        "ledger_entries",
        "credit_lots",
        "businesses",
        "credit_packages",
        "purchases",
        "payments",
        "payment_reversals",
        "meters",
        "prices",
        "low_credit_rules",
        "webhook_endpoints",
        "refused_events",
        "provider_accounts",
        "provider_events",
        "checkouts",
        "charges",
        "purchases",
        "top_up_rules",
    )
    return [
        shop.rows(f"SELECT * FROM {table} WHERE business_id = '{shop.business_id}' ORDER BY 1")
        for table in tables
    ]


@pytest.mark.parametrize(("method", "path"), routes())
def test_a_key_of_another_business_finds_and_changes_nothing(
    method: str, path: str, victim: Victim, stranger: httpx.Client
) -> None:
    before = everything(victim.shop)
    body = BODIES.get((method, path), lambda _: None)(victim.ids)

    answer = stranger.request(method, path.format(**victim.ids), json=body)

    assert everything(victim.shop) == before
    if "{" in path or (body is not None and (method, path) not in OWN):
        assert answer.status_code == 404
    elif method == "GET" and path == "/business":
        assert answer.json()["business_id"] != victim.shop.business_id
    elif method == "GET":
        assert answer.json() in ({"items": []}, NO_WEBHOOKS)
    elif path == "/refused-events/replay":
        assert answer.json() == {"replayed_count": 0, "has_more": False}
    else:
        assert answer.is_success


BAD_HEADERS = (None, "", "Bearer", "Bearer gk_x", "Basic Zzo=", "Bearer \xff")


def test_every_route_refuses_a_missing_or_bad_key(api: Api) -> None:
    with httpx.Client(base_url=api.url) as client:
        answers = {
            (method, path, header): client.request(
                method,
                path,
                headers={} if header is None else {b"Authorization": header.encode("latin-1")},
                content=b"{not even JSON",
            )
            for method, path in routes()
            for header in BAD_HEADERS
        }

    open_ones = {request: a.text for request, a in answers.items() if a.status_code != 401}
    assert len(answers) >= 6 * 18
    assert open_ones == {}


def test_the_drain_refuses_events_for_a_customer_of_another_business(
    victim: Victim, stranger: httpx.Client
) -> None:
    victim.shop.drain()
    stranger.post("/events/ingest", json=BODIES["POST", "/events/ingest"](victim.ids))

    outcome = victim.shop.drain()

    assert (outcome.posted, outcome.refused) == (0, 1)
    assert victim.shop.wallet().balance_minor == 500


def test_a_cursor_of_another_business_is_not_found(victim: Victim, stranger: httpx.Client) -> None:
    answer = stranger.get("/customers", params={"starting_after": victim.ids["customer_id"]})

    assert answer.status_code == 404


def test_row_level_security_hides_rows_of_other_businesses_without_a_where_clause(
    shop: Shop,
) -> None:
    other = Shop.open(shop.sessions, shop.buffer, name="Other", customers=2)
    shop.enter(5)
    other.enter(7)
    tables = ("businesses", "customers", "wallets", "ledger_entries")

    with shop.sessions.tenant(other.business_id) as conn:
        seen = {
            table: {row[0] for row in conn.exec_driver_sql(f"SELECT business_id FROM {table}")}
            for table in tables
        }
        active = conn.exec_driver_sql("SELECT row_security_active('wallets')").scalar_one()

    assert active
    assert seen == {table: {other.business_id} for table in tables}


def test_row_level_security_refuses_writes_to_another_business(shop: Shop) -> None:
    other = Shop.open(shop.sessions, shop.buffer, name="Other", customers=0)

    with shop.sessions.tenant(other.business_id) as conn:
        moved = conn.exec_driver_sql("UPDATE wallets SET balance_minor = 1").rowcount

    assert moved == 0
    assert shop.wallet().balance_minor == 0


def test_every_table_with_a_business_id_has_row_level_security(shop: Shop) -> None:
    open_tables = shop.rows(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE a.attname = 'business_id' AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
        " AND c.relnamespace = current_schema()::regnamespace AND NOT c.relrowsecurity"
    )

    assert open_tables == []
