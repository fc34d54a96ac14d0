"""A business of the release that had the provider `local`: all of it stays readable and goes on."""

import pytest
from alembic import command
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from metering.ids import ChargeId, ProviderEventNumber
from metering.payment.charges.charge import run_charge
from metering.payment.charges.manual import fail_charge
from metering.payment.inbox import EventFilter, page_of_events, process
from metering.payment.provider_account import page_of_accounts
from metering.payment.vendors.registry import gateway_of
from support.checkout_driver import AT_ONCE, CheckoutDriver
from support.edge import Api, running_api
from support.tenant import Shop
from worker.migrate import _scripts, migrate
from worker.session import make_engine
from worker.settings import Settings, settings_from

BEFORE = "0016"
# What that release wrote, apart from the name of the provider, is what this one writes.
RENAME = """
    UPDATE provider_accounts SET provider = 'local';
    UPDATE payments SET provider = 'local';
    UPDATE purchases SET provider = 'local' WHERE provider IS NOT NULL;
    INSERT INTO provider_events (business_id, account_id, provider, provider_event_id, body)
        SELECT business_id, account_id, 'local', 'msg_1', '{"type": "payment.succeeded"}'
        FROM provider_accounts;
    UPDATE charges SET due_at = now();
"""


@pytest.fixture
def database_url(empty_database_url: str) -> str:
    engine = make_engine(settings_from({"DATABASE_URL": empty_database_url}))
    with engine.begin() as conn, _scripts() as config:
        config.attributes["connection"] = conn
        command.upgrade(config, BEFORE)
    engine.dispose()
    return empty_database_url


@pytest.fixture
def old(shop: Shop, driver: CheckoutDriver) -> CheckoutDriver:
    """Its newest charges: a paid top-up, one that nobody has requested, a pending checkout."""
    driver.rule()
    (paid,) = driver.start()
    driver.run(paid)
    shop.enter(450, debit=True)
    driver.start()
    driver.check_out(method="pending")
    with shop.sessions.transaction() as conn:
        conn.execute(text(RENAME))
    migrate(shop.sessions.engine)
    return driver


def charged(driver: CheckoutDriver, status: str) -> ChargeId:
    ((charge_id,),) = driver.shop.rows(f"SELECT charge_id FROM charges WHERE status = '{status}'")
    return ChargeId(str(charge_id))


def test_its_account_is_listed_as_disabled_and_no_other_can_be_made(old: CheckoutDriver) -> None:
    shop = old.shop
    with shop.sessions.transaction() as conn:
        (account,) = page_of_accounts(conn, shop.business_id, page=10)
    assert (account.provider, account.disabled_at is not None) == ("local", True)

    again = "UPDATE provider_accounts SET disabled_at = NULL"
    another = (
        "INSERT INTO provider_accounts (account_id, business_id, provider, name)"
        f" VALUES ('pac_new', '{shop.business_id}', 'local', 'New')"
    )
    for refused in (again, another):
        with pytest.raises(IntegrityError, match="provider_accounts_provider_check"):
            shop.run(refused)


def test_its_work_ends_or_waits_for_a_person_with_a_reason(old: CheckoutDriver) -> None:
    shop = old.shop
    ((number,),) = shop.rows("SELECT event_number FROM provider_events")
    asked, pending = charged(old, "new"), charged(old, "pending")
    with shop.sessions.transaction() as conn:
        assert process(conn, ProviderEventNumber(int(str(number)))) == "parked"
    for charge_id in (asked, pending):
        run_charge(shop.sessions.transaction, gateway_of, charge_id, AT_ONCE)

    with shop.sessions.transaction() as conn:
        (event,) = page_of_events(conn, shop.business_id, EventFilter(), page=10)
    assert (event.provider, event.reason) == ("local", "unknown_provider")
    assert (old.charge(asked).status, old.charge(asked).failure) == ("failed", "account_disabled")
    assert old.top_up_rule().disabled_reason == "account_disabled"
    parked = old.charge(pending)
    assert (parked.is_parked, parked.failure) == (True, "this version does not know the provider")
    with shop.sessions.transaction() as conn:
        failed = fail_charge(conn, shop.business_id, pending, "nobody was charged")
    assert failed.status == "failed"
    assert shop.faults() == []


def test_its_history_is_read_over_http(old: CheckoutDriver, config: Settings) -> None:
    shop = old.shop
    ((purchase_id,),) = shop.rows("SELECT purchase_id FROM purchases WHERE status = 'settled'")
    with running_api(config) as url:
        api = Api(url, shop.sessions, shop.business_id, "")
        with api.client(api.key_for()) as client:
            purchase = client.get(f"/purchases/{purchase_id}").json()
            events = client.get("/provider-events").json()["items"]
            webhook = client.post("/providers/local/webhooks", json={})

    assert (purchase["provider"], purchase["status"]) == ("local", "settled")
    assert [payment["provider"] for payment in purchase["payments"]] == ["local"]
    assert [event["provider"] for event in events] == ["local"]
    assert webhook.status_code in {401, 422}
    assert shop.faults() == []
