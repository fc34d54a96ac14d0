"""A charge: claim it, call the provider outside any transaction, record the answer.

A charge is stored before the provider is called, and its id is the idempotency key there. A claim
moves `due_at` ahead: if the process dies between the call and the record, the charge is due again
and is requested under the same key. The answer is stored as a fact of a payment, as webhooks are;
ledger, purchase and checkout follow from facts, whichever arrive first. So a lost webhook or a lost
answer only costs time.

A charge never fails while money may have moved: after too long without an answer it is parked, and
a person looks at it (`gullak charge`). A top-up whose request the provider refuses is parked too,
because the request is wrong and not the card. A refused checkout or hosted page fails, because a
customer is waiting.

Locks, in this order: a payment, its charge, its purchase or checkout, a top-up rule, a wallet.
"""

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import structlog
from sqlalchemy import Connection

from metering.checkpoint import Checkpoint, no_checkpoint
from metering.clock import spoken
from metering.db import Transactions, database_now, row
from metering.errors import (
    ConfigurationError,
    GatewayRefusedError,
    GatewayUnavailableError,
    UnreadableSecretError,
)
from metering.ids import ChargeId
from metering.payment.apply import apply_payments
from metering.payment.charges import statements
from metering.payment.charges.store import (
    Charge,
    Gateways,
    RequestData,
    end_charge,
    gateway_account,
    park_charge,
)
from metering.payment.facts import PaidFor, PaymentFact, apply_parked, note_payment
from metering.payment.top_ups.result import RETRY_S, DeclinedBy
from metering.payment.vendors.gateway import (
    IDEMPOTENT_PROVIDERS,
    ChargeAnswer,
    ChargeRequest,
    GatewayAccount,
    PaymentGateway,
)
from metering.purchase.payments import PaymentKey
from metering.vault import Vault, vault_of

log = structlog.get_logger("gullak.charge")

# A charge is not claimed again within this time: it is longer than any call takes, including the
# time limit of the task. Without idempotency keys, two calls at once could charge twice.
LEASE_S: Final = 90
# With idempotency keys, two calls at once charge once. Longer than the one request of a first
# attempt, so that few are repeated; short for a customer whose worker was killed.
KEYED_LEASE_S: Final = 12
DOUBLINGS_MAX: Final = 20

