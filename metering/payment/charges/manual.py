"""What a person does about a charge that nobody finds out about by himself."""

from sqlalchemy import Connection

from metering.db import Transactions
from metering.errors import FieldProblem, InvalidInputError
from metering.ids import BusinessId, ChargeId
from metering.payment.charges.charge import POLICY, ChargePolicy, asked_by_hand, end_with
from metering.payment.charges.store import Charge, Gateways, get_charge
from metering.payment.vendors.gateway import ChargeAnswer


def look_up_charge(
    transaction: Transactions,
    gateways: Gateways,
    business_id: BusinessId,
    charge_id: ChargeId,
    policy: ChargePolicy = POLICY,
) -> ChargeAnswer | None:
    """Ask the provider what has become of an open charge; what has ended is recorded.

    None: the provider knows of no such charge.

    Raises:
        NotFoundError: the business has no such charge.
        InvalidInputError: it has come to its end.
        GatewayUnavailableError, GatewayRefusedError: the provider does not say.

    """
    with transaction() as conn:
        _open_charge(conn, business_id, charge_id)
        asked = asked_by_hand(conn, charge_id)
    answer = gateways(asked.account).look_up(asked.request, asked.charge.payment_id)
    if answer is not None and answer.status != "pending":
        with transaction() as conn:
            end_with(conn, asked, answer, policy)
    return answer


def fail_charge(
    conn: Connection,
    business_id: BusinessId,
    charge_id: ChargeId,
    reason: str,
    policy: ChargePolicy = POLICY,
) -> Charge:
    """Let a parked charge fail: somebody has looked, and the provider has charged nothing.

    Should it have charged after all, its webhook still credits what was paid. It is no decline: a
    top-up may begin anew at once.

    Raises:
        NotFoundError: the business has no such charge.
        InvalidInputError: it has come to its end, or is still asked for.

    """
    charge = _open_charge(conn, business_id, charge_id)
    if not charge.is_parked:
        raise InvalidInputError(FieldProblem("charge", "is not parked: it is asked for still"))
    answer = ChargeAnswer(status="failed", payment_id=None, failure=reason)
    end_with(conn, asked_by_hand(conn, charge_id), answer, policy, declined_by="nobody")
    return get_charge(conn, business_id, charge_id)


def _open_charge(conn: Connection, business_id: BusinessId, charge_id: ChargeId) -> Charge:
    charge = get_charge(conn, business_id, charge_id)
    if not charge.is_open:
        raise InvalidInputError(FieldProblem("charge", f"has come to its end: {charge.status}"))
    return charge
