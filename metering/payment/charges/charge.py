"""Charge: claim, ask the provider outside any transaction, record what it says.

A charge is stored, with the id that is its idempotency key at the provider, before anybody is asked
for money. A claim moves `due_at` ahead, so who dies between the call and the record gives it back,
and the same key is asked again. What a provider answers is kept as a fact of a payment, as its
webhooks are; ledger, purchase and checkout follow from facts, whichever come first. So a lost
webhook costs only time, and a lost answer as well.

Nothing is called a failure while money may have moved: after too long without an answer a charge is
parked, and a person looks at it (`gullak charge`). So is a top-up that a provider refuses to be
asked for: the request is at fault, not the card. A checkout or a page that it refuses fails,
because a customer waits.

Locks, in this order: a payment, its charge, its purchase or checkout, a top-up rule, a wallet.
Facts are noted in that order too: see `facts`.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import structlog
from sqlalchemy import Connection, Row

from metering.checkpoint import Checkpoint, no_checkpoint
from metering.db import DATABASE_ERRORS, Transactions, cause_of, is_server_fault
from metering.errors import (
    ConfigurationError,
    GatewayRefusedError,
    GatewayUnavailableError,
    GullakError,
    UnreadableSecretError,
)
from metering.ids import ChargeId, PurchaseId
from metering.payment.charges import statements
from metering.payment.charges.store import (
    Charge,
    Gateways,
    ProviderAccount,
    account_of,
    charge_of,
    due_charges,
    end_charge,
    lock_charge_of,
    park_charge,
)
from metering.payment.checkouts.checkout import settle_checkout
from metering.payment.facts import PaidFor, PaymentFact, note_payment
from metering.payment.inbox import apply_parked
from metering.payment.top_ups.result import RETRY_S, DeclinedBy, note_paid, note_unpaid
from metering.payment.vendors.gateway import KEEPS_KEYS, ChargeAnswer, ChargeRequest, PaymentGateway
from metering.purchase import statements as of_purchases
from metering.purchase.settle import settle_purchase
from metering.vault import Vault, vault_of

__all__ = ["ChargePolicy", "due_charges", "run_charge", "settle_due", "settle_paid"]

log = structlog.get_logger("gullak.charge")

# Never asked again before this: longer than any call takes, the task's time limit included. Two
# calls at once could charge twice where a provider keeps no idempotency keys.
LEASE_S: Final = 90
# Where it keeps them, two calls at once charge once. Longer than the one exchange of a first
# attempt, so that few are asked for twice; short for a customer whose worker was killed.
KEYED_LEASE_S: Final = 12
DOUBLINGS_MAX: Final = 20

Step = Literal["start", "look_up", "cancel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargePolicy:
    """How long who waits for what, in seconds; all but the leases are settings of the operator."""

    # Between attempts: doubled each time, up to the other.
    retry_s: int = 5
    retry_max_s: int = 900
    # Without any answer a charge is asked for again for so long, then parked.
    ask_for_s: int = 82_800
    # One that the provider has taken on is looked up for so long, then parked.
    look_up_for_s: int = 7 * 86_400
    # After a declined top-up: doubled with each decline.
    decline_retry_s: int = RETRY_S
    lease_s: int = LEASE_S
    keyed_lease_s: int = KEYED_LEASE_S

    def wait_s(self, attempts: int) -> int:
        """Return how long to wait after so many attempts."""
        return min(self.retry_max_s, self.retry_s << min(attempts - 1, DOUBLINGS_MAX))


POLICY: Final = ChargePolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A charge, and what is to be asked of whom."""

    charge: Charge
    request: ChargeRequest = field(repr=False)
    account: ProviderAccount
    step: Step

    @property
    def is_repeated(self) -> bool:
        """Tell whether somebody may have asked before."""
        return self.charge.attempts > 1


class _Unknown(NamedTuple):
    """Nobody knows what has become of a charge; `is_final`: asking again changes nothing."""

    reason: str
    is_final: bool


def run_charge(
    transaction: Transactions,
    gateways: Gateways,
    charge_id: ChargeId,
    policy: ChargePolicy = POLICY,
    checkpoint: Checkpoint = no_checkpoint,
) -> bool:
    """Ask for a charge that is due, or look what has become of it; tell whether anybody was asked.

    Safe twice and at once: of two runs one claims it.
    """
    with transaction() as conn:
        asked = _claim(conn, charge_id, policy)
    if asked is None:
        return False
    checkpoint("after_claim")
    answer = _ask(gateways, asked)
    checkpoint("after_charge")
    with transaction() as conn:
        _record(conn, asked, answer, policy)
    checkpoint("after_record")
    return True


