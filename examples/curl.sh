#!/bin/sh
# A meter, a price, a customer, credit, usage and the history of the wallet, with curl alone.
#
#   eval "$(.venv/bin/gullak env)"
#   sh examples/curl.sh
#
# Needs curl and jq. Run it as often as you like: each run makes its own customer and meter.
set -eu

call() {
    curl -sS --fail-with-body -H "Authorization: Bearer $GULLAK_KEY" -H "Content-Type: application/json" "$@"
}

run=$(date +%s)-$$

meter=$(call "$GULLAK_URL/meters" -d '{
    "name": "searches", "event_name": "search.'"$run"'", "measurement_unit": "search",
    "aggregation": {"type": "count"}}' | jq -r .id)
# 1.5 cents for each search
call "$GULLAK_URL/prices" -d '{"meter_id": "'"$meter"'", "currency": "USD", "price_per_unit": "1.5"}' | jq -c .

customer=$(call "$GULLAK_URL/customers" -d '{"email": "gus@example.com", "name": "Gus"}' | jq -r .customer_id)
# $5.00; the same key with the same content changes nothing
call "$GULLAK_URL/customers/$customer/wallets/ledger-entries" -d '{
    "amount": 500, "currency": "USD", "entry_type": "credit", "reason": "first top-up",
    "idempotency_key": "order-'"$run"'"}' | jq -c .

# Two events; the second is sent twice and charged once
for number in 1 2 2; do
    call "$GULLAK_URL/events/ingest" -d '{"events": [{
        "event_id": "'"$run-$number"'", "customer_id": "'"$customer"'", "event_name": "search.'"$run"'"}]}' | jq -c .
done

until call "$GULLAK_URL/events/$run-2" | jq -e '.status == "posted"' > /dev/null; do sleep 0.2; done
call "$GULLAK_URL/customers/$customer/wallets/ledger-entries?currency=USD" |
    jq -r '.items[] | "\(.is_credit) \(.amount) \(.before_balance) -> \(.after_balance) \(.reason)"'
call "$GULLAK_URL/customers/$customer/wallets" | jq -r '.items[] | select(.currency == "USD") | "balance=\(.balance)"'
