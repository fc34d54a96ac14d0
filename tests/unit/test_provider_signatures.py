"""A webhook is accepted by its signature, which the vendors' own SDKs verify."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from metering.errors import BadSignatureError
from metering.ids import AccountId, BusinessId
from metering.payment.inbox import verified
from metering.payment.provider_account import WebhookSource
from support.providers import Delivery, Dodo, Stripe, Vendor, stripe_signature

BOTH = pytest.mark.parametrize("vendor", [Dodo(), Stripe()], ids=lambda vendor: vendor.name)


def verify(vendor: Vendor, delivery: Delivery, secret: str | None = None) -> str:
    """The provider's id of an accepted webhook."""
    sender = WebhookSource(
        account_id=AccountId("pac_1"),
        business_id=BusinessId("bus_1"),
        provider=vendor.name,
        secret=secret or vendor.secret,
    )
    return verified(sender, delivery.body, delivery.headers).provider_event_id


def flipped(text: str, at: int) -> str:
    """The text with one character changed to another valid one."""
    at %= len(text)
    other = "1" if text[at] != "1" else "2"
    return text[:at] + other + text[at + 1 :]


@BOTH
def test_a_signed_webhook_is_accepted_with_its_own_id(vendor: Vendor) -> None:
    delivery = vendor.signed(vendor.payment(), event_id="evt_own")

    assert verify(vendor, delivery) == "evt_own"


@BOTH
def test_header_names_are_case_insensitive(vendor: Vendor) -> None:
    delivery = vendor.signed(vendor.payment())
    titled = Delivery(delivery.body, {n.title(): v for n, v in delivery.headers.items()})

    assert verify(vendor, titled) == verify(vendor, delivery)


@BOTH
@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 1.0], ids=lambda where: f"at {where}")
def test_a_changed_byte_of_the_body_is_refused(vendor: Vendor, where: float) -> None:
    delivery = vendor.signed(vendor.payment())
    at = int(where * (len(delivery.body) - 1))
    body = bytearray(delivery.body)
    body[at] ^= 1

    with pytest.raises(BadSignatureError):
        verify(vendor, delivery.with_body(bytes(body)))


@BOTH
def test_the_same_json_in_other_bytes_is_refused(vendor: Vendor) -> None:
    delivery = vendor.signed(vendor.payment())

    with pytest.raises(BadSignatureError):
        verify(vendor, delivery.with_body(delivery.body.replace(b"\n", b"")))


@pytest.mark.parametrize("at", [3, 10, -4])
def test_a_changed_signature_of_dodo_is_refused(at: int) -> None:
    delivery = Dodo().signed(Dodo().payment())
    signature = flipped(delivery.headers["webhook-signature"], at)

    with pytest.raises(BadSignatureError):
        verify(Dodo(), delivery.with_headers(webhook_signature=signature))


@pytest.mark.parametrize("at", [16, 40, -1])
def test_a_changed_signature_of_stripe_is_refused(at: int) -> None:
    delivery = Stripe().signed(Stripe().payment())
    signature = flipped(delivery.headers["stripe-signature"], at)

    with pytest.raises(BadSignatureError):
        verify(Stripe(), delivery.with_headers(stripe_signature=signature))


def test_a_changed_id_is_refused() -> None:
    delivery = Dodo().signed(Dodo().payment(), event_id="evt_own")

    with pytest.raises(BadSignatureError):
        verify(Dodo(), delivery.with_headers(webhook_id="evt_other"))


def test_a_changed_timestamp_of_dodo_is_refused() -> None:
    delivery = Dodo().signed(Dodo().payment())
    timestamp = str(int(delivery.headers["webhook-timestamp"]) + 1)

    with pytest.raises(BadSignatureError):
        verify(Dodo(), delivery.with_headers(webhook_timestamp=timestamp))


def test_a_changed_timestamp_of_stripe_is_refused() -> None:
    delivery = Stripe().signed(Stripe().payment())
    signed_at, _, signature = delivery.headers["stripe-signature"].partition(",")
    later = f"t={int(signed_at[2:]) + 1},{signature}"

    with pytest.raises(BadSignatureError):
        verify(Stripe(), delivery.with_headers(stripe_signature=later))


@BOTH
@pytest.mark.parametrize("off_s", [-310, 310], ids=["stale", "from the future"])
def test_a_webhook_of_another_time_is_refused(vendor: Vendor, off_s: int) -> None:
    at = datetime.now(UTC) + timedelta(seconds=off_s)

    with pytest.raises(BadSignatureError):
        verify(vendor, vendor.signed(vendor.payment(), at=at))


@BOTH
@pytest.mark.parametrize("off_s", [-280, 280], ids=["a little old", "a little ahead"])
def test_a_webhook_within_five_minutes_is_accepted(vendor: Vendor, off_s: int) -> None:
    at = datetime.now(UTC) + timedelta(seconds=off_s)

    assert verify(vendor, vendor.signed(vendor.payment(), at=at, event_id="evt_1")) == "evt_1"


