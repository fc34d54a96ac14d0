"""A walk through the wallet API with the vendor's official SDK alone, in its strict mode.

    python tests/acceptance/sdk_walk.py http://127.0.0.1:8080 gk_…

Prints its results; ends with an AssertionError at the first wrong one.
"""

import sys
import time
from itertools import pairwise
from typing import Literal

import httpx
from dodopayments import BadRequestError, ConflictError, DodoPayments
from dodopayments.types import Event
from dodopayments.types.customers.wallets import CustomerWalletTransaction

ENTRIES = 250
EVENTS = 1000
DEBITED_WITHIN_S = 30


def walk(api_url: str, key: str) -> None:
    with DodoPayments(
        bearer_token=key, base_url=api_url, _strict_response_validation=True
    ) as client:
        customer_id = a_customer_begins_at_zero(client)
        credit_comes_once_per_key(client, customer_id)
        no_debit_goes_beyond_the_balance(client, customer_id)
        the_history_is_complete(client, customer_id)
        usage_is_debited(client)


def a_customer_begins_at_zero(client: DodoPayments) -> str:
    made = client.customers.create(email="ann@example.com", name="Ann")
    wallets = client.customers.wallets.list(made.customer_id)

    assert {wallet.currency: wallet.balance for wallet in wallets.items} == {"USD": 0, "INR": 0}
    print(f"customer {made.customer_id}: both wallets at zero")
    return made.customer_id


def credit_comes_once_per_key(client: DodoPayments, customer_id: str) -> None:
    entries = client.customers.wallets.ledger_entries
    amounts: tuple[tuple[Literal["USD", "INR"], int], ...] = (("USD", 50_00), ("INR", 4_000_00))
    for currency, amount in amounts:
        for _ in range(2):  # the second is a replay
            wallet = entries.create(
                customer_id,
                amount=amount,
                currency=currency,
                entry_type="credit",
                reason="first top-up",
                idempotency_key=f"{customer_id}-{currency}",
            )
            assert wallet.balance == amount
    try:
        entries.create(
            customer_id,
            amount=1,
            currency="USD",
            entry_type="credit",
            idempotency_key=f"{customer_id}-USD",
        )
    except ConflictError as conflict:
        assert conflict.response.headers["x-should-retry"] == "false"
    else:
        raise AssertionError("a key took other content")
    print("credited in both currencies; a replay changed nothing, other content was a conflict")


def no_debit_goes_beyond_the_balance(client: DodoPayments, customer_id: str) -> None:
    try:
        client.customers.wallets.ledger_entries.create(
            customer_id, amount=50_01, currency="USD", entry_type="debit"
        )
    except BadRequestError as refused:
        assert "INSUFFICIENT_WALLET_FUNDS" in refused.response.text
    else:
        raise AssertionError("a debit went beyond the balance")
    print("a debit beyond the balance was refused")


def the_history_is_complete(client: DodoPayments, customer_id: str) -> None:
    entries = client.customers.wallets.ledger_entries
    for number in range(ENTRIES - 1):
        is_debit = number % 3 == 0
        entries.create(
            customer_id,
            amount=1 + number,
            currency="USD",
            entry_type="debit" if is_debit else "credit",
            reason=f"number {number}",
        )
    listed = all_entries(client, customer_id)

    assert len(listed) == len({entry.id for entry in listed}) == ENTRIES
    assert [entry.reason for entry in listed[:-1]] == [
        f"number {number}" for number in reversed(range(ENTRIES - 1))
    ]
    for newer, older in pairwise(listed):
        assert newer.before_balance == older.after_balance
    for entry in listed:
        sign = 1 if entry.is_credit else -1
        assert entry.after_balance == entry.before_balance + sign * entry.amount
    print(f"{ENTRIES} entries listed, newest first, each beginning where the one before it ended")


def all_entries(client: DodoPayments, customer_id: str) -> list[CustomerWalletTransaction]:
    """List the wallet's entries: page 0, then on from 1, because the SDK's iterator skips one."""
    entries = client.customers.wallets.ledger_entries
    found = list(entries.list(customer_id, currency="USD", page_number=0, page_size=100).items)
    found += entries.list(customer_id, currency="USD", page_number=1, page_size=100)
    return found


def usage_is_debited(client: DodoPayments) -> None:
    payer = client.customers.create(email="bob@example.com", name="Bob").customer_id
    meter = client.meters.create(
        name="tokens",
        event_name=f"walk.{payer}",
        measurement_unit="token",
        aggregation={"type": "sum", "key": "tokens"},
    )
    # Prices are not the vendor's: the SDK sends them all the same.
    client.post(
        "/prices",
        cast_to=httpx.Response,
        body={"meter_id": meter.id, "currency": "USD", "price_per_unit": "0.25"},
    )
    answer = client.usage_events.ingest(
        events=[
            {
                "event_id": f"{payer}-{number}",
                "customer_id": payer,
                "event_name": f"walk.{payer}",
                "metadata": {"tokens": 4, "model": "large"},
            }
            for number in range(EVENTS)
        ]
    )
    assert answer.ingested_count == EVENTS
    wait_for_balance(client, payer, -EVENTS)
    listed = all_events(client, payer)

    assert {event.event_id for event in listed} == {f"{payer}-{n}" for n in range(EVENTS)}
    assert len(listed) == EVENTS
    assert client.usage_events.retrieve(f"{payer}-7").metadata == {"tokens": 4, "model": "large"}
    print(f"{EVENTS} events ingested in one call, debited exactly, and all listed")


def wait_for_balance(client: DodoPayments, customer_id: str, balance: int) -> None:
    deadline = time.monotonic() + DEBITED_WITHIN_S
    while True:
        wallets = client.customers.wallets.list(customer_id).items
        found = {wallet.currency: wallet.balance for wallet in wallets}
        if found["USD"] == balance:
            return
        assert time.monotonic() < deadline, f"the balance is {found}"
        time.sleep(0.1)


def all_events(client: DodoPayments, customer_id: str) -> list[Event]:
    found = list(client.usage_events.list(customer_id=customer_id, page_size=100).items)
    found += client.usage_events.list(customer_id=customer_id, page_number=1, page_size=100)
    return found


if __name__ == "__main__":
    walk(*sys.argv[1:])
