"""The data of an erased person leaves the database, and the money stays unchanged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from metering.ledger.customers import CustomerChange, update_customer
from support.command import Gullak
from support.edge import Api
from support.provider_driver import ProviderDriver
from support.providers import Stripe
from support.tenant import CURRENCIES, Shop, event
from worker.settings import Settings

SECRETS = ("ada@lovelace.example", "Ada Lovelace", "+44 20 7946 0000", "12 St James Square")
PAGE = Path(__file__).parents[3] / "docs" / "operating.md"


@pytest.fixture
def driver(shop: Shop) -> ProviderDriver:
    """A customer who has paid, with personal data in every place that can hold some."""
    email, name, phone, address = SECRETS
    change = {"email": email, "name": name, "phone_number": phone, "metadata": {"home": address}}
    with shop.sessions.transaction() as conn:
        update_customer(
            conn, shop.business_id, shop.customers[0], CustomerChange(**change), CURRENCIES
        )
    opened = ProviderDriver.open(shop, Stripe())
    paid = opened.paid()
    paid["data"]["object"]["receipt_email"] = email
    assert opened.report(paid) == ["applied"]
    shop.meter()
    shop.send(event(shop.customers[0], {"tokens": "no number", "who": name}))
    shop.drain()
    return opened


def replay_refused(shop: Shop) -> None:
    shop.run("UPDATE refused_events SET replayed_at = now()")


def everything(shop: Shop) -> str:
    tables = shop.rows(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r'"
        " AND relnamespace = 'public'::regnamespace"
    )
    rows = [row for (name,) in tables for row in shop.rows(f"SELECT t::text FROM {name} t")]
    bodies = shop.rows("SELECT convert_from(body, 'UTF8') FROM provider_events")
    return "\n".join(str(text) for (text,) in [*rows, *bodies])


def ledger(shop: Shop) -> list[tuple[object, ...]]:
    return [
        *shop.rows("SELECT e::text FROM ledger_entries e ORDER BY entry_id"),
        *shop.rows("SELECT wallet_id, balance_minor, chain FROM wallets ORDER BY 1"),
        *shop.rows("SELECT l::text FROM credit_lots l ORDER BY lot_id"),
    ]


Erase = Callable[[], dict[str, object]]


@pytest.fixture
def gullak(
    config: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Gullak:
    return Gullak.on(config, monkeypatch, capsys)


@pytest.fixture(params=["command", "http"])
def erase(
    request: pytest.FixtureRequest, driver: ProviderDriver, gullak: Gullak, api: Api
) -> Erase:
    (customer,) = driver.shop.customers

    def by_command() -> dict[str, object]:
        done = gullak("customer", "erase", customer, "--json")
        assert done.code == (0 if done.json["is_complete"] else 1)
        return dict(done.json)

    def by_http() -> dict[str, object]:
        with api.client() as client:
            answer = client.delete(f"/customers/{customer}/personal-data")
        assert answer.status_code == 200
        return dict(answer.json())

    return by_command if request.param == "command" else by_http


def test_an_erasure_removes_all_personal_data_and_does_not_change_the_ledger(
    driver: ProviderDriver, erase: Erase
) -> None:
    shop, before = driver.shop, ledger(driver.shop)
    assert all(secret in everything(shop) for secret in SECRETS)
    replay_refused(shop)

    first, second = erase(), erase()

    assert [secret for secret in SECRETS if secret in everything(shop)] == []
    assert (first["bodies_blanked"], first["refused_blanked"]) == (1, 1)
    assert (second["bodies_blanked"], second["refused_blanked"]) == (0, 0)
    assert first["is_complete"]
    assert second["is_complete"]
    assert ledger(shop) == before
    assert shop.faults() == []


def test_an_erasure_keeps_and_counts_items_that_wait_for_a_decision(
    driver: ProviderDriver, erase: Erase
) -> None:
    driver.shop.run("UPDATE provider_events SET status = 'parked'")

    erased = erase()

    assert (erased["bodies_waiting"], erased["refused_waiting"]) == (1, 1)
    assert not erased["is_complete"]
    replay_refused(driver.shop)
    driver.shop.run("UPDATE provider_events SET status = 'applied'")
    assert erase()["is_complete"]


def test_an_event_that_is_refused_again_can_be_replayed_after_an_erasure(
    driver: ProviderDriver, erase: Erase
) -> None:
    again = json.loads(str(driver.shop.rows("SELECT payload::text FROM refused_events")[0][0]))
    replay_refused(driver.shop)
    erase()

    driver.shop.send(event(again[1], again[4], event_id=again[0], at=again[3]))
    driver.shop.drain()

    ((payload,),) = driver.shop.rows(
        "SELECT payload::text FROM refused_events WHERE replayed_at IS NULL"
    )
    assert json.loads(str(payload))[:5] == again[:5]


def test_another_business_cannot_erase_a_customer(driver: ProviderDriver, api: Api) -> None:
    other = Shop.open(driver.shop.sessions, driver.shop.buffer, name="Other")

    with api.client(api.key_for(business_id=other.business_id)) as client:
        answer = client.delete(f"/customers/{driver.shop.customers[0]}/personal-data")

    assert answer.status_code == 404
    assert all(secret in everything(driver.shop) for secret in SECRETS)


def test_the_page_names_every_column_that_may_hold_personal_data(shop: Shop) -> None:
    """For a new text or JSON column, decide: it is erased, or the page names it."""
    page = PAGE.read_text()
    holders = shop.rows(
        "SELECT DISTINCT table_name FROM information_schema.columns WHERE table_schema = 'public'"
        " AND (column_name IN ('email', 'phone_number', 'body', 'payload', 'payment_method')"
        " OR column_name = 'metadata' AND table_name <> 'webhook_endpoints')"
        " AND table_name !~ '_default$|_[0-9]+$' AND table_name NOT IN"
        " (SELECT table_name FROM information_schema.views WHERE table_schema = 'public')"
    )

    assert [name for (name,) in holders if f"`{name}" not in page] == []
