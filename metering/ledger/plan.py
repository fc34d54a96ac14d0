"""Turn locked wallets and postings into entries, without the database."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from metering.errors import BalanceOutOfRangeError, InsufficientFundsError
from metering.ids import EntryId, WalletId, new_ids
from metering.ledger.entry import Entry, Posting, Wallet, chain_digest
from metering.money import EXACT, INT64_MAX, split_minor


def plan_entries(
    wallets: Mapping[WalletId, Wallet], postings: Sequence[Posting], now: datetime
) -> tuple[list[Entry], dict[WalletId, Wallet]]:
    """Return the entries, in the order of the postings, and the wallets after them.

    Raises: InsufficientFundsError if a debit that is not usage exceeds balance and overdraft limit.
    BalanceOutOfRangeError if a balance, or it and all debits ever, would not fit 64 bits.
    """
    after = dict(wallets)
    entries: list[Entry] = []
    ids = new_ids("ent", len(postings))
    for entry_id, posting in zip(ids, postings, strict=True):
        wallet = after[posting.wallet_id]
        entry = _entry(EntryId(entry_id), wallet, posting, now)
        moved = _moved(wallet, entry, posting, now)
        # Balance and debits lie on one line, whose places have 64 bits too.
        if moved.debited_minor + max(0, moved.balance_minor) > INT64_MAX:
            raise BalanceOutOfRangeError(wallet.wallet_id)
        after[posting.wallet_id] = moved
        entries.append(entry)
    return entries, after


def _moved(wallet: Wallet, entry: Entry, posting: Posting, now: datetime) -> Wallet:
    """Return the wallet after an entry. The current lot pays, if it can pay all of it.

    Otherwise `covered_minor` stays behind `debited_minor`, and a `LotBook` pays the rest.
    """
    debited, covered, left = wallet.debited_minor, wallet.covered_minor, wallet.lot_left_minor
    if not entry.is_credit:
        in_turn = entry.amount_minor
        if posting.lot_moves:
            in_turn -= posting.moved_minor
        debited += in_turn
        if in_turn <= left and (wallet.lot_until is None or now < wallet.lot_until):
            covered += in_turn
            left -= in_turn
    # Made for every wallet of a batch, so without `_replace`, which takes three times as long.
    return Wallet(
        wallet.wallet_id,
        wallet.business_id,
        wallet.customer_id,
        wallet.currency,
        entry.after_minor,
        entry.remainder_after,
        entry.version,
        entry.chain,
        wallet.overdraft_limit_minor,
        debited,
        covered,
        wallet.lot_id,
        left,
        wallet.lot_from_minor,
        wallet.lot_until,
        wallet.frozen_minor,
    )


def _entry(entry_id: EntryId, wallet: Wallet, posting: Posting, now: datetime) -> Entry:
    amount_minor, exact_cost, remainder = _amounts(wallet, posting)
    after_minor = wallet.balance_minor + (amount_minor if posting.is_credit else -amount_minor)
    _check_limits(wallet, posting, amount_minor, after_minor)
    entry = Entry(
        entry_id=entry_id,
        wallet_id=wallet.wallet_id,
        version=wallet.version + 1,
        business_id=wallet.business_id,
        customer_id=wallet.customer_id,
        currency=wallet.currency,
        amount_minor=amount_minor,
        is_credit=posting.is_credit,
        before_minor=wallet.balance_minor,
        after_minor=after_minor,
        event_type=posting.event_type,
        kind=posting.kind,
        reason=posting.reason,
        reference=posting.reference,
        idempotency_key=posting.idempotency_key,
        request_digest=posting.request_digest,
        batch_id=posting.batch_id,
        event_count=posting.event_count,
        exact_cost=exact_cost,
        remainder_before=wallet.remainder,
        remainder_after=remainder,
        metadata_json=posting.metadata_json,
        created_at=now,
        debited_before_minor=None if posting.is_credit else wallet.debited_minor,
    )
    # Made for every wallet of a batch, so without `_replace`, which takes three times as long.
    return Entry(*entry[:-1], chain=chain_digest(wallet.chain, entry))


def _amounts(wallet: Wallet, posting: Posting) -> tuple[int, Decimal, Decimal]:
    """Return whole minor units to move, the exact cost, and the remainder to carry."""
    if posting.kind != "usage":
        return posting.amount_minor, Decimal(posting.amount_minor), wallet.remainder
    whole, rest = split_minor(EXACT.add(wallet.remainder, posting.exact_cost))
    return whole, posting.exact_cost, rest


def _check_limits(wallet: Wallet, posting: Posting, amount_minor: int, after_minor: int) -> None:
    if not -INT64_MAX <= after_minor <= INT64_MAX:
        raise BalanceOutOfRangeError(wallet.wallet_id)
    overdrawn = after_minor < -wallet.overdraft_limit_minor
    if overdrawn and not (posting.is_credit or posting.kind == "usage" or posting.may_owe):
        raise InsufficientFundsError(wallet.wallet_id, wallet.balance_minor, amount_minor)
