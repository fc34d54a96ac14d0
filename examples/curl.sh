#!/bin/sh
# A meter, a price, a customer, credit, usage and the history of the wallet, with curl alone.
#
#   eval "$(.venv/bin/gullak env)"
#   sh examples/curl.sh
#
# Python only picks ids out of answers. Run it as often as you like: each run makes its own customer and meter.
set -eu

call() {
    curl -sS --fail-with-body -w '\n' -H "Authorization: Bearer $GULLAK_KEY" -H "Content-Type: application/json" "$@"
}
field() {
    python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

run=$(date +%s)-$$

meter=$(call "$GULLAK_URL/meters" -d '{
    "name": "searches", "event_name": "search.'"$run"'", "measurement_unit": "search",
    "aggregation": {"type": "count"}}' | field id)
# 1.5 cents for each search
call "$GULLAK_URL/prices" -d '{"meter_id": "'"$meter"'", "currency": "USD", "price_per_unit": "1.5"}'

customer=$(call "$GULLAK_URL/customers" -d '{"email": "gus@example.com", "name": "Gus"}' | field customer_id)
# $5.00; the same key with the same content changes nothing
call "$GULLAK_URL/customers/$customer/wallets/ledger-entries" -d '{
    "amount": 500, "currency": "USD", "entry_type": "credit", "reason": "first top-up",
    "idempotency_key": "order-'"$run"'"}'

# Two events; the second is sent twice and charged once
for number in 1 2 2; do
    call "$GULLAK_URL/events/ingest" -d '{"events": [{
        "event_id": "'"$run-$number"'", "customer_id": "'"$customer"'", "event_name": "search.'"$run"'"}]}'
done

for number in 1 2; do
    until [ "$(call "$GULLAK_URL/events/$run-$number" | field status)" = posted ]; do sleep 0.2; done
done
call "$GULLAK_URL/customers/$customer/wallets/ledger-entries?currency=USD"
call "$GULLAK_URL/customers/$customer/wallets"          # 500 - 2 × 1.5: the balance is 497
