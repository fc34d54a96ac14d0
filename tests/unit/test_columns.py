"""Rows are read and written by position: the SQL names columns in the order of the tuples."""

import ast
import inspect
import re
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from metering.buffer.chunk import LINE_FIELDS, BufferedEvent, encode_chunk
from metering.debit.batch import key_event
from metering.debit.prepare import usage_lines
from metering.debit.price import PricedEvent
from metering.debit.statements import COPY_EVENTS, USAGE_COLUMNS
from metering.ids import BatchId, BusinessId, Currency, CustomerId, LotId, WalletId
from metering.ledger import post, statements
from metering.ledger.entry import Entry, LotMove, Posting, Wallet
from metering.ledger.plan import plan_entries

# Columns whose field has another name.
STORED = {"metadata_json": "metadata"}


def columns(listed: str) -> list[str]:
    """The names in a list of columns; an expression counts by its alias."""
    plain = re.sub(r"\([^()]*\)", "", re.sub(r"::\w+", "", listed))
    return [column.split()[-1] for column in plain.split(",")]


def test_a_wallet_under_lock_is_read_in_the_order_of_its_fields() -> None:
    assert columns(statements._WALLET) == list(Wallet._fields)


def test_an_entry_is_read_and_written_in_the_order_of_its_fields() -> None:
    assert columns(statements.ENTRY_COLUMNS) == [STORED.get(f, f) for f in Entry._fields]


def test_the_line_of_an_entry_holds_its_fields_in_their_order() -> None:
    """Checked in the source, because values of one type look alike in a line."""
    tree = ast.parse(inspect.getsource(post._line))
    fields = [
        (node.lineno, node.col_offset, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "entry"
    ]

    assert list(dict.fromkeys(name for _, _, name in sorted(fields))) == list(Entry._fields)


def test_the_insert_statement_binds_each_field_to_its_own_column() -> None:
    sql = statements.INSERT_ENTRIES.text
    values = re.search(r"VALUES \((.*)\)$", sql, re.DOTALL)
    assert values
    assert re.findall(r":(\w+)", values[1]) == list(Entry._fields)


def test_the_digest_of_an_entry_takes_the_first_fifteen_fields_by_position() -> None:
    assert Entry._fields[:16] == (
        "entry_id", "wallet_id", "version", "business_id", "customer_id", "currency",
        "amount_minor", "is_credit", "before_minor", "after_minor", "event_type", "kind",
        "reason", "reference", "idempotency_key", "request_digest",
    )  # fmt: skip
    assert Entry._fields[-1] == "chain"


def distinct_wallet() -> Wallet:
    """A wallet whose fields all differ."""
    return Wallet(
        wallet_id=WalletId("wal_1"),
        business_id=BusinessId("bus_1"),
        customer_id=CustomerId("cus_1"),
        currency=Currency("USD"),
        balance_minor=5_001,
        remainder=Decimal("0.25"),
        version=7,
        chain=b"\1" * 32,
        overdraft_limit_minor=31,
        debited_minor=6_002,
        covered_minor=5_990,
        lot_id=LotId("lot_1"),
        lot_left_minor=44,
        lot_from_minor=3_003,
        lot_until=datetime(2040, 1, 1, tzinfo=UTC),
        frozen_minor=17,
    )


@pytest.mark.parametrize("moves", [(), (LotMove(LotId("lot_2"), 3),)])
def test_a_debit_changes_only_the_fields_of_a_debit(moves: tuple[LotMove, ...]) -> None:
    wallet = distinct_wallet()
    posting = Posting(
        wallet_id=wallet.wallet_id, kind="manual", is_credit=False, amount_minor=10, lot_moves=moves
    )

    (entry,), moved = plan_entries(
        {wallet.wallet_id: wallet}, [posting], datetime(2030, 1, 1, tzinfo=UTC)
    )

    in_turn = 10 - sum(move.amount_minor for move in moves)
    assert moved[wallet.wallet_id] == wallet._replace(
        balance_minor=4_991,
        version=8,
        chain=entry.chain,
        debited_minor=6_002 + in_turn,
        covered_minor=5_990 + in_turn,
        lot_left_minor=44 - in_turn,
    )


def test_an_event_keeps_its_columns_from_the_buffered_line_to_the_usage_row() -> None:
    event = BufferedEvent("r-1", "cus_1", "call", "2026-01-31T09:30:00.000000Z", {"tokens": 8})
    written = {**event._asdict(), "metadata": '{"tokens":8}', "time_given": "g"}
    of_batch = {"business_id": "bus_1", "currency": "USD", "cost_minor": "25e-1", "batch_id": "7"}

    line = encode_chunk(BusinessId("bus_1"), [event]).decode()
    priced = PricedEvent(
        key_event(BusinessId("bus_1"), event), WalletId("wal_1"), Currency("USD"), 25, 1, None
    )
    (row,) = usage_lines([priced], BatchId(7))

    assert line.split("\t")[2:] == [written[name] for name in LINE_FIELDS[2:]]
    assert row.split("\t") == [{**written, **of_batch}[name] for name in USAGE_COLUMNS]
    assert columns(COPY_EVENTS.partition("(")[2].partition(")")[0]) == list(USAGE_COLUMNS)
