"""Literal values of everything that is stored for ever or read by the next release.

If a test fails here, charged events would be charged again or become conflicts, and sound chains
would be reported as broken. Do not adjust a value. Give the new form a version.
"""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from metering.buffer.chunk import (
    CHUNK_VERSION,
    BufferedEvent,
    encode_chunk,
    event_key,
)
from metering.buffer.entry import head_chunk
from metering.buffer.shard import shard_of
from metering.debit.batch import key_event
from metering.idempotency import digest_of
from metering.ids import BatchId, BusinessId, Currency, CustomerId, EntryId, WalletId
from metering.ledger import manual
from metering.ledger.entry import Entry, chain_digest
from metering.ledger.manual import ManualEntry
from support.buffer_probe import decode_chunk

BUSINESS = BusinessId("bus_1")
AT = "2026-01-31T09:30:00.000000Z"

NUMBERS = BufferedEvent(
    "r-1",
    "cus_1",
    "llm.completion",
    AT,
    {
        "tokens": 812,
        "model": "large",
        "cached": False,
        "whole": 1.0,
        "big": 1e16,
        "huge": 1.7976931348623157e308,
        "small": 1e-7,
        "tenth": 0.1,
        "minus": -3,
        "wide": 9007199254740993,
    },
)
STAMPED = BufferedEvent("r-2", "cus_1", "llm.completion", AT, {}, time_given=False)
ESCAPED = BufferedEvent(
    'गुल्लक-1 "q"',
    "cus_é",
    "a\\b",
    "2026-01-31T09:30:00.123456Z",
    {"text": 'tab\there, line\nbreak, back\\slash, "quote", é गु 🐖', "yes": True},
)


NUMBERS_LINE = (
    "2e51b46500c0b9514829a81402071509\t2774781421266701299\tg\tr-1\tcus_1\tllm.completion"
    "\t2026-01-31T09:30:00.000000Z"
    '\t{"big":1e16,"cached":false,"huge":1.7976931348623157e308,"minus":-3,"model":"large"'
    ',"small":1e-7,"tenth":0.1,"tokens":812,"whole":1.0,"wide":9007199254740993}'
)
STAMPED_LINE = (
    "3929b6b1237ddfbab5a970067c306196\t-3005629618584602021\ts\tr-2\tcus_1\tllm.completion"
    "\t2026-01-31T09:30:00.000000Z\t{}"
)
ESCAPED_LINE = (
    '10c90de44b9567c7fcebb17b881ac851\t1128823597678631385\tg\tगुल्लक-1 "q"\tcus_é\ta\\\\b'
    "\t2026-01-31T09:30:00.123456Z"
    '\t{"text":"tab\\\\there, line\\\\nbreak, back\\\\\\\\slash, \\\\"quote\\\\"'
    ', é गु 🐖","yes":true}'
)
GOLDEN = [(NUMBERS, NUMBERS_LINE), (STAMPED, STAMPED_LINE), (ESCAPED, ESCAPED_LINE)]


@pytest.mark.parametrize(("event", "line"), GOLDEN)
def test_the_line_of_an_event_never_changes(event: BufferedEvent, line: str) -> None:
    """Also alone: events without characters to escape are written by another code path."""
    assert encode_chunk(BUSINESS, [event]).decode() == line


def test_a_chunk_is_its_lines() -> None:
    chunk = encode_chunk(BUSINESS, [event for event, _ in GOLDEN])

    assert chunk.decode() == "\n".join(line for _, line in GOLDEN)


def test_a_chunk_of_an_older_release_is_read() -> None:
    payload = "\n".join(line for _, line in GOLDEN).encode()

    assert decode_chunk(payload) == [event for event, _ in GOLDEN]


@pytest.mark.parametrize(("event", "line"), GOLDEN)
def test_key_and_digest_of_an_event_never_change(event: BufferedEvent, line: str) -> None:
    keyed = key_event(BUSINESS, event)

    assert [keyed.key, str(keyed.digest)] == line.split("\t")[:2]


