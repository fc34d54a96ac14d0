"""`gullak lots`, `explain` and `refund`: which credit paid for what, and giving it back."""

from typing import Annotated

import typer

from metering.ids import Currency, CustomerId, EntryId
from metering.ledger.entry import Entry
from metering.ledger.history import get_entry
from metering.ledger.lots.listing import (
    Allocations,
    LotFilter,
    LotView,
    allocations_of,
    list_lots,
)
from metering.ledger.wallets import wallet_of
from metering.purchase.refund import DebitRefund, refund_debit
from worker.cli.entry import Key, Reason
from worker.cli.entry_usage import EntryUsage
from worker.cli.options import AsJson, Business, Limit, Wide, minor
from worker.cli.show import money, print_json, print_record, print_table
from worker.cli.target import DataDir, Target, business_of, open_target

EntryArgument = Annotated[str, typer.Argument(help="Ledger entry id.", metavar="ENTRY")]


def lots(
    *,
    customer: Annotated[str, typer.Argument(help="Customer id.", metavar="CUSTOMER")],
    currency: Annotated[
        str | None, typer.Option(help="ISO 4217 code. Default: all.", metavar="CODE")
    ] = None,
    only_left: Annotated[
        bool, typer.Option("--only-left", help="Leave out what is used up.")
    ] = False,
    limit: Limit = 20,
    wide: Wide = False,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show the lots of a customer's credit, newest first."""
    wanted = LotFilter(
        currency=None if currency is None else Currency(currency), only_left=only_left
    )
    with open_target(data_dir) as target, target.transaction() as conn:
        business_id = business_of(conn, business)
        found = list_lots(conn, business_id, CustomerId(customer), wanted, page=limit)
    if as_json:
        print_json(found)
        return
    columns = ("lot_id", "source", "amount#", "left#", "expires_at", "frozen_at")
    rows = [_lot_row(lot, target) for lot in found]
    print_table((*columns, "priority#", "entry_id"), rows, wide=wide)


def _lot_row(lot: LotView, target: Target) -> tuple[object, ...]:
    decimals = target.settings.currencies
    return (
        lot.lot_id,
        lot.source,
        money(lot.amount_minor, lot.currency, decimals),
        money(lot.left_minor, lot.currency, decimals),
        lot.expires_at,
        lot.frozen_at,
        lot.priority,
        lot.entry_id,
    )


def explain(
    *,
    entry: EntryArgument,
    limit: Limit = 20,
    wide: Wide = False,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Explain an entry: why it was made, of which events, and which lots it burned or filled."""
    with open_target(data_dir) as target, target.transaction() as conn:
        found = get_entry(conn, business_of(conn, business), EntryId(entry))
        allocations = allocations_of(conn, found)
        usage = EntryUsage.of(conn, found, limit)
    if as_json:
        lots = [item._asdict() for item in allocations.items]
        shown = {"lots": lots, "unpaid_minor": allocations.unpaid_minor, **usage.as_json()}
        print_json({**found._asdict(), **shown})
        return
    print_record(_entry_fields(found, target), found.entry_id)
    rows = _allocation_rows(found, allocations, target)
    print_table(("lot_id", "source", "amount#"), rows, "lots")
    usage.print(wide=wide)


def _entry_fields(entry: Entry, target: Target) -> dict[str, object]:
    decimals = target.settings.currencies
    return {
        "customer_id": entry.customer_id,
        "what": f"{entry.kind} {'credit' if entry.is_credit else 'debit'}",
        "amount": money(entry.amount_minor, entry.currency, decimals),
        "balance before": money(entry.before_minor, entry.currency, decimals),
        "balance after": money(entry.after_minor, entry.currency, decimals),
        "reason": entry.reason,
        "reference": entry.reference,
        "idempotency key": entry.idempotency_key,
        "batch": entry.batch_id,
        "events": entry.event_count or None,
        "exact cost (minor)": entry.exact_cost,
        "version": entry.version,
        "created_at": entry.created_at,
    }


def _allocation_rows(
    entry: Entry, allocations: Allocations, target: Target
) -> list[tuple[str, str, str]]:
    decimals = target.settings.currencies
    rows: list[tuple[str, str, str]] = [
        (item.lot_id, item.source, money(item.amount_minor, entry.currency, decimals))
        for item in allocations.items
    ]
    if unpaid_minor := allocations.unpaid_minor:
        rows.append(("none yet", "debt", money(unpaid_minor, entry.currency, decimals)))
    return rows


def refund(
    *,
    entry: EntryArgument,
    reason: Reason,
    amount: Annotated[int | None, minor("--amount", "Default: all that is left to refund.")] = None,
    key: Key = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Give a debit back to the lots that it burned, because what it paid for was not delivered."""
    request = DebitRefund(amount=amount, reason=reason, idempotency_key=key)
    with open_target(data_dir) as target, target.transaction() as conn:
        business_id = business_of(conn, business)
        debit = get_entry(conn, business_id, EntryId(entry))
        refunded = refund_debit(conn, business_id, debit.customer_id, debit.entry_id, request)
        credited = get_entry(conn, business_id, refunded.entry_id)
        balance_minor = wallet_of(
            conn, business_id, debit.customer_id, debit.currency
        ).balance_minor
    if as_json:
        print_json(
            {
                "entry_id": refunded.entry_id,
                "wallet_id": refunded.wallet_id,
                "replayed": refunded.replayed,
                "amount_minor": credited.amount_minor,
                "balance_minor": balance_minor,
            }
        )
        return
    decimals = target.settings.currencies
    done = "was refunded before" if refunded.replayed else "is refunded"
    amount_text = money(credited.amount_minor, debit.currency, decimals)
    now = money(balance_minor, debit.currency, decimals)
    typer.echo(f"{amount_text} of {entry} {done} by {refunded.entry_id}; the balance is {now}")
