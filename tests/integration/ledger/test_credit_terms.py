"""A credit by hand has terms: its expiry, its source and its priority."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from metering.errors import IdempotencyConflictError, InvalidInputError
from metering.ids import CustomerId
from metering.ledger.entry import Entry, Posting
from metering.ledger.manual import Entered, ManualEntry, _digest, _lot_terms, enter
from metering.ledger.post import post
from support.edge import Api
from support.tenant import LONG_AGO, Shop

SOON = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
TERMS = {"expires_at": SOON.isoformat(), "source": "promotional", "priority": 10, "cost_basis": 7}


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def client(module_api: Api) -> Iterator[httpx.Client]:
    with module_api.client() as opened:
        yield opened


def request(**changes: object) -> ManualEntry:
    return ManualEntry.model_validate(
        {"amount": 100, "currency": "USD", "entry_type": "credit", **changes}
    )


def entered(shop: Shop, entry_request: ManualEntry) -> Entered:
    with shop.sessions.transaction() as conn:
        return enter(conn, shop.business_id, shop.customers[0], entry_request)


def lot_of(shop: Shop, entry_id: str) -> tuple[Any, ...]:
    (row,) = shop.rows(
        "SELECT expires_at, source, priority, cost_basis_minor FROM credit_lots"
        f" WHERE entry_id = '{entry_id}'"
    )
    return row


def test_a_lot_has_the_given_terms(shop: Shop) -> None:
    made = entered(shop, request(**TERMS))

    assert lot_of(shop, made.entry_id) == (SOON, "promotional", 10, 7)


def test_absent_terms_have_defaults(shop: Shop) -> None:
    made = entered(shop, request())

    assert lot_of(shop, made.entry_id) == (None, "manual", 50, None)


def test_promotional_credit_is_consumed_before_paid_credit(shop: Shop) -> None:
    paid, gift = (entered(shop, request(source=source)) for source in ("paid", "promotional"))

    shop.enter(100, debit=True)

    rows = shop.rows(
        "SELECT l.entry_id, CASE WHEN w.lot_id = l.lot_id THEN w.lot_left_minor"
        " ELSE l.remaining_minor END FROM credit_lots l JOIN wallets w USING (wallet_id)"
        f" WHERE l.business_id = '{shop.business_id}'"
    )
    assert sorted(rows) == sorted([(paid.entry_id, 100), (gift.entry_id, 0)])


@pytest.mark.parametrize("field", TERMS)
def test_a_debit_with_terms_is_refused(field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        request(entry_type="debit", **{field: TERMS[field]})

    assert [problem["loc"] for problem in refused.value.errors()] == [(field,)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("expires_at", "2030-01-01"),
        ("expires_at", "2030-01-01T00:00:00"),
        ("expires_at", 1_900_000_000),
        ("expires_at", "9999-12-31T23:59:59-12:00"),
        ("expires_at", "0001-01-01T00:00:00+12:00"),
        ("source", "refund"),
        ("priority", -1),
        ("priority", 101),
        ("priority", 50.0),
        ("priority", True),
        ("cost_basis", -1),
        ("cost_basis", "7"),
    ],
)
def test_bad_terms_are_refused_by_their_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        request(**{field: value})

    assert [problem["loc"] for problem in refused.value.errors()] == [(field,)]


def test_credit_that_has_expired_already_is_refused(shop: Shop) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)

    with pytest.raises(InvalidInputError, match="expires_at: must be in the future"):
        entered(shop, request(expires_at=past))

    assert shop.wallet().version == 0


def entered_long_ago(shop: Shop, entry_request: ManualEntry) -> Entry:
    """Write the entry that `enter` wrote for a request before its credit expired."""
    posting = Posting(
        wallet_id=shop.wallet().wallet_id,
        kind="manual",
        is_credit=True,
        amount_minor=entry_request.amount,
        idempotency_key=entry_request.idempotency_key,
        request_digest=_digest(shop.customers[0], entry_request, "manual"),
        lot_terms=_lot_terms(entry_request),
    )
    with shop.sessions.transaction() as conn:
        (entry,) = post(conn, [posting])
    return entry


def test_a_repeated_request_is_answered_after_its_credit_has_expired(shop: Shop) -> None:
    entry_request = request(expires_at=LONG_AGO, idempotency_key="k")
    first = entered_long_ago(shop, entry_request)

    again = entered(shop, entry_request)

    assert (again.entry_id, again.replayed) == (first.entry_id, True)


@pytest.mark.parametrize("field", TERMS)
def test_a_key_with_other_terms_is_a_conflict(shop: Shop, field: str) -> None:
    entered(shop, request(idempotency_key="k"))

    with pytest.raises(IdempotencyConflictError):
        entered(shop, request(idempotency_key="k", **{field: TERMS[field]}))


def test_equal_times_in_two_zones_are_the_same_content(shop: Shop) -> None:
    first = entered(shop, request(idempotency_key="k", expires_at=SOON))
    elsewhere = SOON.isoformat().replace("+00:00", "Z")

    assert entered(shop, request(idempotency_key="k", expires_at=elsewhere)).replayed
    assert not first.replayed


def test_a_key_from_before_there_were_terms_still_matches_its_content() -> None:
    """The release before lots wrote this digest for this request."""
    entry_request = request(amount=1, idempotency_key="k", reason="r", metadata={"b": 1, "a": True})

    assert (
        _digest(CustomerId("cus"), entry_request, "manual").hex()
        == "5e1870f6dcbd3a24729ecb3965c3f593"
    )


def test_over_http_a_credit_has_terms_and_terms_of_a_debit_are_refused_by_name(
    client: httpx.Client, shop: Shop
) -> None:
    path = f"/customers/{shop.customers[0]}/wallets/ledger-entries"
    entry = {"amount": 100, "currency": "USD", **TERMS}

    good = client.post(path, json={**entry, "entry_type": "credit"})
    bad = client.post(path, json={**entry, "entry_type": "debit"})

    assert (good.status_code, good.json()["balance"]) == (200, 100)
    assert (bad.status_code, bad.json()["code"]) == (422, "INVALID_REQUEST_BODY")
    assert [detail["field"] for detail in bad.json()["details"]] == list(TERMS)
    assert shop.wallet().version == 1


def test_over_http_expired_credit_is_refused_but_a_repeated_key_is_answered(
    client: httpx.Client, shop: Shop
) -> None:
    path = f"/customers/{shop.customers[0]}/wallets/ledger-entries"
    entered_long_ago(shop, request(expires_at=LONG_AGO, idempotency_key="k"))
    credit = {
        "amount": 100,
        "currency": "USD",
        "entry_type": "credit",
        "expires_at": LONG_AGO.isoformat(),
    }

    refused = client.post(path, json=credit)
    repeated = client.post(path, json={**credit, "idempotency_key": "k"})

    assert refused.status_code == 422
    assert refused.json()["details"] == [{"field": "expires_at", "reason": "must be in the future"}]
    assert repeated.status_code == 200
    assert repeated.headers["Idempotent-Replayed"] == "true"