def settle_paid(
    conn: Connection,
    paid_for: PaidFor,
    policy: ChargePolicy = POLICY,
    declined_by: DeclinedBy = "provider",
) -> bool:
    """Let a purchase or checkout follow what is known of its payments; tell if it did.

    Its charge and its top-up rule follow with it.

    Raises:
        NotFoundError: there is no such purchase or checkout.

    """
    if paid_for.checkout_id is not None:
        return settle_checkout(conn, paid_for.checkout_id)
    if paid_for.purchase_id is not None:
        return _settle_purchase(conn, paid_for.purchase_id, policy, declined_by)
    return False


def settle_due(conn: Connection, purchase_id: PurchaseId, policy: ChargePolicy = POLICY) -> bool:
    """Settle a purchase that is due; tell if anything came of it.

    What the ledger refuses, a balance out of range, it would refuse every time: the purchase says
    so in its `failure` and is due no more until something new is known of it. A fault of the server
    is raised, and the purchase stays due.
    """
    try:
        with conn.begin_nested():
            return settle_paid(conn, PaidFor(purchase_id, None), policy)
    except (*DATABASE_ERRORS, GullakError) as error:
        if is_server_fault(error):
            raise
        reason = _reason(error)
        log.warning("purchase.refused", purchase_id=purchase_id, reason=reason)
        values = {"purchase_id": purchase_id, "reason": reason}
        conn.execute(of_purchases.NOT_FOLLOWED, values)
        return False


def _reason(error: Exception) -> str:
    """Return what a person may read: of the database's error its name only."""
    if isinstance(error, GullakError):
        return error.message
    return f"the database refuses it: {type(cause_of(error)).__name__}"


# --- claim ----------------------------------------------------------------------------------------


def _claim(conn: Connection, charge_id: ChargeId, policy: ChargePolicy) -> Asked | None:
    """Take a charge; None: it is not due, or what is known already ends it, or it is parked."""
    values = {
        "charge_id": charge_id,
        "lease_s": policy.lease_s,
        "keyed_lease_s": policy.keyed_lease_s,
        "keyed": list(KEEPS_KEYS),
    }
    row = conn.execute(statements.CLAIM, values).one_or_none()
    if row is None:
        return None
    charge = charge_of(row)
    settle_paid(conn, _paid_for(charge), policy)
    found = conn.execute(statements.TO_ASK, {"charge_id": charge_id}).one()
    if not found.is_open:
        return None
    asked = _asked(vault_of(conn), charge, found)
    if found.refusal is not None and not asked.is_repeated:
        is_off = found.refusal == "account_disabled"
        by: DeclinedBy = "account_disabled" if is_off else "nobody"
        end_with(conn, asked, _failed(found.refusal), policy, declined_by=by)
        return None
    patience_s = policy.ask_for_s if charge.status == "new" else policy.look_up_for_s
    if found.age_s > patience_s:
        park_charge(conn, charge_id, f"no answer for {found.age_s} s")
        return None
    return asked


def _asked(vault: Vault, charge: Charge, found: Row[Any]) -> Asked:
    account = account_of(vault, found)
    request = ChargeRequest(
        charge_id=charge.charge_id,
        amount_minor=charge.amount_minor,
        currency=charge.currency,
        customer_id=charge.customer_id,
        email=found.email,
        name=found.name,
        payment_method=charge.payment_method,
        description=f"order {found.ordered}",
        return_url=charge.return_url,
    )
    step: Step = "start" if charge.status == "new" else "look_up"
    if found.is_over:
        step = "cancel"
    return Asked(charge=charge, request=request, account=account, step=step)


def _paid_for(charge: Charge) -> PaidFor:
    return PaidFor(charge.purchase_id, charge.checkout_id)


def asked_by_hand(conn: Connection, charge_id: ChargeId) -> Asked:
    """Return a charge with what its provider can be asked, whoever's turn it is."""
    found = conn.execute(statements.TO_ASK, {"charge_id": charge_id}).one()
    values = {"business_id": found.business_id, "charge_id": charge_id}
    return _asked(vault_of(conn), charge_of(conn.execute(statements.CHARGE, values).one()), found)


# --- ask: outside any transaction -----------------------------------------------------------------


def _ask(gateways: Gateways, asked: Asked) -> ChargeAnswer | _Unknown:
    is_first = asked.step == "start" and not asked.is_repeated
    if asked.account.is_unreadable:
        return _Unknown(UnreadableSecretError().message, is_final=False)
    try:
        return _call(gateways(asked.account), asked)
    except GatewayUnavailableError as error:
        return _Unknown(error.reason, is_final=False)
    except GatewayRefusedError as error:
        if is_first:
            return _refused(asked, error.reason)
        return _Unknown(error.reason, is_final=True)
    except ConfigurationError as error:
        # Nobody was asked, and an account that is not set up is put right one day.
        fails = is_first and not asked.charge.is_top_up
        return _failed(error.message) if fails else _Unknown(error.message, is_final=False)


