"""Operator actions on a charge whose outcome cannot be determined automatically."""

from sqlalchemy import Connection

from metering.db import Transactions
from metering.errors import FieldProblem, InvalidInputError
from metering.ids import BusinessId, ChargeId
from metering.payment.charges.charge import POLICY, ChargePolicy, end_with, unclaimed_request
from metering.payment.charges.store import Charge, Gateways, get_charge
from metering.payment.vendors.gateway import ChargeAnswer


def look_up_charge(
    transaction: Transactions,
    gateways: Gateways,
    business_id: BusinessId,
    charge_id: ChargeId,
    policy: ChargePolicy = POLICY,
) -> ChargeAnswer | None:
    """Ask the provider for the state of an open charge, and record its end.

    Returns None if the provider does not know the charge.

    Raises: NotFoundError if the business has no such charge. InvalidInputError if it has ended.
    GatewayUnavailableError or GatewayRefusedError if the provider does not answer.
    """
    with transaction() as conn:
        _open_charge(conn, business_id, charge_id)
        claimed = unclaimed_request(conn, charge_id)
    answer = gateways(claimed.account).look_up(claimed.request, claimed.charge.payment_id)
    if answer is not None and answer.status != "pending":
        with transaction() as conn:
            end_with(conn, claimed, answer, policy)
    return answer


def fail_charge(
    conn: Connection,
    business_id: BusinessId,
    charge_id: ChargeId,
    reason: str,
    policy: ChargePolicy = POLICY,
) -> Charge:
    """End a parked charge as failed: a person has seen that the provider charged nothing.

    If it did charge after all, its webhook still credits the payment. This is not a decline: a
    top-up may start again at once.

    Raises: NotFoundError if the business has no such charge. InvalidInputError if it has ended or
    is not parked.
    """
    charge = _open_charge(conn, business_id, charge_id)
    if not charge.is_parked:
        raise InvalidInputError(FieldProblem("charge", "is not parked: it is still requested"))
    answer = ChargeAnswer(status="failed", payment_id=None, failure=reason)
    claimed = unclaimed_request(conn, charge_id)
    end_with(conn, claimed, answer, policy, declined_by="nobody")
    return get_charge(conn, business_id, charge_id)


def _open_charge(conn: Connection, business_id: BusinessId, charge_id: ChargeId) -> Charge:
    charge = get_charge(conn, business_id, charge_id)
    if not charge.is_open:
        raise InvalidInputError(FieldProblem("charge", f"has ended: {charge.status}"))
    return charge
