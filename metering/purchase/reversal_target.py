"""How much of a purchase's credit its refunds and disputes take back: pure, so it can be proved.

Refunds and lost disputes take back their share of the credit, rounded down in total, so that all
parts together are exactly the whole. Never more than was paid is taken back, however often the same
money is refunded and disputed.

A provider may report refunds one by one, or the total up to a moment, or both. A total shows how
much was refunded in refunds that were not reported. It includes all that had not failed by then,
pending ones too: a later report of a refund by its id decides about that one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

# Who reported it: a payment provider, or the shop itself. `local` is a payment simulator of earlier
# versions: it is in old rows, and nothing new is stored of it.
Provider = Literal["dodo", "stripe", "local", "shop"]
PaymentStatus = Literal["pending", "succeeded", "failed"]
# `refund_total`: all refunds of a payment up to a moment, from a provider that names none.
ReversalKind = Literal["refund", "refund_total", "dispute"]
# Of a refund: pending, succeeded, failed. Of a dispute: open, won (by the shop), lost.
ReversalStatus = Literal["pending", "succeeded", "failed", "open", "won", "lost"]
PurchaseStatus = Literal[
    "pending", "failed", "settled", "disputed", "partially_reversed", "reversed"
]


class Reversal(NamedTuple):
    """A refund or dispute of the payment of a purchase, in this status since `occurred_at`."""

    kind: ReversalKind
    status: ReversalStatus
    amount_minor: int | None
    occurred_at: datetime
    began_at: datetime | None = None

    def of(self, paid_minor: int) -> int:
        """Return its amount: all of the payment if it names none."""
        return paid_minor if self.amount_minor is None else self.amount_minor


@dataclass(frozen=True, slots=True)
class Target:
    """How much refunds and lost disputes take back of a credit, and whether it is frozen."""

    refunded_minor: int
    lost_minor: int
    is_frozen: bool

    @property
    def reversed_minor(self) -> int:
        """Return how much is taken back in total."""
        return self.refunded_minor + self.lost_minor


def target_of(credit_minor: int, paid_minor: int, reversals: Sequence[Reversal]) -> Target:
    """Return the target for a credit for which `paid_minor` was paid."""
    is_open = any(reversal.status == "open" for reversal in reversals)
    if not paid_minor:
        return Target(0, 0, is_open)
    refunded = refunded_of(reversals, paid_minor)
    lost = sum(reversal.of(paid_minor) for reversal in reversals if reversal.status == "lost")
    of_refunds = credit_minor * min(paid_minor, refunded) // paid_minor
    of_both = credit_minor * min(paid_minor, refunded + lost) // paid_minor
    return Target(of_refunds, of_both - of_refunds, is_open)


def refunded_of(reversals: Sequence[Reversal], paid_minor: int) -> int:
    """Return the sum of the reported refunds and of the rest of the newest total.

    It may exceed the payment, as a provider may report.
    """
    named = [reversal for reversal in reversals if reversal.kind == "refund"]
    totals = [
        reversal
        for reversal in reversals
        if reversal.kind == "refund_total" and reversal.status == "succeeded"
    ]
    counted: list[Reversal] = []
    unnamed = 0
    if totals:
        total = max(totals, key=lambda each: (each.occurred_at, each.of(paid_minor)))
        counted = [refund for refund in named if _is_in(total, refund)]
        in_total = sum(refund.of(paid_minor) for refund in counted)
        unnamed = max(0, total.of(paid_minor) - in_total)
    taken = [
        refund
        for refund in named
        if refund.status == "succeeded" or (refund.status == "pending" and refund in counted)
    ]
    return unnamed + sum(refund.of(paid_minor) for refund in taken)


def _is_in(total: Reversal, refund: Reversal) -> bool:
    """Tell whether a total includes a refund: requested by then, and not failed before."""
    if refund.began_at is not None and refund.began_at > total.occurred_at:
        return False
    return refund.status != "failed" or refund.occurred_at >= total.occurred_at


def status_of(credit_minor: int, target: Target) -> PurchaseStatus:
    """Return the status of a purchase that was credited."""
    if target.is_frozen:
        return "disputed"
    if target.reversed_minor == 0:
        return "settled"
    return "reversed" if target.reversed_minor >= credit_minor else "partially_reversed"