def test_the_key_of_an_event_depends_only_on_its_business_and_id() -> None:
    keys = [
        event_key(BusinessId("bus_1"), "r-1"),
        event_key(BusinessId("bus_2"), "r-1"),
        event_key(BusinessId("bus_1"), "गुल्लक-1"),
    ]

    assert keys == [
        "2e51b46500c0b9514829a81402071509",
        "b685b7e8f0f579535bb520cdb0633c77",
        "1cb5468f7a3153f1a0e5f82a82fa0324",
    ]


def test_a_time_that_the_api_set_is_not_part_of_the_digest() -> None:
    later = STAMPED._replace(event_at="2027-01-01T00:00:00.000000Z")

    assert key_event(BUSINESS, later).digest == key_event(BUSINESS, STAMPED).digest
    assert key_event(BUSINESS, later).digest == -3005629618584602021


def test_a_customer_stays_in_its_shard() -> None:
    assert [shard_of("bus_1", f"cus_{n}", 16) for n in range(6)] == [11, 13, 7, 1, 2, 4]
    assert [shard_of("bus_é", "cus_गुल्लक", shards) for shards in (4, 16, 256)] == [3, 3, 163]


def test_a_stream_entry_without_a_version_has_version_one() -> None:
    fields = {b"b": b"bus_1", b"n": b"1", b"t": b"7", b"e": b"line"}
    chunk = head_chunk(b"5-1", fields)

    assert (chunk.version, chunk.is_newer, CHUNK_VERSION) == (1, False, 1)
    assert chunk == head_chunk(b"5-1", {**fields, b"v": b"1"})


ENTRY = Entry(
    entry_id=EntryId("ent_1"),
    wallet_id=WalletId("wal_1"),
    version=2,
    business_id=BUSINESS,
    customer_id=CustomerId("cus_é"),
    currency=Currency("USD"),
    amount_minor=150,
    is_credit=False,
    before_minor=1000,
    after_minor=850,
    event_type="debit",  # type: ignore[arg-type]  # an old value
    kind="usage",
    reason=None,
    reference=None,
    idempotency_key="key-1",
    request_digest=b"\x01\xff",
    batch_id=BatchId(7),
    event_count=3,
    exact_cost=Decimal("150.250000000000"),
    remainder_before=Decimal("0.000000000000"),
    remainder_after=Decimal("0.250000000000"),
    metadata_json='{"note": "é"}',
    created_at=datetime(2026, 1, 31, 9, 30, tzinfo=UTC),
)


@pytest.mark.parametrize(
    ("place", "digest"),
    [
        (None, "b92d025cbe26976e7b1eb9d8285a09a2a2a9f3c316357193eef77fae358c8d0b"),
        (0, "c00021e8fc3e102c6cc6021f573996b11f76456c916d150d97023970736ade02"),
    ],
)
def test_the_chain_of_entries_keeps_its_digests(place: int | None, digest: str) -> None:
    entry = ENTRY._replace(debited_before_minor=place)

    assert chain_digest(b"\0" * 32, entry).hex() == digest


def test_the_content_of_a_request_keeps_its_digest() -> None:
    request = {"kind": "credit", "customer_id": "cus_é", "amount": 5000, "metadata": {"b": 1.0}}

    assert digest_of(request).hex() == "173cbc86fd152527901f1d4b4c667098"


def test_a_manual_entry_keeps_its_digest() -> None:
    """An absent field must not count, or each retry across an upgrade conflicts."""
    request = ManualEntry(
        amount=50_00, currency="USD", entry_type="credit", reason="top-up", idempotency_key="o-1"
    )

    assert (
        manual._digest(CustomerId("cus_1"), request, "manual").hex()
        == "56a0ea3b8aebdc5b2ced6c50a87b04b4"
    )
