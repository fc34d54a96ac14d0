"""An example body for every operation that takes one. The OpenAPI description shows it.

The ids are placeholders. A test replaces them by real ones and sends every body.
"""

from typing import Final, TypeAlias

Json: TypeAlias = "str | int | bool | list[Json] | dict[str, Json] | None"

# The placeholder for each path parameter or field.
IDS: Final = {
    "customer_id": "cus_01K5B7Q2M8D4X6R0T9V3W1Y5ZA",
    "package_id": "pkg_01K5B7Q2M8D4X6R0T9V3W1Y5ZB",
    "meter_id": "mtr_01K5B7Q2M8D4X6R0T9V3W1Y5ZC",
    "event_id": "req-0001",
    "account_id": "pac_01K5B7Q2M8D4X6R0T9V3W1Y5ZD",
    "provider_event_id": "17",
}
# A placeholder for the first configured currency.
CURRENCY: Final = "USD"

BODIES: Final[dict[str, Json]] = {
    # --- customers and their wallets --------------------------------------------------------
    "make_customer": {
        "email": "ann@example.com",
        "name": "Ann",
        "metadata": {"plan": "pro", "seats": 3},
    },
    "change_customer": {"billing_currency": CURRENCY, "phone_number": "+15550100"},
    "make_entry": {
        "amount": 5000,
        "currency": CURRENCY,
        "entry_type": "credit",
        "reason": "first top-up",
        "idempotency_key": "order-1",
    },
    "put_overdraft": {"limit": 2500},
    "refund_entry": {"reason": "the call failed", "idempotency_key": "refund-of-order-1"},
    # --- usage --------------------------------------------------------------------------------
    "ingest_events": {
        "events": [
            {
                "event_id": IDS["event_id"],
                "customer_id": IDS["customer_id"],
                "event_name": "llm.completion",
                "metadata": {"model": "large", "input_tokens": 812, "output_tokens": 95},
            }
        ]
    },
    "replay_refused_events": {"event_id": IDS["event_id"]},
    # --- meters and prices --------------------------------------------------------------------
    "make_meter": {
        "name": "input tokens",
        "event_name": "llm.completion",
        "measurement_unit": "token",
        "aggregation": {"type": "sum", "key": "input_tokens"},
        "filter": {
            "conjunction": "and",
            "clauses": [{"key": "model", "operator": "equals", "value": "large"}],
        },
    },
    "make_price": {
        "meter_id": IDS["meter_id"],
        "currency": CURRENCY,
        "price_per_unit": "0.03",
        "units": 1000,
    },
    # --- purchases ----------------------------------------------------------------------------
    "make_package": {
        "name": "10 dollars",
        "currency": CURRENCY,
        "price": 1000,
        "credit": 1100,
        "valid_days": 365,
    },
    "make_purchase": {"package_id": IDS["package_id"], "order_id": "shop-2026-0001"},
    "open_purchase_page": {
        "return_url": "https://example.com/paid",
        "account_id": IDS["account_id"],
    },
    "pay_purchase": {"payment_id": "bank-transfer-7"},
    "refund_purchase": {"refund_id": "refund-7", "amount": 2},
    "dispute_purchase": {"dispute_id": "dispute-7", "status": "open"},
    "make_checkout": {
        "amount": 2500,
        "currency": CURRENCY,
        "idempotency_key": "checkout-1",
        "account_id": IDS["account_id"],
    },
    "put_top_up": {
        "threshold": 200,
        "package_id": IDS["package_id"],
        "payment_method": "cus_9s6XKzkNRiz8i3/pm_1MqLiJLkdIwHu7ix",
        "day_cap": 5000,
        "month_cap": 20_000,
        "account_id": IDS["account_id"],
    },
    # --- providers ----------------------------------------------------------------------------
    "take_webhook": {
        "id": "evt_1MqqbKLt4dXK03v5",
        "object": "event",
        "type": "payment_intent.succeeded",
        "created": 1_680_064_028,
        "data": {"object": {"id": "pi_3MqqbJLt4dXK03v5", "object": "payment_intent"}},
    },
    "replay_provider_events": {"id": IDS["provider_event_id"]},
    # --- alerts and webhooks ------------------------------------------------------------------
    "make_rule": {"currency": CURRENCY, "threshold": 500, "recover_at": 1000},
    "make_webhook": {
        "url": "https://example.com/hooks/gullak",
        "description": "billing",
        "filter_types": ["credit.balance_low", "credit.balance_recovered"],
    },
    "change_webhook": {"description": "billing, all types", "filter_types": []},
    "set_headers": {"headers": {"X-Environment": "production"}},
    "replay_webhook": {"since": "2026-01-01T00:00:00Z"},
    # --- the business -------------------------------------------------------------------------
    "update_business": {"reversal_policy": "stop_at_zero"},
}


def bodies(currency: str) -> dict[str, Json]:
    """Return the body for each operation, by operation id, in this currency."""
    return {name: _in_currency(body, currency) for name, body in BODIES.items()}


def _in_currency(body: Json, currency: str) -> Json:
    if isinstance(body, dict):
        return {name: _in_currency(part, currency) for name, part in body.items()}
    if isinstance(body, list):
        return [_in_currency(part, currency) for part in body]
    return currency if body == CURRENCY else body
