"""`gullak lots` and `refund`: the credit of a customer, and giving a debit back to it."""

from typing import Annotated

from typer import Option

from metering.ids import Currency
from metering.ledger.history import get_entry
from metering.ledger.lots.listing import LotFilter, LotView, list_lots
from metering.ledger.wallets import wallet_of
from metering.purchase.refund import DebitRefund, refund_debit
from worker.cli.command import Tenant, command
from worker.cli.options import CustomerArgument, EntryArgument, Key, Limit, Reason, minor
from worker.cli.page import Sentence, table
from worker.cli.show import money


@command(
    table(
        """
            lot_id, source, amount# = $amount_minor, left# = $left_minor, expires_at, frozen_at,
            priority#, entry_id
        """,
    )
)
def lots(
    tenant: Tenant,
    customer: CustomerArgument,
    currency: Annotated[
        Currency | None, Option(help="ISO 4217 code. Default: all.", metavar="CODE")
    ] = None,
    only_left: Annotated[
        bool, Option("--only-left", help="Leave out lots that are used up.")
    ] = False,
    limit: Limit = 20,
) -> list[LotView]:
    """Show the lots of a customer's credit, newest first."""
    wanted = LotFilter(currency=currency, only_left=only_left)
    return tenant.run(list_lots, customer, wanted, page=limit)


@command()
def refund(
    tenant: Tenant,
    entry: EntryArgument,
    reason: Reason,
    amount: Annotated[int | None, minor("--amount", "Default: all that is left to refund.")] = None,
    key: Key = None,
) -> Sentence:
    """Give a debit back to the lots that paid for it."""
    request = DebitRefund(amount=amount, reason=reason, idempotency_key=key)
    debit = tenant.run(get_entry, entry)
    refunded = tenant.run(refund_debit, debit.customer_id, debit.entry_id, request)
    amount_minor = tenant.run(get_entry, refunded.entry_id).amount_minor
    balance_minor = tenant.run(wallet_of, debit.customer_id, debit.currency).balance_minor
    record = {
        "entry_id": refunded.entry_id,
        "wallet_id": refunded.wallet_id,
        "replayed": refunded.replayed,
        "amount_minor": amount_minor,
        "balance_minor": balance_minor,
    }
    back, now = (
        money(minor_units, debit.currency, tenant.target.settings.currencies)
        for minor_units in (amount_minor, balance_minor)
    )
    done = "was refunded before" if refunded.replayed else "is refunded"
    text = f"{back} of {entry} {done} by {refunded.entry_id}; the balance is {now}"
    return Sentence(record, text)
