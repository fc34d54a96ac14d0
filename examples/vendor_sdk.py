"""Gullak through the SDK of the vendor whose wire format it speaks: only `base_url` differs."""

# eval "$(.venv/bin/gullak env)"
# .venv/bin/python examples/vendor_sdk.py

import os
import time
from uuid import uuid4

from dodopayments import DodoPayments

run = uuid4().hex
client = DodoPayments(bearer_token=os.environ["GULLAK_KEY"], base_url=os.environ["GULLAK_URL"])

meter = client.meters.create(
    name="pages",
    event_name=f"page.rendered.{run}",
    measurement_unit="page",
    aggregation={"type": "count"},
)
# Prices are not part of that SDK, so it sends a plain request.
price = {"meter_id": meter.id, "currency": "USD", "price_per_unit": "2"}
client.post("/prices", cast_to=object, body=price)

fay = client.customers.create(email="fay@example.com", name="Fay")
client.customers.wallets.ledger_entries.create(
    fay.customer_id,
    amount=50_00,
    currency="USD",
    entry_type="credit",
    reason="first top-up",
    idempotency_key=f"order-{run}",
)
client.usage_events.ingest(
    events=[
        {
            "event_id": f"{run}-{number}",
            "customer_id": fay.customer_id,
            "event_name": f"page.rendered.{run}",
        }
        for number in range(100)
    ]
)


def balance() -> int:
    """Return the balance of the USD wallet in cents."""
    wallets = client.customers.wallets.list(fay.customer_id).items
    return next(wallet.balance for wallet in wallets if wallet.currency == "USD")


while balance() == 50_00:  # buffered; the debit follows within a second or two
    time.sleep(0.2)
print(f"balance={balance()}")
