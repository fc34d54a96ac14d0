"""Every event type in the vendors' SDKs becomes a fact, or is ignored with a reason.

If a new version of an SDK adds a type, this fails until somebody decides about that type.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, get_args

import pytest
from dodopayments.types.unwrap_webhook_event import UnwrapWebhookEvent
from dodopayments.types.webhook_event_type import WebhookEventType
from stripe import Event

from metering.payment.vendors.dodo import webhook as dodo
from metering.payment.vendors.parsing import (
    NOT_A_PAYMENT,
    NOTHING_PAID,
    TOLD_BY_THE_PAYMENT,
    UNKNOWN_TYPE,
    ParsedEvent,
)
from metering.payment.vendors.stripe import webhook as stripe
from support.providers import Dodo, Json, Stripe

# Types about the money of a customer, and the resulting status.
STRIPE_FACTS: Final = {
    "payment_intent.succeeded": "succeeded",
    "payment_intent.payment_failed": "failed",
    "payment_intent.processing": "pending",
    "payment_intent.canceled": "failed",
    "charge.succeeded": "succeeded",
    "charge.captured": "succeeded",
    "charge.pending": "pending",
    "charge.failed": "failed",
    "charge.expired": "failed",
    "charge.refunded": "succeeded",
    "charge.refund.updated": "succeeded",
    "charge.dispute.created": "open",
    "charge.dispute.updated": "open",
    "charge.dispute.funds_withdrawn": "open",
    "charge.dispute.funds_reinstated": "won",
    "charge.dispute.closed": "lost",
    "refund.created": "succeeded",
    "refund.updated": "succeeded",
    "refund.failed": "failed",
    "checkout.session.completed": "succeeded",
    "checkout.session.async_payment_succeeded": "succeeded",
    "checkout.session.async_payment_failed": "failed",
    "checkout.session.expired": "failed",
}
STRIPE_IGNORED: Final = {
    NOTHING_PAID: """
        payment_intent.created payment_intent.requires_action payment_intent.partially_funded
        payment_intent.amount_capturable_updated radar.early_fraud_warning.created
        radar.early_fraud_warning.updated review.closed review.opened
    """,
    TOLD_BY_THE_PAYMENT: """
        charge.updated credit_note.created credit_note.updated credit_note.voided
        customer_cash_balance_transaction.created invoice.created invoice.deleted
        invoice.finalization_failed invoice.finalized invoice.marked_uncollectible invoice.overdue
        invoice.overpaid invoice.paid invoice.payment_action_required
        invoice.payment_attempt_required invoice.payment_failed invoice.payment_succeeded
        invoice.sent invoice.upcoming invoice.updated invoice.voided invoice.will_be_due
        invoice_payment.paid source.canceled source.chargeable source.failed
        source.mandate_notification source.refund_attributes_required source.transaction.created
        source.transaction.updated
    """,
    NOT_A_PAYMENT: """
        account.application.authorized account.application.deauthorized
        account.external_account.created account.external_account.deleted
        account.external_account.updated account.updated application_fee.created
        application_fee.refund.updated application_fee.refunded apps.install.created
        apps.install.deleted apps.install.updated balance.available balance_settings.updated
        billing.alert.triggered billing.credit_balance_transaction.created
        billing.credit_grant.created billing.credit_grant.updated billing.meter.created
        billing.meter.deactivated billing.meter.reactivated billing.meter.updated
        billing_portal.configuration.created billing_portal.configuration.updated
        billing_portal.session.created capability.updated cash_balance.funds_available
        climate.order.canceled climate.order.created climate.order.delayed climate.order.delivered
        climate.order.product_substituted climate.product.created climate.product.pricing_updated
        coupon.created coupon.deleted coupon.updated customer.created customer.deleted
        customer.discount.created customer.discount.deleted customer.discount.updated
        customer.source.created customer.source.deleted customer.source.expiring
        customer.source.updated customer.subscription.created customer.subscription.deleted
        customer.subscription.paused customer.subscription.pending_update_applied
        customer.subscription.pending_update_expired customer.subscription.resumed
        customer.subscription.trial_will_end customer.subscription.updated customer.tax_id.created
        customer.tax_id.deleted customer.tax_id.updated customer.updated
        entitlements.active_entitlement_summary.updated file.created
        financial_connections.account.account_numbers_updated financial_connections.account.created
        financial_connections.account.deactivated financial_connections.account.disconnected
        financial_connections.account.expected_deactivation_date_updated
        financial_connections.account.reactivated financial_connections.account.refreshed_balance
        financial_connections.account.refreshed_ownership
        financial_connections.account.refreshed_transactions
        financial_connections.account.supported_payment_method_types_updated
        financial_connections.account.upcoming_account_number_expiry
        financial_connections.account.upcoming_deactivation
        financial_connections.authorization.expected_deactivation_date_updated
        financial_connections.authorization.upcoming_deactivation
        identity.verification_session.canceled identity.verification_session.created
        identity.verification_session.processing identity.verification_session.redacted
        identity.verification_session.requires_input identity.verification_session.verified
        invoiceitem.created invoiceitem.deleted issuing_authorization.created
        issuing_authorization.request issuing_authorization.updated issuing_card.created
        issuing_card.updated issuing_cardholder.created issuing_cardholder.updated
        issuing_dispute.closed issuing_dispute.created issuing_dispute.funds_reinstated
        issuing_dispute.funds_rescinded issuing_dispute.submitted issuing_dispute.updated
        issuing_personalization_design.activated issuing_personalization_design.deactivated
        issuing_personalization_design.rejected issuing_personalization_design.updated
        issuing_token.created issuing_token.updated issuing_transaction.created
        issuing_transaction.purchase_details_receipt_updated issuing_transaction.updated
        mandate.updated payment_link.created payment_link.updated payment_method.attached
        payment_method.automatically_updated payment_method.detached payment_method.updated
        payout.canceled payout.created payout.failed payout.paid payout.reconciliation_completed
        payout.updated person.created person.deleted person.updated plan.created plan.deleted
        plan.updated price.created price.deleted price.updated product.created product.deleted
        product.updated promotion_code.created promotion_code.updated quote.accepted quote.canceled
        quote.created quote.finalized reporting.report_run.failed reporting.report_run.succeeded
        reporting.report_type.updated reserve.hold.created reserve.hold.updated reserve.plan.created
        reserve.plan.disabled reserve.plan.expired reserve.plan.updated reserve.release.created
        setup_intent.canceled setup_intent.created setup_intent.requires_action
        setup_intent.setup_failed setup_intent.succeeded sigma.scheduled_query_run.created
        subscription_schedule.aborted subscription_schedule.canceled subscription_schedule.completed
        subscription_schedule.created subscription_schedule.expiring subscription_schedule.released
        subscription_schedule.updated tax.settings.updated tax_rate.created tax_rate.updated
        terminal.reader.action_failed terminal.reader.action_succeeded
        terminal.reader.action_updated test_helpers.test_clock.advancing
        test_helpers.test_clock.created test_helpers.test_clock.deleted
        test_helpers.test_clock.internal_failure test_helpers.test_clock.ready
        three_d_secure.authentication.canceled three_d_secure.authentication.challenge_started
        three_d_secure.authentication.errored three_d_secure.authentication.failed
        three_d_secure.authentication.requires_challenge
        three_d_secure.authentication.requires_submission three_d_secure.authentication.succeeded
        topup.canceled topup.created topup.failed topup.reversed topup.succeeded transfer.created
        transfer.reversed transfer.updated treasury.credit_reversal.created
        treasury.credit_reversal.posted treasury.debit_reversal.completed
        treasury.debit_reversal.created treasury.debit_reversal.initial_credit_granted
        treasury.financial_account.closed treasury.financial_account.created
        treasury.financial_account.features_status_updated treasury.inbound_transfer.canceled
        treasury.inbound_transfer.created treasury.inbound_transfer.failed
        treasury.inbound_transfer.succeeded treasury.outbound_payment.canceled
        treasury.outbound_payment.created treasury.outbound_payment.expected_arrival_date_updated
        treasury.outbound_payment.failed treasury.outbound_payment.posted
        treasury.outbound_payment.returned treasury.outbound_payment.tracking_details_updated
        treasury.outbound_transfer.canceled treasury.outbound_transfer.created
        treasury.outbound_transfer.expected_arrival_date_updated treasury.outbound_transfer.failed
        treasury.outbound_transfer.posted treasury.outbound_transfer.returned
        treasury.outbound_transfer.tracking_details_updated treasury.received_credit.created
        treasury.received_credit.failed treasury.received_credit.succeeded
        treasury.received_debit.created
    """,
}
DODO_FACTS: Final = {
    "payment.succeeded": "succeeded",
    "payment.failed": "failed",
    "payment.processing": "pending",
    "payment.cancelled": "failed",
    "refund.succeeded": "succeeded",
    "refund.failed": "failed",
    "dispute.opened": "open",
    "dispute.challenged": "open",
    "dispute.won": "won",
    "dispute.cancelled": "won",
    "dispute.lost": "lost",
    "dispute.accepted": "lost",
    "dispute.expired": "lost",
}
DODO_IGNORED: Final = {
    NOTHING_PAID: "abandoned_checkout.detected dunning.started",
    TOLD_BY_THE_PAYMENT: "abandoned_checkout.recovered dunning.recovered subscription.renewed",
    NOT_A_PAYMENT: """
        subscription.active subscription.on_hold subscription.past_due subscription.paused
        subscription.unpaused subscription.cancelled subscription.failed subscription.expired
        subscription.plan_changed subscription.updated subscription.update_payment_method
        license_key.created payout.created payout.on_hold payout.in_progress payout.failed
        payout.success credit.added credit.deducted credit.expired credit.rolled_over
        credit.rollover_forfeited credit.overage_charged credit.overage_reset
        credit.manual_adjustment credit.balance_low entitlement_grant.created
        entitlement_grant.delivered entitlement_grant.failed entitlement_grant.revoked
    """,
}


def listed(nothing: Mapping[str, str]) -> dict[str, str]:
    """The reason by type."""
    return {type_: reason for reason, types in nothing.items() for type_ in types.split()}


def stripe_event(type_: str) -> Json:
    """A whole event of a type that becomes a fact."""
    vendor = Stripe()
    family = type_.partition(".")[0]
    if type_.startswith("charge.dispute."):
        status = {"closed": "lost", "funds_reinstated": "won"}.get(type_.rpartition(".")[2])
        return vendor.dispute_event(type_, status or "needs_response")
    if family == "refund" or type_ == "charge.refund.updated":
        return vendor.refund(type_=type_, failed=type_ == "refund.failed")
    if type_.startswith("checkout.session."):
        is_failed = type_.endswith(("failed", "expired"))
        return vendor.session(type_, payment_status="unpaid" if is_failed else "paid")
    event = vendor.payment() if family == "payment_intent" else vendor.refunded_charge(None)
    if type_ != "charge.refunded" and family == "charge":
        event["data"]["object"]["payment_intent"] = None
    return {**event, "type": type_}


def dodo_event(type_: str) -> Json:
    """A whole event of a type that becomes a fact."""
    kind, _, status = type_.partition(".")
    made = {"payment": Dodo().payment, "dispute": Dodo().dispute, "refund": Dodo().refund}[kind]
    event = made() if kind == "refund" else made(status)  # type: ignore[operator]
    return {**event, "type": type_}


def parse(vendor: str, event: Json) -> ParsedEvent:
    body = json.dumps(event).encode()
    return dodo.parse(body) if vendor == "dodo" else stripe.parse(body)


def test_every_type_in_stripe_s_sdk_is_decided_about() -> None:
    declared = set(get_args(Event.__annotations__["type"]))

    assert set(STRIPE_FACTS) | set(listed(STRIPE_IGNORED)) == declared


def test_every_type_in_dodo_s_sdk_is_decided_about() -> None:
    payloads: Any = get_args(UnwrapWebhookEvent)[0]
    sent = {get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(payloads)}
    declared = set(get_args(WebhookEventType)) | sent

    assert set(DODO_FACTS) | set(listed(DODO_IGNORED)) == declared


@pytest.mark.parametrize(("type_", "status"), list(STRIPE_FACTS.items()))
def test_an_event_of_stripe_about_a_customer_s_money_is_a_fact(type_: str, status: str) -> None:
    parsed = parse("stripe", stripe_event(type_))

    assert [fact.status for fact in parsed.facts] == [status]
    assert (parsed.ignored, parsed.parked) == (None, None)


@pytest.mark.parametrize(("type_", "status"), list(DODO_FACTS.items()))
def test_an_event_of_dodo_about_a_customer_s_money_is_a_fact(type_: str, status: str) -> None:
    parsed = parse("dodo", dodo_event(type_))

    assert [fact.status for fact in parsed.facts] == [status]
    assert (parsed.ignored, parsed.parked) == (None, None)


@pytest.mark.parametrize(
    ("vendor", "type_", "reason"),
    [
        *[("stripe", *item) for item in listed(STRIPE_IGNORED).items()],
        *[("dodo", *item) for item in listed(DODO_IGNORED).items()],
    ],
)
def test_every_other_event_has_a_reason_to_be_ignored(vendor: str, type_: str, reason: str) -> None:
    assert parse(vendor, {"type": type_}) == ParsedEvent(type_, ignored=reason)


@pytest.mark.parametrize(
    ("vendor", "type_"),
    [
        ("stripe", "charge.split"),
        ("stripe", "payment_intent.shrunk"),
        ("stripe", "refund.lost"),
        ("stripe", "checkout.session.merged"),
        ("dodo", "payment.split"),
        ("dodo", "refund.pending"),
        ("dodo", "dispute.escalated"),
    ],
)
def test_a_new_type_about_money_waits_for_a_person(vendor: str, type_: str) -> None:
    assert parse(vendor, {"type": type_}) == ParsedEvent(type_, parked=UNKNOWN_TYPE)


@pytest.mark.parametrize("type_", ["succeeded", "captured", "pending", "failed", "expired"])
def test_a_charge_with_a_payment_intent_is_reported_by_the_payment_intent(type_: str) -> None:
    type_ = f"charge.{type_}"
    event = stripe_event(type_)
    event["data"]["object"]["payment_intent"] = "pi_1"

    assert parse("stripe", event) == ParsedEvent(type_, ignored=TOLD_BY_THE_PAYMENT)
