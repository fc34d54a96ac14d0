"""`gullak providers …`: accounts whose secrets are never shown, and events that are sent again."""

import io
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from metering.ids import AccountId, BusinessId, ProviderEventNumber
from metering.payment.inbox import process, receive, verified
from metering.payment.provider_account import webhook_source
from support.command import Gullak
from support.providers import Dodo, Json, Stripe, Vendor
from support.tenant import Shop, shared_database
from support.traffic import wait_for
from worker.settings import Settings

STRIPE, DODO = Stripe(), Dodo()


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "provider_commands") as name:
        yield servers.url_of(name)


@pytest.fixture
def own(shop: Shop) -> str:
    """The option that names this test's business."""
    return f"--business={shop.business_id}"


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_text(f"{STRIPE.secret}\n")
    return f"--webhook-secret-file={path}"


def connect(gullak: Gullak, own: str, *options: str) -> str:
    return gullak.made("providers", "connect", "stripe", "--name=Main", own, *options)


def secret_of(shop: Shop, vendor: Vendor, account_id: str) -> str:
    with shop.sessions.transaction() as conn:
        return webhook_source(conn, vendor.name, AccountId(account_id)).secret


def settle(shop: Shop, account_id: str, *events: Json) -> None:
    """Receive and process events of Stripe; settle their purchases."""
    for event in events:
        delivery = STRIPE.signed(event)
        with shop.sessions.transaction() as conn:
            sender = webhook_source(conn, "stripe", AccountId(account_id))
            number = receive(conn, verified(sender, delivery.body, delivery.headers))
            assert number is not None
            process(conn, number)


def test_a_discounted_payment_is_accepted_and_its_refund_takes_its_share(
    gullak: Gullak, own: str, shop: Shop, secret_file: str
) -> None:
    account_id = connect(gullak, own, secret_file)
    purchase = gullak.made(
        *("purchase", "create", "--currency=USD", "--price=1000"),
        *(f"--customer={shop.customers[0]}", own),
    )
    mine = {"gullak_purchase_id": purchase}
    settle(shop, account_id, STRIPE.payment("succeeded", 800, payment_id="pi_less", metadata=mine))
    (parked,) = gullak("providers", "events", "--status=parked", "--json", own).json
    assert (parked["payment_id"], parked["reason"]) == ("pi_less", "underpaid")

    paid = gullak("purchase", "pay", purchase, "--payment=pi_less", own, "--json").json["purchase"]
    refunded = STRIPE.refunded_charge(None, "pi_less")
    refunded["data"]["object"].update(amount=800, amount_captured=800, amount_refunded=400)
    settle(shop, account_id, refunded, STRIPE.unrelated())

    assert (paid["status"], paid["provider"], paid["paid_minor"]) == ("settled", "stripe", 800)
    shown = gullak("purchase", "show", purchase, own).out
    assert "refund_total ch_pi_less" in shown
    assert "paid_twice" not in shown
    events = gullak("providers", "events", "--json", own).json
    assert [(event["status"], event["reason"]) for event in events] == [
        ("ignored", "not_about_a_payment"), ("applied", None), ("applied", None),
    ]  # fmt: skip
    assert (shop.wallet().balance_minor, shop.faults()) == (500, [])


def test_a_secret_comes_from_a_file(gullak: Gullak, own: str, shop: Shop, secret_file: str) -> None:
    account_id = connect(gullak, own, secret_file)

    assert secret_of(shop, STRIPE, account_id) == STRIPE.secret


def test_both_secrets_come_from_standard_input_line_by_line(
    gullak: Gullak, own: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{STRIPE.secret}\nsk_test_1\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))

    account_id = connect(gullak, own, "--webhook-secret-file=-", "--api-key-file=-")

    assert secret_of(shop, STRIPE, account_id) == STRIPE.secret
    assert shop.rows(
        f"SELECT api_key FROM provider_accounts WHERE account_id = '{account_id}'"
    ) == [("sk_test_1",)]


