"""A person is erased: nothing of it stands in the database, and all of the money is as it was."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from metering.ledger.customers import CustomerChange, update_customer
from support.command import Gullak
from support.edge import Api
from support.provider_counter import Till
from support.providers import Stripe
from support.tenant import CURRENCIES, Shop, event
from worker.settings import Settings

SECRETS = ("ada@lovelace.example", "Ada Lovelace", "+44 20 7946 0000", "12 St James Square")
PAGE = Path(__file__).parents[3] / "docs" / "operating.md"


@pytest.fixture
def till(shop: Shop) -> Till:
    """A customer who has paid, and of whom something stands wherever it can."""
    email, name, phone, address = SECRETS
    change = {"email": email, "name": name, "phone_number": phone, "metadata": {"home": address}}
    with shop.sessions.transaction() as conn:
        update_customer(
            conn, shop.business_id, shop.customers[0], CustomerChange(**change), CURRENCIES
        )
    opened = Till.open(shop, Stripe())
    paid = opened.paid()
    paid["data"]["object"]["receipt_email"] = email
    assert opened.say(paid) == ["applied"]
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
def erase(request: pytest.FixtureRequest, till: Till, gullak: Gullak, api: Api) -> Erase:
    (customer,) = till.shop.customers

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


def test_nothing_of_a_person_is_left_and_the_ledger_is_as_it_was(till: Till, erase: Erase) -> None:
    shop, before = till.shop, ledger(till.shop)
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


def test_what_waits_for_a_decision_is_kept_and_counted(till: Till, erase: Erase) -> None:
    till.shop.run("UPDATE provider_events SET status = 'parked'")

    erased = erase()

    assert (erased["bodies_waiting"], erased["refused_waiting"]) == (1, 1)
    assert not erased["is_complete"]
    replay_refused(till.shop)
    till.shop.run("UPDATE provider_events SET status = 'applied'")
    assert erase()["is_complete"]


def test_an_event_that_is_refused_once_more_can_be_sent_again_after_an_erasure(
    till: Till, erase: Erase
) -> None:
    again = json.loads(str(till.shop.rows("SELECT payload::text FROM refused_events")[0][0]))
    replay_refused(till.shop)
    erase()

    till.shop.send(event(again[1], again[4], event_id=again[0], at=again[3]))
    till.shop.drain()

    ((payload,),) = till.shop.rows(
        "SELECT payload::text FROM refused_events WHERE replayed_at IS NULL"
    )
    assert json.loads(str(payload))[:5] == again[:5]


def test_another_business_erases_nobody(till: Till, api: Api) -> None:
    other = Shop.open(till.shop.sessions, till.shop.buffer, name="Other")

    with api.client(api.key_for(business_id=other.business_id)) as client:
        answer = client.delete(f"/customers/{till.shop.customers[0]}/personal-data")

    assert answer.status_code == 404
    assert all(secret in everything(till.shop) for secret in SECRETS)


def test_the_page_names_every_column_that_may_hold_what_a_person_wrote(shop: Shop) -> None:
    """A new free text or JSON column has to be judged: erased, or told of on the page."""
    page = PAGE.read_text()
    holders = shop.rows(
        "SELECT DISTINCT table_name FROM information_schema.columns WHERE table_schema = 'public'"
        " AND (column_name IN ('email', 'phone_number', 'body', 'payload', 'payment_method')"
        " OR column_name = 'metadata' AND table_name <> 'webhook_endpoints')"
        " AND table_name !~ '_default$|_[0-9]+$' AND table_name NOT IN"
        " (SELECT table_name FROM information_schema.views WHERE table_schema = 'public')"
    )

    assert [name for (name,) in holders if f"`{name}" not in page] == []
