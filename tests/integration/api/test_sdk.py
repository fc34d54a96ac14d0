"""The vendor's official SDK works with the API unchanged, also in strict mode."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise

import dodopayments
import pytest
from dodopayments import AsyncDodoPayments, DodoPayments, Omit, omit
from dodopayments.types.filter_type_param import MeterFilterConditionList

from metering.debit.write import Outcome
from support.edge import Api
from support.tenant import Shop


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def api(module_api: Api) -> Api:
    return module_api


@pytest.fixture(params=[True, False], ids=["strict", "loose"])
def client(request: pytest.FixtureRequest, api: Api) -> Iterator[DodoPayments]:
    with DodoPayments(
        bearer_token=api.key, base_url=api.url, _strict_response_validation=request.param
    ) as opened:
        yield opened


@pytest.fixture
def customer_id(client: DodoPayments) -> str:
    return client.customers.create(email="ann@example.com", name="Ann").customer_id


def credit(
    client: DodoPayments,
    customer_id: str,
    amount: int,
    *,
    reason: str | Omit = omit,
    idempotency_key: str | Omit = omit,
) -> int:
    wallet = client.customers.wallets.ledger_entries.create(
        customer_id, amount=amount, currency="USD", entry_type="credit",
        reason=reason, idempotency_key=idempotency_key,
    )  # fmt: skip
    return wallet.balance


def test_a_new_customer_has_a_wallet_at_zero_in_every_currency(
    client: DodoPayments, customer_id: str
) -> None:
    wallets = client.customers.wallets.list(customer_id)

    assert [(w.currency, w.balance) for w in wallets.items] == [("USD", 0), ("INR", 0)]
    assert wallets.total_balance_usd == 0


def test_a_customer_is_read_changed_and_found_by_part_of_its_name(
    client: DodoPayments, customer_id: str
) -> None:
    client.customers.create(email="bob@example.com", name="Bob")
    changed = client.customers.update(
        customer_id, name="Annette", metadata={"plan": "pro", "seats": 3, "beta": True}
    )

    assert client.customers.retrieve(customer_id).name == changed.name == "Annette"
    assert changed.metadata == {"plan": "pro", "seats": 3, "beta": True}
    assert [c.customer_id for c in client.customers.list(name="NETT").items] == [customer_id]
    assert [c.customer_id for c in client.customers.list(email="ANN@").items] == [customer_id]


def test_credit_and_debit_return_the_wallet_after_them(
    client: DodoPayments, customer_id: str
) -> None:
    entries = client.customers.wallets.ledger_entries
    credit(client, customer_id, 5000, reason="first top-up")
    inr = entries.create(customer_id, amount=70_000, currency="INR", entry_type="credit")
    usd = entries.create(
        customer_id, amount=1_250, currency="USD", entry_type="debit", reason="support"
    )

    assert (usd.balance, inr.balance) == (3_750, 70_000)


def test_a_repeated_idempotency_key_changes_nothing_and_is_reported(
    client: DodoPayments, customer_id: str
) -> None:
    entry = {"amount": 500, "currency": "USD", "entry_type": "credit", "idempotency_key": "order-1"}
    raw = client.customers.wallets.ledger_entries.with_raw_response

    first = raw.create(customer_id, **entry)  # type: ignore[arg-type]
    second = raw.create(customer_id, **entry)  # type: ignore[arg-type]

    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert second.parse().balance == first.parse().balance == 500


def test_an_idempotency_key_with_other_content_conflicts_without_retry(
    client: DodoPayments, customer_id: str
) -> None:
    credit(client, customer_id, 500, idempotency_key="order-1")

    with pytest.raises(dodopayments.ConflictError) as caught:
        credit(client, customer_id, 501, idempotency_key="order-1")

    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.response.json()["code"] == "IDEMPOTENCY_CONFLICT"


def test_a_debit_beyond_the_balance_is_refused_and_writes_nothing(
    client: DodoPayments, customer_id: str
) -> None:
    entries = client.customers.wallets.ledger_entries
    credit(client, customer_id, 100)

    with pytest.raises(dodopayments.BadRequestError) as caught:
        entries.create(customer_id, amount=101, currency="USD", entry_type="debit")

    assert caught.value.response.json()["code"] == "INSUFFICIENT_WALLET_FUNDS"
    assert [entry.amount for entry in entries.list(customer_id).items] == [100]


def test_250_entries_are_listed_completely_newest_first_and_chained(
    client: DodoPayments, customer_id: str, shop: Shop
) -> None:
    shop.customers.append(customer_id)  # type: ignore[arg-type]
    for number in range(1, 251):
        shop.enter(number, customer=-1)

    # The SDK's iterator leaves out page 1 when it starts at page 0.
    listing = client.customers.wallets.ledger_entries.list
    listed = listing(customer_id, page_size=100, page_number=0).items
    listed += list(listing(customer_id, page_size=100, page_number=1))

    assert [entry.amount for entry in listed] == list(range(250, 0, -1))
    assert all(new.before_balance == old.after_balance for new, old in pairwise(listed))
    assert listed[0].after_balance == sum(range(1, 251))


def test_a_thousand_events_of_one_call_are_debited(
    client: DodoPayments, customer_id: str, shop: Shop
) -> None:
    shop.meter("tokens", {"USD": "0.25"})
    answer = client.usage_events.ingest(
        events=[
            {
                "event_id": f"request-{number}",
                "customer_id": customer_id,
                "event_name": "llm.completion",
                "timestamp": datetime.now(UTC),
                "metadata": {"tokens": 1, "model": "m"},
            }
            for number in range(1000)
        ]
    )

    outcome = shop.drain()
    (entry,) = client.customers.wallets.ledger_entries.list(customer_id, currency="USD").items

    assert answer.ingested_count == 1000
    assert outcome == Outcome(posted=1000)
    assert (entry.amount, entry.is_credit, entry.after_balance) == (250, False, -250)


def test_meters_are_created_listed_archived_and_unarchived(client: DodoPayments) -> None:
    of_model: MeterFilterConditionList = {"key": "model", "operator": "equals", "value": "m"}
    made = client.meters.create(
        name="input",
        event_name="llm.completion",
        measurement_unit="token",
        aggregation={"type": "sum", "key": "input_tokens"},
        filter={"conjunction": "and", "clauses": [of_model]},
    )
    client.meters.archive(made.id)
    archived = [meter.id for meter in client.meters.list(archived=True).items]
    in_use = [meter.id for meter in client.meters.list().items]
    client.meters.unarchive(made.id)

    assert (archived, in_use) == ([made.id], [])
    assert [meter.id for meter in client.meters.list().items] == [made.id]
    assert client.meters.retrieve(made.id) == made.model_copy(
        update={"updated_at": client.meters.retrieve(made.id).updated_at}
    )


Call = Callable[[DodoPayments, str], object]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda c, _: c.customers.retrieve("cus_nobody"), dodopayments.NotFoundError),
        (lambda c, _: c.customers.wallets.list("cus_nobody"), dodopayments.NotFoundError),
        (lambda c, _: c.meters.retrieve("mtr_none"), dodopayments.NotFoundError),
        (lambda c, _: c.meters.archive("mtr_none"), dodopayments.NotFoundError),
        (
            lambda c, _: c.customers.create(email="", name="Ann"),
            dodopayments.UnprocessableEntityError,
        ),
        (
            lambda c, customer: credit(c, customer, 0),
            dodopayments.UnprocessableEntityError,
        ),
        (
            lambda c, _: c.customers.list(page_size=101),
            dodopayments.UnprocessableEntityError,
        ),
        (
            lambda c, _: c.usage_events.ingest(events=[]),
            dodopayments.UnprocessableEntityError,
        ),
        (
            lambda c, _: c.with_options(bearer_token="gk_wrong").customers.list(),
            dodopayments.AuthenticationError,
        ),
    ],
)
def test_a_refused_call_raises_the_sdk_s_own_error(
    client: DodoPayments,
    customer_id: str,
    call: Call,
    error: type[dodopayments.APIStatusError],
) -> None:
    with pytest.raises(error) as caught:
        call(client, customer_id)

    body = caught.value.response.json()
    assert set(body) == {"code", "message", "request_id", "details"}
    assert body["request_id"] == caught.value.response.headers["x-request-id"]


def test_a_key_without_the_permission_is_forbidden(api: Api) -> None:
    reader = DodoPayments(bearer_token=api.key_for("read"), base_url=api.url)

    with reader, pytest.raises(dodopayments.PermissionDeniedError):
        reader.customers.create(email="a@example.com", name="A")


def test_the_async_client_works(api: Api) -> None:
    async def run() -> list[tuple[str, int]]:
        async with AsyncDodoPayments(
            bearer_token=api.key, base_url=api.url, _strict_response_validation=True
        ) as client:
            made = await client.customers.create(email="ann@example.com", name="Ann")
            await client.customers.wallets.ledger_entries.create(
                made.customer_id, amount=5, currency="INR", entry_type="credit"
            )
            wallets = await client.customers.wallets.list(made.customer_id)
            return [(wallet.currency, wallet.balance) for wallet in wallets.items]

    assert asyncio.run(run()) == [("USD", 0), ("INR", 5)]


def test_page_numbers_count_from_the_cursor(client: DodoPayments) -> None:
    made = [
        client.customers.create(email=f"{n}@example.com", name=str(n)).customer_id for n in range(6)
    ]

    found = client.customers.list(
        page_number=1, page_size=2, extra_query={"starting_after": made[-1]}
    )

    assert [item.customer_id for item in found.items] == [made[2], made[1]]