def test_a_terminal_asks_for_the_secrets_and_does_not_show_them(
    config: Settings, variables: Mapping[str, str], own: str, shop: Shop
) -> None:
    terminal, inner = pty.openpty()
    command = [
        sys.executable, "-c", "from worker.cli.main import main; main()",
        "providers", "connect", "dodo", "--name=Main", own,
    ]  # fmt: skip
    environment = {**variables, "DATABASE_URL": config.database_url.get_secret_value()}
    with subprocess.Popen(
        command, stdin=inner, stdout=inner, stderr=inner, env=environment, start_new_session=True
    ) as running:
        os.close(inner)
        seen = answered(terminal, "Webhook secret", DODO.secret)
        seen += answered(terminal, "API key", "key_test_1")
        seen += shown(terminal)
    os.close(terminal)

    assert running.returncode == 0, seen
    assert DODO.secret not in seen
    assert "key_test_1" not in seen
    account_id = next(word for word in seen.split() if word.startswith("pac_"))
    assert secret_of(shop, DODO, account_id) == DODO.secret


def answered(terminal: int, prompt: str, text: str) -> str:
    """Wait for a prompt without echo, then type; return the output until then."""
    seen = shown(terminal, until=prompt)
    wait_for(lambda: not termios.tcgetattr(terminal)[3] & termios.ECHO)
    os.write(terminal, f"{text}\n".encode())
    return seen


def shown(terminal: int, until: str | None = None) -> str:
    """The output of the terminal, up to a text or to the end."""
    seen = ""
    while until is None or until not in seen:
        try:
            read = os.read(terminal, 4096)
        except OSError:  # the other end is closed: the process has ended
            read = b""
        if not read:
            break
        seen += read.decode()
    return seen


def test_a_connected_account_prints_the_path_of_its_webhooks(
    gullak: Gullak, own: str, secret_file: str
) -> None:
    printed = gullak("providers", "connect", "stripe", "--name=Main", own, secret_file).out

    account_id, path = printed.split()
    assert path == f"/providers/stripe/webhooks?account={account_id}"


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        ("stripe", None, "give a webhook secret, an API key, or both"),
        ("stripe", "", "webhook_secret: "),
        ("stripe", "sk with blanks", "webhook_secret: "),
        ("dodo", "whsec_!", "webhook_secret: "),
        ("stripe --base-url=ftp://x", "whsec_1", "base_url: "),
        ("stripe --base-url=http://stripe.example", "whsec_1", "must begin with https://"),
        ("stripe --base-url=http://127.0.0.1@stripe.example", "whsec_1", "must begin with https"),
        ("stripe --base-url=http://127.0.0.1.stripe.example", "whsec_1", "must begin with https"),
        ("stripe --base-url=http://10.0.0.1", "whsec_1", "must begin with https://"),
        ("stripe --name=", "whsec_1", "name: "),
        ("stripe --business=bus_no", "whsec_1", "no business 'bus_no'"),
    ],
)
def test_an_account_that_is_refused_does_not_show_its_secret(
    gullak: Gullak, own: str, tmp_path: Path, *, arguments: str, text: str | None, message: str
) -> None:
    (tmp_path / "secret").write_text(text or "")
    options = [] if text is None else [f"--webhook-secret-file={tmp_path / 'secret'}"]

    result = gullak("providers", "connect", "--name=Main", own, *arguments.split(), *options)

    assert result.code == 1
    assert message in result.err
    assert not text or text not in result.err


@pytest.mark.parametrize(
    "url",
    [
        "https://stripe.example",
        "http://127.0.0.1:9100",
        "http://[::1]:9100",
        "http://localhost:9100",
    ],
)
def test_an_api_is_at_https_or_on_this_machine(gullak: Gullak, own: str, url: str) -> None:
    connected = gullak("providers", "connect", "dodo", "--name=a", own, f"--base-url={url}")

    assert connected.code == 0
    assert url in gullak("providers", "list", own, "--json").out


@pytest.mark.parametrize("how", [(), ("--json",)], ids=["table", "json"])
def test_accounts_are_listed_without_their_secrets(
    gullak: Gullak, own: str, secret_file: str, how: tuple[str, ...]
) -> None:
    account_id = connect(gullak, own, secret_file)

    printed = gullak("providers", "list", own, *how).out

    assert account_id in printed
    assert STRIPE.secret not in printed


