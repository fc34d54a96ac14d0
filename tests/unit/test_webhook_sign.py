"""The signed request: Standard Webhooks libraries accept it; every attempt has the same body."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from metering.clock import utc_now
from metering.ids import BusinessId, EndpointId, WebhookEventId
from metering.webhook.deliver import Claimed, call_of
from metering.webhook.endpoints import new_secret
from metering.webhook.sign import envelope, signed_headers

EVENT = WebhookEventId("msg_1")
BUSINESS = BusinessId("bus_1")


def claimed(secret: str, previous_secret: str | None = None, data: str = '{"n":1}') -> Claimed:
    return Claimed(
        webhook_event_id=EVENT,
        endpoint_id=EndpointId("whk_1"),
        attempt=1,
        failing=False,
        business_id=BUSINESS,
        type="credit.added",
        occurred_at=datetime(2026, 1, 31, 9, 30, tzinfo=UTC),
        data=data,
        url="https://example.com/hook",
        headers={"x-token": "hunter2"},
        secret=secret,
        previous_secret=previous_secret,
    )


def test_the_envelope_has_the_contract_s_fields() -> None:
    body = envelope(
        BUSINESS,
        "credit.added",
        datetime(2026, 1, 31, 9, 30, tzinfo=UTC),
        '{"payload_type":"CreditLedgerEntry","amount":12}',
    )

    assert body == (
        b'{"business_id":"bus_1","type":"credit.added","timestamp":"2026-01-31T09:30:00.000000Z",'
        b'"data":{"payload_type":"CreditLedgerEntry","amount":12}}'
    )


def test_the_outbox_s_text_goes_in_byte_for_byte() -> None:
    odd = '{"b": 1.50,  "a":"\\u20b9 ₹ गुल्लक"}'
    body = envelope(BUSINESS, "credit.added", utc_now(), odd)

    assert body.endswith(b'"data":' + odd.encode() + b"}")
    assert json.loads(body)["data"]["a"] == "₹ ₹ गुल्लक"


def test_the_signature_is_the_hmac_that_the_specification_describes() -> None:
    secret = "whsec_" + base64.b64encode(b"k" * 24).decode()
    at = datetime(2026, 1, 31, 9, 30, 0, 999_999, tzinfo=UTC)
    headers = dict(signed_headers(EVENT, at, b'{"a":1}', secrets=[secret], extra={}))

    digest = hmac.new(
        b"k" * 24, f"msg_1.{int(at.timestamp())}.".encode() + b'{"a":1}', hashlib.sha256
    ).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    assert headers["webhook-timestamp"] == str(int(at.timestamp()))
    assert headers["content-type"] == "application/json"


def test_both_secrets_verify_during_a_rotation() -> None:
    old, new, other = new_secret(), new_secret(), new_secret()
    call = call_of(claimed(new, old), utc_now())

    for secret in (old, new):
        assert Webhook(secret).verify(call.body, dict(call.headers))["type"] == "credit.added"
    with pytest.raises(WebhookVerificationError):
        Webhook(other).verify(call.body, dict(call.headers))
    signatures = dict(call.headers)["webhook-signature"].split(" ")
    assert len(signatures) == 2


def test_a_later_attempt_has_the_same_body_and_id_and_its_own_signature() -> None:
    secret = new_secret()
    first = call_of(claimed(secret), utc_now() - timedelta(minutes=4))
    again = call_of(claimed(secret), utc_now())

    assert again.body == first.body
    assert dict(again.headers)["webhook-id"] == dict(first.headers)["webhook-id"]
    assert dict(again.headers)["webhook-signature"] != dict(first.headers)["webhook-signature"]
    Webhook(secret).verify(again.body, dict(again.headers))


def test_neither_secrets_nor_the_endpoint_s_own_headers_are_in_a_repr() -> None:
    secret, old = new_secret(), new_secret()
    job = claimed(secret, old)
    text = repr(job) + repr(call_of(job, utc_now()))

    assert secret not in text
    assert old not in text
    assert "hunter2" not in text


def test_the_endpoint_s_own_headers_are_sent() -> None:
    assert dict(call_of(claimed(new_secret()), utc_now()).headers)["x-token"] == "hunter2"
