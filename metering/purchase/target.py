"""From what is known of a payment to what its purchase ought to be: pure, so that it can be proved.

Refunds and lost disputes call back the share of the credit that they are of what was paid, rounded
down in total, so that all parts together are exactly the whole. More than was paid is not called
back, however often the same money is refunded and disputed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from metering.purchase.facts import ReversalKind, ReversalStatus

PurchaseStatus = Literal[
    "pending", "failed", "settled", "disputed", "partially_reversed", "reversed"
]


class Reversal(NamedTuple):
    """A refund or dispute of the payment of a purchase."""

    kind: ReversalKind
    status: ReversalStatus
    amount_minor: int | None


@dataclass(frozen=True, slots=True)
class Target:
    """What refunds and lost disputes have called back of a credit, and whether it is frozen."""

    refunded_minor: int
    lost_minor: int
    is_frozen: bool

    @property
    def reversed_minor(self) -> int:
        """Return what was called back in all."""
        return self.refunded_minor + self.lost_minor


def target_of(credit_minor: int, paid_minor: int, reversals: Sequence[Reversal]) -> Target:
    """Return what ought to be called back of a credit for which `paid_minor` was paid."""
    refunded = _sum(reversals, "succeeded", paid_minor)
    lost = _sum(reversals, "lost", paid_minor)
    of_refunds = credit_minor * min(paid_minor, refunded) // paid_minor
    of_both = credit_minor * min(paid_minor, refunded + lost) // paid_minor
    is_open = any(reversal.status == "open" for reversal in reversals)
    return Target(of_refunds, of_both - of_refunds, is_open)


def _sum(reversals: Sequence[Reversal], status: ReversalStatus, all_minor: int) -> int:
    return sum(
        all_minor if reversal.amount_minor is None else reversal.amount_minor
        for reversal in reversals
        if reversal.status == status
    )


def status_of(credit_minor: int, target: Target) -> PurchaseStatus:
    """Return what a purchase that was credited is called."""
    if target.is_frozen:
        return "disputed"
    if target.reversed_minor == 0:
        return "settled"
    return "reversed" if target.reversed_minor >= credit_minor else "partially_reversed"