def test_an_account_has_the_time_when_it_was_disconnected(
    gullak: Gullak, own: str, secret_file: str
) -> None:
    account_id = connect(gullak, own, secret_file)

    assert gullak("providers", "disconnect", account_id, own).code == 0

    (account,) = gullak("providers", "list", own, "--json").json
    assert account["disabled_at"] is not None


def test_an_account_of_another_business_cannot_be_disconnected(
    gullak: Gullak, own: str, secret_file: str, shop: Shop
) -> None:
    account_id = connect(gullak, own, secret_file)
    other = Shop.open(shop.sessions, shop.buffer, name="Other")

    result = gullak("providers", "disconnect", account_id, f"--business={other.business_id}")

    assert (result.code, result.err) == (1, f"gullak: no provider account '{account_id}'\n")


def receive_all(shop: Shop, account_id: str, *events: Json) -> list[ProviderEventNumber]:
    """Receive and process events of Stripe whose purchases do not exist."""
    numbers = []
    for event in events:
        delivery = STRIPE.signed(event)
        with shop.sessions.transaction() as conn:
            sender = webhook_source(conn, "stripe", AccountId(account_id))
            number = receive(conn, verified(sender, delivery.body, delivery.headers))
            assert number is not None
            process(conn, number)
        numbers.append(number)
    return numbers


def status_of(shop: Shop, business_id: BusinessId) -> Sequence[tuple[Any, ...]]:
    return shop.rows(
        "SELECT payment_id, status FROM provider_events"
        f" WHERE business_id = '{business_id}' ORDER BY event_number"
    )


def test_events_are_listed_newest_first_and_by_status(
    gullak: Gullak, own: str, secret_file: str, shop: Shop
) -> None:
    account_id = connect(gullak, own, secret_file)
    receive_all(shop, account_id, STRIPE.refund(), STRIPE.unrelated())

    everything = gullak("providers", "events", own, "--json").json
    parked = gullak("providers", "events", own, "--status=parked", "--json").json

    assert [event["status"] for event in everything] == ["ignored", "parked"]
    assert [event["reason"] for event in parked] == ["unknown_payment"]
    assert "parked" in gullak("providers", "events", own).out


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ((), ["received", "received", "ignored"]),
        (("--payment=pi_a",), ["received", "parked", "ignored"]),
    ],
    ids=["all", "of a payment"],
)
def test_parked_events_are_processed_again(
    gullak: Gullak,
    own: str,
    secret_file: str,
    shop: Shop,
    *,
    options: tuple[str, ...],
    again: list[str],
) -> None:
    account_id = connect(gullak, own, secret_file)
    events = (STRIPE.refund(payment_id="pi_a"), STRIPE.refund(payment_id="pi_b"))
    receive_all(shop, account_id, *events, STRIPE.unrelated())

    count = gullak("providers", "replay", own, *options, "--json").json["replayed"]

    assert [status for _, status in status_of(shop, shop.business_id)] == again
    assert count == again.count("received")


def test_one_event_is_processed_again_with_any_status(
    gullak: Gullak, own: str, secret_file: str, shop: Shop
) -> None:
    account_id = connect(gullak, own, secret_file)
    (number,) = receive_all(shop, account_id, STRIPE.unrelated())

    printed = gullak("providers", "replay", own, f"--event={number}").out

    assert printed == "1 events are processed again by the next sweep of a worker\n"
    assert status_of(shop, shop.business_id) == [(None, "received")]


def test_an_event_of_another_business_is_not_found(
    gullak: Gullak, own: str, secret_file: str, shop: Shop
) -> None:
    (number,) = receive_all(shop, connect(gullak, own, secret_file), STRIPE.unrelated())
    other = Shop.open(shop.sessions, shop.buffer, name="Other")

    result = gullak("providers", "replay", f"--business={other.business_id}", f"--event={number}")

    assert (result.code, result.err) == (1, f"gullak: no provider event '{number}'\n")