Step = Literal["start", "look_up", "cancel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargePolicy:
    """How long to wait, in seconds. All but the leases are settings of the operator."""

    # Between attempts: doubled each time, up to the maximum.
    retry_s: int = 5
    retry_max_s: int = 900
    # A charge without any answer is requested again for this long, then parked.
    ask_for_s: int = 82_800
    # A charge that the provider has accepted is looked up for this long, then parked.
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
class ClaimedCharge:
    """A charge that this process may call the provider for, and the call to make."""

    charge: Charge
    request: ChargeRequest = field(repr=False)
    account: GatewayAccount
    step: Step

    @property
    def is_repeated(self) -> bool:
        """Tell whether an earlier attempt may have reached the provider."""
        return self.charge.attempts > 1


class _Unknown(NamedTuple):
    """The outcome of a charge is unknown; `is_final`: another attempt would not change that."""

    reason: str
    is_final: bool


def run_charge(
    transaction: Transactions,
    gateways: Gateways,
    charge_id: ChargeId,
    policy: ChargePolicy = POLICY,
    checkpoint: Checkpoint = no_checkpoint,
) -> bool:
    """Request a charge that is due, or look it up; tell whether the provider was called.

    Safe to run twice and at once: one of two runs claims the charge.
    """
    with transaction() as conn:
        claimed = _claim(conn, charge_id, policy)
    if claimed is None:
        return False
    checkpoint("after_claim")
    answer = _call_provider(gateways, claimed)
    checkpoint("after_charge")
    with transaction() as conn:
        _record(conn, claimed, answer, policy)
    checkpoint("after_record")
    return True


# --- claim ----------------------------------------------------------------------------------------


def _claim(conn: Connection, charge_id: ChargeId, policy: ChargePolicy) -> ClaimedCharge | None:
    """Claim a charge. Returns None if it is not due, already decided, or parked."""
    values = {
        "charge_id": charge_id,
        "lease_s": policy.lease_s,
        "keyed_lease_s": policy.keyed_lease_s,
        "keyed": list(IDEMPOTENT_PROVIDERS),
    }
    found = conn.execute(statements.CLAIM, values).one_or_none()
    if found is None:
        return None
    charge = row(Charge, found)
    apply_payments(conn, _paid_for(charge), policy.decline_retry_s)
    data = row(RequestData, conn.execute(statements.REQUEST, {"charge_id": charge_id}).one())
    if not data.is_open:
        return None
    claimed = _request(vault_of(conn), charge, data)
    if data.refusal is not None and not claimed.is_repeated:
        is_off = data.refusal == "account_disabled"
        by: DeclinedBy = "account_disabled" if is_off else "nobody"
        end_with(conn, claimed, _failed(data.refusal), policy, declined_by=by)
        return None
    patience_s = policy.ask_for_s if charge.status == "new" else policy.look_up_for_s
    if data.age_s > patience_s:
        park_charge(conn, charge_id, f"no answer for {spoken(data.age_s)}")
        return None
    return claimed


def _request(vault: Vault, charge: Charge, data: RequestData) -> ClaimedCharge:
    request = ChargeRequest(
        charge_id=charge.charge_id,
        amount_minor=charge.amount_minor,
        currency=charge.currency,
        customer_id=charge.customer_id,
        email=data.email,
        name=data.name,
        payment_method=charge.payment_method,
        description=f"order {data.ordered}",
        return_url=charge.return_url,
    )
    step: Step = "start" if charge.status == "new" else "look_up"
    if data.is_over:
        step = "cancel"
    account = gateway_account(vault, data)
    return ClaimedCharge(charge=charge, request=request, account=account, step=step)


def _paid_for(charge: Charge) -> PaidFor:
    return PaidFor(charge.purchase_id, charge.checkout_id)


def unclaimed_request(conn: Connection, charge_id: ChargeId) -> ClaimedCharge:
    """Return a charge and its request without a claim, for a person who looks at it."""
    data = row(RequestData, conn.execute(statements.REQUEST, {"charge_id": charge_id}).one())
    values = {"business_id": data.business_id, "charge_id": charge_id}
    charge = row(Charge, conn.execute(statements.CHARGE, values).one())
    return _request(vault_of(conn), charge, data)


# --- call: outside any transaction ----------------------------------------------------------------


def _call_provider(gateways: Gateways, claimed: ClaimedCharge) -> ChargeAnswer | _Unknown:
    is_first = claimed.step == "start" and not claimed.is_repeated
    if claimed.account.is_unreadable:
        return _Unknown(UnreadableSecretError().message, is_final=False)
    try:
        return _call(gateways(claimed.account), claimed)
    except GatewayUnavailableError as error:
        return _Unknown(error.reason, is_final=False)
    except GatewayRefusedError as error:
        if is_first:
            return _refused(claimed, error.reason)
        return _Unknown(error.reason, is_final=True)
    except ConfigurationError as error:
        # The provider was not called, and the operator can complete the account.
        fails = is_first and not claimed.charge.is_top_up
        return _failed(error.message) if fails else _Unknown(error.message, is_final=False)


def _call(gateway: PaymentGateway, claimed: ClaimedCharge) -> ChargeAnswer | _Unknown:
    request, payment_id = claimed.request, claimed.charge.payment_id
    if claimed.step == "cancel":
        return gateway.cancel(request, payment_id)
    if claimed.step == "start":
        return _start(gateway, claimed)
    answer = gateway.look_up(request, payment_id)
    return answer or _Unknown("the provider knows of no such charge", is_final=False)


def _start(gateway: PaymentGateway, claimed: ClaimedCharge) -> ChargeAnswer | _Unknown:
    """Start a charge. If a repetition is refused, the attempt before it may have charged."""
    try:
        return gateway.start(claimed.request, is_repeated=claimed.is_repeated)
    except GatewayRefusedError as error:
        earlier = gateway.look_up(claimed.request, None) if claimed.is_repeated else None
        return earlier or _refused(claimed, error.reason)


def _refused(claimed: ClaimedCharge, reason: str) -> ChargeAnswer | _Unknown:
    """Return the outcome of a request that the provider refuses and has no payment for."""
    if not claimed.charge.is_top_up:
        return _failed(reason)
    return _Unknown(reason, is_final=True)


def _failed(reason: str) -> ChargeAnswer:
    return ChargeAnswer(status="failed", payment_id=None, failure=reason)


# --- record ---------------------------------------------------------------------------------------


def _record(
    conn: Connection, claimed: ClaimedCharge, answer: ChargeAnswer | _Unknown, policy: ChargePolicy
) -> None:
    charge = claimed.charge
    if isinstance(answer, ChargeAnswer):
        if answer.status != "pending":
            end_with(conn, claimed, answer, policy)
        else:
            values = {"payment_id": answer.payment_id, "url": answer.url}
            conn.execute(statements.CHARGE_PENDING, {**_attempt(charge, policy), **values})
    elif answer.is_final:
        apply_payments(conn, _paid_for(charge), policy.decline_retry_s)
        park_charge(conn, charge.charge_id, answer.reason)
    else:
        log.info("charge.unanswered", charge_id=charge.charge_id, reason=answer.reason)
        conn.execute(statements.POSTPONE_CHARGE, {**_attempt(charge, policy), "is_handled": False})


def _attempt(charge: Charge, policy: ChargePolicy) -> dict[str, object]:
    """Return the parameters that identify this attempt, and the delay before the next."""
    return {
        "charge_id": charge.charge_id,
        "attempts": charge.attempts,
        "wait_s": policy.wait_s(charge.attempts),
    }


def end_with(
    conn: Connection,
    claimed: ClaimedCharge,
    answer: ChargeAnswer,
    policy: ChargePolicy,
    *,
    declined_by: DeclinedBy = "provider",
) -> None:
    """Store the final answer of a provider, or ours, as a fact, and apply it."""
    charge = claimed.charge
    fact = PaymentFact(
        provider=claimed.account.provider,
        # A charge that failed before it was a payment has no other id.
        payment_id=answer.payment_id or charge.payment_id or charge.charge_id,
        status=answer.status,
        amount_minor=charge.amount_minor if answer.amount_minor is None else answer.amount_minor,
        currency=answer.currency or charge.currency,
        occurred_at=database_now(conn),
        charge_id=charge.charge_id,
        failure=answer.failure,
    )
    paid_for = note_payment(conn, charge.business_id, fact)
    apply_payments(conn, paid_for, policy.decline_retry_s, declined_by)
    apply_parked(conn, PaymentKey(charge.business_id, fact.provider, fact.payment_id))
    if (
        answer.status == "failed"
        and not charge.is_top_up
        and end_charge(conn, charge.charge_id, "failed", failure=answer.failure)
    ):
        # The provider has ended the whole charge, which a failed payment alone does not.
        apply_payments(conn, _paid_for(charge), policy.decline_retry_s)
    conn.execute(statements.POSTPONE_CHARGE, {**_attempt(charge, policy), "is_handled": True})