def _refused(asked: Asked, reason: str) -> ChargeAnswer | _Unknown:
    """Return what becomes of a request that the provider refuses, and of which it knows nothing."""
    if not asked.charge.is_top_up:
        return _failed(reason)
    return _Unknown(reason, is_final=True)


def _failed(reason: str) -> ChargeAnswer:
    return ChargeAnswer(status="failed", payment_id=None, failure=reason)


def _call(gateway: PaymentGateway, asked: Asked) -> ChargeAnswer | _Unknown:
    request, payment_id = asked.request, asked.charge.payment_id
    if asked.step == "cancel":
        return gateway.cancel(request, payment_id)
    if asked.step == "start":
        return _start(gateway, asked)
    answer = gateway.look_up(request, payment_id)
    return answer or _Unknown("the provider knows of no such charge", is_final=False)


def _start(gateway: PaymentGateway, asked: Asked) -> ChargeAnswer | _Unknown:
    """Start a charge. Where a repetition is refused, the attempt before it may have charged."""
    try:
        return gateway.start(asked.request, is_repeated=asked.is_repeated)
    except GatewayRefusedError as error:
        known = gateway.look_up(asked.request, None) if asked.is_repeated else None
        return known or _refused(asked, error.reason)


# --- record ---------------------------------------------------------------------------------------


def _record(
    conn: Connection, asked: Asked, answer: ChargeAnswer | _Unknown, policy: ChargePolicy
) -> None:
    charge = asked.charge
    if isinstance(answer, ChargeAnswer):
        if answer.status != "pending":
            end_with(conn, asked, answer, policy)
        else:
            about = {"payment_id": answer.payment_id, "url": answer.url}
            conn.execute(statements.CHARGE_PENDING, {**_turn(charge, policy), **about})
    elif answer.is_final:
        settle_paid(conn, _paid_for(charge), policy)
        park_charge(conn, charge.charge_id, answer.reason)
    else:
        log.info("charge.unanswered", charge_id=charge.charge_id, reason=answer.reason)
        conn.execute(statements.POSTPONE_CHARGE, {**_turn(charge, policy), "is_followed": False})


def _turn(charge: Charge, policy: ChargePolicy) -> dict[str, object]:
    """Return whose turn it was, and how long it is until the next one."""
    return {
        "charge_id": charge.charge_id,
        "attempts": charge.attempts,
        "wait_s": policy.wait_s(charge.attempts),
    }


def end_with(
    conn: Connection,
    asked: Asked,
    answer: ChargeAnswer,
    policy: ChargePolicy,
    *,
    declined_by: DeclinedBy = "provider",
) -> None:
    """Keep a provider's last word as a fact, and let everything follow; or ours, if it has none."""
    charge = asked.charge
    fact = PaymentFact(
        provider=asked.account.provider,
        # What failed before it was a payment has no other id.
        payment_id=answer.payment_id or charge.payment_id or charge.charge_id,
        status=answer.status,
        amount_minor=charge.amount_minor if answer.amount_minor is None else answer.amount_minor,
        currency=answer.currency or charge.currency,
        occurred_at=conn.execute(statements.CLOCK).scalar_one(),
        charge_id=charge.charge_id,
        failure=answer.failure,
    )
    paid_for = note_payment(conn, charge.business_id, fact)
    settle_paid(conn, paid_for, policy, declined_by)
    apply_parked(conn, charge.business_id, fact.provider, fact.payment_id)
    if (
        answer.status == "failed"
        and not charge.is_top_up
        and end_charge(conn, charge.charge_id, "failed", failure=answer.failure)
    ):
        # The provider's word on the whole charge, where a failed payment alone is not the end.
        settle_paid(conn, _paid_for(charge), policy)
    conn.execute(statements.POSTPONE_CHARGE, {**_turn(charge, policy), "is_followed": True})


def _settle_purchase(
    conn: Connection, purchase_id: PurchaseId, policy: ChargePolicy, declined_by: DeclinedBy
) -> bool:
    charge = lock_charge_of(conn, purchase_id=purchase_id)
    if charge is None or not charge.is_open:
        return settle_purchase(conn, purchase_id)
    conn.execute(of_purchases.LOCK, {"purchase_id": purchase_id})
    conn.execute(statements.LOCK_RULE_OF, {"purchase_id": purchase_id})
    has_moved = settle_purchase(conn, purchase_id)
    outcome = conn.execute(statements.PURCHASE_OUTCOME, {"purchase_id": purchase_id}).one()
    if outcome.status == "pending":
        return has_moved
    is_paid = outcome.status != "failed"
    end_charge(
        conn,
        charge.charge_id,
        "succeeded" if is_paid else "failed",
        payment_id=outcome.payment_id,
        failure=outcome.failure,
    )
    if is_paid:
        note_paid(conn, purchase_id)
    else:
        note_unpaid(conn, purchase_id, declined_by, policy.decline_retry_s)
    return True
