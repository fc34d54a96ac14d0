"""Secrets at rest: sealed in every row, opened for use, and sealed again with a new key."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from metering.buffer.stream import UsageBuffer
from metering.errors import ConfigurationError, UnreadableSecretError
from metering.ids import AccountId
from metering.payment.provider_account import (
    NewAccount,
    ProviderAccount,
    connect_account,
    webhook_source,
)
from metering.payment.vendors.gateway import GatewayAccount
from metering.vault import SEALED_PREFIX, new_key
from metering.vault.statements import HOLDERS
from metering.webhook.deliver import DeliveryReport
from metering.webhook.endpoints import (
    HeaderChange,
    change_headers,
    endpoint_secret,
    get_endpoint,
    rotate_secret,
)
from support.checkout_driver import CheckoutDriver
from support.command import Gullak
from support.edge import Api, running_api
from support.providers import Stripe
from support.tenant import Shop
from support.webhook_receiver import Bench
from worker.migrate import migrate_database
from worker.session import Sessions, make_engine
from worker.settings import Settings, settings_from

pytest_plugins = ("support.webhook_fixtures",)

KEY, NEXT_KEY = new_key(), new_key()
API_KEY = "sk_live_hidden_from_dumps"
STRIPE = Stripe()


@pytest.fixture
def config(database_url: str, redis_url: str) -> Settings:
    return with_keys(database_url, redis_url, KEY)


def with_keys(database_url: str, redis_url: str, *keys: str) -> Settings:
    urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    return settings_from({**urls, "GULLAK_SECRET_KEYS": ", ".join(keys)})


@contextmanager
def sessions_with(config: Settings, *keys: str) -> Iterator[Sessions]:
    """Sessions of a process that was started with these keys."""
    url, redis_url = (u.get_secret_value() for u in (config.database_url, config.redis_url))
    engine = make_engine(with_keys(url, redis_url, *keys))
    yield Sessions(engine)
    engine.dispose()


def connected(sessions: Sessions, shop: Shop) -> ProviderAccount:
    new = {"provider": "stripe", "name": "Main", "api_key": API_KEY}
    made = NewAccount.model_validate({**new, "webhook_secret": STRIPE.secret})
    with sessions.transaction() as conn:
        return connect_account(conn, shop.business_id, made)


def everything_in(url: str) -> str:
    """Each row of each table as text, as in a dump."""
    with psycopg.connect(url) as conn:
        tables = conn.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r'"
            " AND relnamespace = 'public'::regnamespace"
        ).fetchall()
        rows = [conn.execute(f"SELECT t::text FROM {name} t").fetchall() for (name,) in tables]
    return "\n".join(row for table in rows for (row,) in table)


def test_no_secret_is_readable_in_the_database_and_each_is_opened_unchanged_for_use(
    shop: Shop, bench: Bench, config: Settings
) -> None:
    account = connected(shop.sessions, shop)
    made, _ = bench.receiver()
    with shop.sessions.transaction() as conn:
        first = endpoint_secret(conn, made.business_id, made.endpoint_id)
        second = rotate_secret(conn, made.business_id, made.endpoint_id)
        headers = {"authorization": "Bearer of-the-receiver"}
        change = HeaderChange(headers={"x-token": "", **headers})
        change_headers(conn, made.business_id, made.endpoint_id, change)

    stored = everything_in(config.database_url.get_secret_value())
    with shop.sessions.transaction() as conn:
        shown = get_endpoint(conn, made.business_id, made.endpoint_id)
        opened = webhook_source(conn, "stripe", account.account_id)
        now = endpoint_secret(conn, made.business_id, made.endpoint_id)

    secrets = [API_KEY, STRIPE.secret, first, second, "of-the-receiver"]
    assert [secret for secret in secrets if secret.removeprefix("whsec_") in stored] == []
    assert stored.count(SEALED_PREFIX) == len(secrets)
    assert (shown.headers, opened.secret, now) == (headers, STRIPE.secret, second)


def test_every_column_named_like_a_secret_is_sealed_or_a_hash(shop: Shop) -> None:
    named = shop.rows(
        "SELECT table_name || '.' || column_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND column_name ~"
        " '(secret|password|token|credential|api_key|headers)' AND column_name !~ '(_hash|_until)$'"
    )
    sealed = {column for holder in HOLDERS for column in holder.columns}

    assert {str(name).partition(".")[2] for (name,) in named} == sealed


def test_webhooks_are_signed_with_the_opened_secret(bench: Bench) -> None:
    _, inbox = bench.receiver()
    bench.publish()

    assert bench.deliver() == DeliveryReport(1, 0, 0)  # the receiver has verified the signature
    assert inbox.requests[0][0]["X-Token"] == "ours"


def test_a_provider_s_webhook_is_verified_with_the_opened_secret(
    shop: Shop, config: Settings
) -> None:
    account = connected(shop.sessions, shop)
    delivery = STRIPE.signed(STRIPE.payment())

    with running_api(config) as url:
        client = Api(url, shop.sessions, shop.business_id, "none").client()
        answer = client.post(
            f"/providers/stripe/webhooks?account={account.account_id}",
            content=delivery.body,
            headers=dict(delivery.headers),
        )
        client.close()

    assert answer.json() == {"received": True}


@pytest.fixture
def driver(shop: Shop) -> CheckoutDriver:
    account = connected(shop.sessions, shop)
    return CheckoutDriver(shop, account_id=account.account_id)


def keys_of_charge(driver: CheckoutDriver, sessions: Sessions | None = None) -> list[str | None]:
    """The API keys with which a charge was requested."""
    keys: list[str | None] = []
    provider = driver.provider

    def gateways(account: GatewayAccount) -> object:
        keys.append(account.api_key)
        return provider(account)

    driver.provider = gateways  # type: ignore[assignment]
    begun = driver.begin(driver.new()).checkout.charge_id
    assert begun is not None
    driver.run(begun, sessions=sessions)
    driver.provider = provider
    return keys


def test_a_charge_is_requested_with_the_opened_key(driver: CheckoutDriver) -> None:
    assert keys_of_charge(driver) == [API_KEY]


# --- another key, or none -------------------------------------------------------------------------


def test_secrets_from_before_there_was_a_key_still_work_and_rotate_seals_them(
    shop: Shop, config: Settings, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with sessions_with(config) as before:
        account = connected(before, shop)
    url = config.database_url.get_secret_value()
    assert API_KEY in everything_in(url)
    gullak = Gullak.on(config, monkeypatch, capsys)
    monkeypatch.setenv("GULLAK_SECRET_KEYS", KEY)

    assert secret_of(shop.sessions, account) == STRIPE.secret
    assert gullak("secrets", "rotate").out.startswith("1 of 1 ")
    assert gullak("secrets", "rotate").out.startswith("0 of 1 ")
    assert API_KEY not in everything_in(url)
    assert secret_of(shop.sessions, account) == STRIPE.secret


def secret_of(sessions: Sessions, account: ProviderAccount) -> str:
    with sessions.transaction() as conn:
        return webhook_source(conn, "stripe", AccountId(account.account_id)).secret


def test_the_old_key_is_not_needed_after_a_rotation(
    buffer: UsageBuffer, config: Settings, bench: Bench, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    account = connected(bench.sessions, Shop.open(bench.sessions, buffer))
    bench.receiver()
    bench.publish()
    gullak = Gullak.on(config, monkeypatch, capsys)
    monkeypatch.setenv("GULLAK_SECRET_KEYS", f"{NEXT_KEY},{KEY}")

    assert gullak("secrets", "rotate").out.startswith("2 of 2 ")

    with sessions_with(config, NEXT_KEY) as after:
        assert secret_of(after, account) == STRIPE.secret
        bench.sessions = after
        assert bench.deliver() == DeliveryReport(1, 0, 0)


@pytest.mark.parametrize("keys", [(NEXT_KEY,), ()])
def test_a_wrong_key_is_one_clear_error_at_migrate(
    shop: Shop, config: Settings, keys: tuple[str, ...]
) -> None:
    connected(shop.sessions, shop)
    urls = (u.get_secret_value() for u in (config.database_url, config.redis_url))

    with pytest.raises(ConfigurationError, match="GULLAK_SECRET_KEYS holds no key"):
        migrate_database(with_keys(*urls, *keys))


def test_an_unreadable_secret_does_not_delay_other_endpoints(
    bench: Bench, config: Settings
) -> None:
    _, sealed = bench.receiver()
    with sessions_with(config) as other:
        bench.sessions = other
        _, plain = bench.receiver()
        bench.publish()

        assert bench.deliver() == DeliveryReport(1, 1, 0)
        errors = [row.error for row in bench.attempts()]

    assert (len(sealed.requests), len(plain.requests)) == (0, 1)
    assert [error for error in errors if error] == [UnreadableSecretError().message]


def test_a_charge_waits_while_its_key_is_unreadable(
    driver: CheckoutDriver, config: Settings
) -> None:
    with sessions_with(config, NEXT_KEY) as other:
        assert keys_of_charge(driver, other) == []

    assert driver.charge().status == "new"
    driver.age(driver.charge().charge_id, 0)
    driver.run(driver.charge().charge_id)
    assert driver.charge().status == "succeeded"


@pytest.mark.parametrize("given", ["s3cret", f"{KEY},s3cret"], ids=["alone", "after a key"])
def test_a_malformed_key_is_refused_without_being_quoted(
    given: str, config: Settings, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    gullak = Gullak.on(config, monkeypatch, capsys)
    monkeypatch.setenv("GULLAK_SECRET_KEYS", given)

    result = gullak("business", "list")

    assert result.code == 1
    assert "secret_keys" in result.err
    assert "s3cret" not in result.err
    assert KEY not in result.err


def test_the_command_makes_a_valid_key(
    config: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gullak = Gullak.on(config, monkeypatch, capsys)

    assert settings_from({"GULLAK_SECRET_KEYS": gullak.made("secrets", "new-key")}).secret_keys
    assert gullak("secrets", "rotate").code == 1