@BOTH
def test_a_signature_by_another_secret_is_refused(vendor: Vendor) -> None:
    delivery = vendor.signed(vendor.payment())

    with pytest.raises(BadSignatureError):
        verify(vendor, delivery, "whsec_" + "QUFB" * 8)


@BOTH
def test_the_other_vendor_s_signature_is_refused(vendor: Vendor) -> None:
    other: Vendor = Stripe(vendor.secret) if vendor.name == "dodo" else Dodo(vendor.secret)

    with pytest.raises(BadSignatureError):
        verify(vendor, other.signed(vendor.payment()))


BAD_HEADERS: list[tuple[type[Dodo | Stripe], dict[str, str | None]]] = [
    (Dodo, {"webhook_id": None}),
    (Dodo, {"webhook_timestamp": None}),
    (Dodo, {"webhook_signature": None}),
    (Dodo, {"webhook_timestamp": "now"}),
    (Dodo, {"webhook_timestamp": "nan"}),
    (Dodo, {"webhook_signature": ""}),
    (Dodo, {"webhook_signature": "v1"}),
    (Dodo, {"webhook_signature": "v1,"}),
    (Dodo, {"webhook_signature": "v1,a,b"}),
    (Dodo, {"webhook_signature": "v1,not base64"}),
    (Dodo, {"webhook_signature": "v1,\xe9\xe9\xe9\xe9"}),
    (Dodo, {"webhook_signature": "v2,AAAA"}),
    (Stripe, {"stripe_signature": None}),
    (Stripe, {"stripe_signature": ""}),
    (Stripe, {"stripe_signature": "t,v1"}),
    (Stripe, {"stripe_signature": "v1=00"}),
    (Stripe, {"stripe_signature": "t=now,v1=00"}),
    (Stripe, {"stripe_signature": "t=" + "9" * 5000 + ",v1=00"}),
    (Stripe, {"stripe_signature": "t=1,v1=\xe9"}),
    (Stripe, {"stripe_signature": f"t={int(datetime.now(UTC).timestamp())}"}),
    (Stripe, {"stripe_signature": f"t={int(datetime.now(UTC).timestamp())},v0=00"}),
]


@pytest.mark.parametrize(("kind", "headers"), BAD_HEADERS)
def test_missing_or_malformed_signature_headers_are_refused(
    kind: Callable[[], Vendor], headers: dict[str, str | None]
) -> None:
    vendor = kind()

    with pytest.raises(BadSignatureError):
        verify(vendor, vendor.signed(vendor.payment()).with_headers(**headers))


def test_one_good_signature_of_several_is_enough_for_dodo() -> None:
    delivery = Dodo().signed(Dodo().payment(), event_id="evt_1")
    both = f"v1,AAAA {delivery.headers['webhook-signature']}"

    assert verify(Dodo(), delivery.with_headers(webhook_signature=both)) == "evt_1"


def test_one_good_signature_of_several_is_enough_for_stripe() -> None:
    delivery = Stripe().signed(Stripe().payment(), event_id="evt_1")
    signed_at = int(datetime.now(UTC).timestamp())
    good = stripe_signature(delivery.body, Stripe().secret, signed_at)
    both = f"t={signed_at},v1={'0' * 64},v1={good}"

    assert verify(Stripe(), delivery.with_headers(stripe_signature=both)) == "evt_1"


@BOTH
def test_a_body_that_is_not_text_is_refused(vendor: Vendor) -> None:
    with pytest.raises(BadSignatureError):
        verify(vendor, vendor.signed(b'{"type": "\xff"}'))


UNREADABLE = [
    b"",
    b"not json",
    b"5",
    b"[]",
    b"null",
    b'{"object": "v2.core.event"}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("body", UNREADABLE, ids=lambda body: repr(body[:12]))
def test_a_signed_body_of_stripe_is_accepted_even_if_it_is_not_an_event(body: bytes) -> None:
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"

    assert verify(Stripe(), Stripe().signed(body)) == digest


@pytest.mark.parametrize("body", UNREADABLE, ids=lambda body: repr(body[:12]))
def test_a_signed_body_of_dodo_is_accepted_even_if_it_is_not_an_event(body: bytes) -> None:
    assert verify(Dodo(), Dodo().signed(body, event_id="evt_1")) == "evt_1"


@BOTH
def test_an_id_that_is_too_long_is_replaced_by_its_digest(vendor: Vendor) -> None:
    delivery = vendor.signed(vendor.payment(), event_id="e" * 256)

    assert verify(vendor, delivery).startswith("sha256:")


def test_a_secret_is_in_no_repr() -> None:
    sender = WebhookSource(
        account_id=AccountId("pac_1"),
        business_id=BusinessId("bus_1"),
        provider="stripe",
        secret="whsec_hidden",
    )

    assert "hidden" not in repr(verified_of(sender))


def verified_of(sender: WebhookSource) -> object:
    vendor = Stripe("whsec_hidden")
    delivery = vendor.signed(vendor.payment())
    return verified(sender, delivery.body, delivery.headers)
