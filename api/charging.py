"""Asking a payment provider for a charge, within a request."""

from api.tenant import Tenant
from metering.ids import ChargeId
from metering.payment.charges.charge import run_charge
from worker.charging import charge_policy_of


def ask_for_payment(tenant: Tenant, charge_id: ChargeId) -> None:
    """Ask for a charge now, or leave it to the sweep if many requests wait for providers."""
    context = tenant.context
    if not context.charging.acquire(blocking=False):
        return
    try:
        policy = charge_policy_of(context.settings)
        run_charge(tenant.transaction, context.gateways, charge_id, policy)
    finally:
        context.charging.release()
