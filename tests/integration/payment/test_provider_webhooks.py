"""Webhooks of providers over HTTP: a valid signature is required; a refusal stores nothing."""

import gzip
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import httpx
import pytest

from metering.ids import ProviderEventNumber
from metering.payment.inbox import process
from metering.payment.provider_account import (
    AccountProvider,
    NewAccount,
    ProviderAccount,
    connect_account,
    disable_account,
)
from support.edge import Api
from support.providers import DODO_SECRET, Delivery, Dodo, Json, Stripe, Vendor
from support.tenant import Shop, at_once

BOTH = pytest.mark.parametrize("vendor", [Dodo(), Stripe()], ids=lambda vendor: vendor.name)
BODY_BYTES_MAX = 8 << 20


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def api(module_api: Api) -> Api:
    return module_api


@pytest.fixture
def anybody(api: Api) -> Iterator[httpx.Client]:
    """A client without a key, as a provider is."""
    with httpx.Client(base_url=api.url, timeout=30) as client:
        yield client


@dataclass(frozen=True)
class WebhookUrl:
    """The URL for webhooks of a provider account."""

    client: httpx.Client
    shop: Shop
    account: ProviderAccount

    def __call__(
        self, delivery: Delivery, account: str | None = "", provider: str | None = None
    ) -> httpx.Response:
        """Deliver; `account` None: the address names none."""
        named = self.account.account_id if account == "" else account
        return self.client.post(
            f"/providers/{provider or self.account.provider}/webhooks",
            params={} if named is None else {"account": named},
            content=delivery.body,
            headers={"content-type": "application/json", **delivery.headers},
        )

    def stored(self) -> list[tuple[object, ...]]:
        return [
            (status, provider_event_id, bytes(body))
            for status, provider_event_id, body in self.shop.rows(
                "SELECT status, provider_event_id, body FROM provider_events"
                f" WHERE account_id = '{self.account.account_id}'"
            )
        ]


def connected(
    shop: Shop, provider: AccountProvider, secret: str, name: str = "Main"
) -> ProviderAccount:
    new = NewAccount.model_validate(
        {"provider": provider, "name": name, "webhook_secret": secret, "api_key": "sk_hidden"}
    )
    with shop.sessions.transaction() as conn:
        return connect_account(conn, shop.business_id, new)


@pytest.fixture
def webhook_url(anybody: httpx.Client, shop: Shop, vendor: Vendor) -> WebhookUrl:
    return WebhookUrl(anybody, shop, connected(shop, vendor.name, vendor.secret))


def assert_refused(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHORIZED")


# --- accepted -------------------------------------------------------------------------------------


@BOTH
def test_a_signed_webhook_needs_no_key_and_is_stored_unchanged(
    webhook_url: WebhookUrl, vendor: Vendor
) -> None:
    delivery = vendor.signed(vendor.payment(), event_id="evt_1")

    answer = webhook_url(delivery)

    assert (answer.status_code, answer.json()) == (200, {"received": True})
    assert webhook_url.stored() == [("received", "evt_1", delivery.body)]


@BOTH
def test_a_compressed_webhook_is_verified_by_its_original_bytes(
    webhook_url: WebhookUrl, vendor: Vendor
) -> None:
    delivery = vendor.signed(vendor.payment(), event_id="evt_gz")
    headers = {**delivery.headers, "Content-Encoding": "gzip"}

    answer = webhook_url(replace(delivery, body=gzip.compress(delivery.body), headers=headers))

    assert answer.status_code == 200
    assert webhook_url.stored() == [("received", "evt_gz", delivery.body)]


@BOTH
def test_a_webhook_with_an_api_key_is_handled_alike(
    api: Api, webhook_url: WebhookUrl, vendor: Vendor
) -> None:
    with api.client("gk_nobody") as client:
        assert (
            replace(webhook_url, client=client)(vendor.signed(vendor.payment())).status_code == 200
        )


@BOTH
def test_a_repeated_webhook_gets_the_same_answer_and_is_stored_once(
    webhook_url: WebhookUrl, vendor: Vendor
) -> None:
    delivery = vendor.signed(vendor.payment())

    answers = [webhook_url(delivery) for _ in range(3)]

    assert [answer.json() for answer in answers] == [{"received": True}] * 3
    assert len(webhook_url.stored()) == 1


@BOTH
def test_a_webhook_sent_many_times_at_once_is_stored_once(
    webhook_url: WebhookUrl, vendor: Vendor
) -> None:
    delivery = vendor.signed(vendor.payment())

    answers = at_once(*[lambda: webhook_url(delivery).status_code] * 8)

    assert answers == [200] * 8
    assert len(webhook_url.stored()) == 1


@BOTH
def test_a_signed_but_unreadable_webhook_is_stored(webhook_url: WebhookUrl, vendor: Vendor) -> None:
    assert webhook_url(vendor.signed(b"not json")).status_code == 200
    assert [body for _, _, body in webhook_url.stored()] == [b"not json"]


def test_the_account_must_be_named_only_if_there_are_several(
    anybody: httpx.Client, shop: Shop
) -> None:
    vendor = Dodo()
    shop.run("UPDATE provider_accounts SET disabled_at = now()")  # those of the tests before
    webhook_url = WebhookUrl(anybody, shop, connected(shop, "dodo", DODO_SECRET))
    assert webhook_url(vendor.signed(vendor.payment()), account=None).status_code == 200

    connected(shop, "dodo", DODO_SECRET, "Second")
    answer = webhook_url(vendor.signed(vendor.payment()), account=None)

    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_QUERY_PARAMS")
    assert [detail["field"] for detail in answer.json()["details"]] == ["account"]
    assert len(webhook_url.stored()) == 1


# --- refused --------------------------------------------------------------------------------------


def changed(delivery: Delivery, how: str) -> Delivery:
    """The delivery after a forgery."""
    headers = dict(delivery.headers)
    signature = "webhook-signature" if "webhook-signature" in headers else "stripe-signature"
    if how == "body":
        return delivery.with_body(delivery.body.replace(b"1000", b"9000"))
    if how == "signature":
        end = "A" if headers[signature][12] != "A" else "B"
        headers[signature] = headers[signature][:12] + end + headers[signature][13:]
    if how == "unsigned":
        headers = {}
    return Delivery(delivery.body, headers)


@BOTH
@pytest.mark.parametrize("how", ["body", "signature", "unsigned"])
def test_a_forged_or_unsigned_webhook_is_refused_and_not_stored(
    webhook_url: WebhookUrl, vendor: Vendor, how: str
) -> None:
    answer = webhook_url(changed(vendor.signed(vendor.payment()), how))

    assert_refused(answer)
    assert vendor.secret not in answer.text
    assert webhook_url.stored() == []


@BOTH
def test_a_refused_webhook_is_counted(webhook_url: WebhookUrl, vendor: Vendor) -> None:
    before = counted(webhook_url.client, vendor.name, "refused")

    webhook_url(changed(vendor.signed(vendor.payment()), "body"))

    assert counted(webhook_url.client, vendor.name, "refused") == before + 1


@BOTH
def test_stored_and_repeated_webhooks_are_counted(webhook_url: WebhookUrl, vendor: Vendor) -> None:
    before = [
        counted(webhook_url.client, vendor.name, outcome) for outcome in ("stored", "repeated")
    ]
    delivery = vendor.signed(vendor.payment())

    for _ in range(3):
        webhook_url(delivery)

    after = [
        counted(webhook_url.client, vendor.name, outcome) for outcome in ("stored", "repeated")
    ]
    assert after == [before[0] + 1, before[1] + 2]


def counted(client: httpx.Client, provider: str, outcome: str) -> int:
    name = f'gullak_provider_webhooks_total{{outcome="{outcome}",provider="{provider}"}}'
    found = re.search(re.escape(name) + r" ([0-9]+)\.0", client.get("/metrics").text)
    return 0 if found is None else int(found[1])


@BOTH
@pytest.mark.parametrize("account", ["pac_nobody", "'; --", "x" * 64])
def test_a_webhook_of_an_unknown_account_is_refused(
    webhook_url: WebhookUrl, vendor: Vendor, account: str
) -> None:
    assert_refused(webhook_url(vendor.signed(vendor.payment()), account=account))


@BOTH
def test_a_webhook_of_a_disabled_account_is_refused(
    webhook_url: WebhookUrl, vendor: Vendor
) -> None:
    with webhook_url.shop.sessions.transaction() as conn:
        disable_account(conn, webhook_url.shop.business_id, webhook_url.account.account_id)

    assert_refused(webhook_url(vendor.signed(vendor.payment())))
    assert webhook_url.stored() == []


@BOTH
def test_an_account_refuses_webhooks_of_another_provider(
    webhook_url: WebhookUrl, vendor: Vendor
) -> None:
    other: Vendor = Stripe(vendor.secret) if vendor.name == "dodo" else Dodo(vendor.secret)

    assert_refused(webhook_url(other.signed(other.payment()), provider=other.name))
    assert_refused(webhook_url(other.signed(other.payment())))


@BOTH
def test_another_tenant_s_signature_is_refused(webhook_url: WebhookUrl, vendor: Vendor) -> None:
    secret = "whsec_" + "QUFB" * 8
    thief: Vendor = Dodo(secret) if vendor.name == "dodo" else Stripe(secret)

    assert_refused(webhook_url(thief.signed(thief.payment())))


@BOTH
def test_a_webhook_that_is_too_large_is_refused_before_anything_else(
    webhook_url: WebhookUrl, vendor: Vendor
) -> None:
    delivery = vendor.signed(b" " * (BODY_BYTES_MAX + 1))

    assert webhook_url(delivery).status_code == 413
    assert webhook_url.stored() == []


@BOTH
def test_a_webhook_of_unknown_length_is_refused_if_it_is_too_large(
    webhook_url: WebhookUrl, vendor: Vendor
) -> None:
    delivery = vendor.signed(b" " * (BODY_BYTES_MAX + 1))
    parts = (delivery.body[at : at + (1 << 20)] for at in range(0, len(delivery.body), 1 << 20))

    answer = webhook_url.client.post(
        f"/providers/{vendor.name}/webhooks",
        params={"account": webhook_url.account.account_id},
        content=parts,
        headers=dict(delivery.headers),
    )

    assert answer.status_code == 413
    assert webhook_url.stored() == []


@pytest.mark.parametrize(
    "path",
    [
        "/providers/paypal/webhooks",
        "/providers/{provider}/webhooks",
        "/providers/Stripe/webhooks",
        "/providers/stripe",
        "/provider-events",
    ],
)
def test_other_paths_need_a_key(anybody: httpx.Client, path: str) -> None:
    assert_refused(anybody.post(path, content=b"{}"))


def test_only_post_is_accepted(anybody: httpx.Client) -> None:
    answer = anybody.get("/providers/stripe/webhooks")

    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


# --- listed and replayed --------------------------------------------------------------------------


def deliver(webhook_url: WebhookUrl, vendor: Vendor, *events: Json) -> None:
    for event in events:
        assert webhook_url(vendor.signed(event)).status_code == 200


def process_all(webhook_url: WebhookUrl) -> None:
    """What a worker does."""
    rows = webhook_url.shop.rows(
        "SELECT event_number FROM provider_events WHERE status = 'received'"
        f" AND business_id = '{webhook_url.shop.business_id}' ORDER BY event_number"
    )
    for (number,) in rows:
        with webhook_url.shop.sessions.transaction() as conn:
            process(conn, ProviderEventNumber(number))


@pytest.fixture
def keyed(api: Api) -> Iterator[httpx.Client]:
    with api.client() as client:
        yield client


def items(client: httpx.Client, **params: str | int) -> list[Mapping[str, object]]:
    answer = client.get("/provider-events", params=params)
    assert answer.status_code == 200
    found: list[Mapping[str, object]] = answer.json()["items"]
    return found


@BOTH
def test_events_are_listed_newest_first_with_their_status(
    keyed: httpx.Client, webhook_url: WebhookUrl, vendor: Vendor
) -> None:
    deliver(webhook_url, vendor, vendor.refund(), vendor.unrelated())
    process_all(webhook_url)

    ignored, parked = items(keyed)

    assert (ignored["status"], ignored["payment_id"]) == ("ignored", None)
    assert (parked["status"], parked["reason"]) == ("parked", "unknown_payment")
    assert (parked["payment_id"], parked["attempts"]) == ("pi_1", 1)
    assert (parked["account_id"], parked["provider"]) == (
        webhook_url.account.account_id,
        vendor.name,
    )


@BOTH
def test_the_list_shows_neither_bodies_nor_secrets(
    keyed: httpx.Client, webhook_url: WebhookUrl, vendor: Vendor
) -> None:
    deliver(webhook_url, vendor, vendor.payment())

    text = keyed.get("/provider-events").text

    assert not [word for word in ("body", "secret", "hidden", vendor.secret) if word in text]


def test_events_are_filtered_by_status_and_by_payment(
    keyed: httpx.Client, anybody: httpx.Client, shop: Shop
) -> None:
    vendor = Stripe()
    webhook_url = WebhookUrl(anybody, shop, connected(shop, "stripe", vendor.secret))
    deliver(webhook_url, vendor, vendor.refund(payment_id="pi_a"), vendor.refund(payment_id="pi_b"))
    process_all(webhook_url)
    deliver(webhook_url, vendor, vendor.payment())

    assert [event["payment_id"] for event in items(keyed, status="parked")] == ["pi_b", "pi_a"]
    assert [event["payment_id"] for event in items(keyed, payment_id="pi_a")] == ["pi_a"]
    assert len(items(keyed, status="received")) == 1


def test_pages_of_events_go_by_number_or_by_cursor(
    keyed: httpx.Client, anybody: httpx.Client, shop: Shop
) -> None:
    vendor = Stripe()
    webhook_url = WebhookUrl(anybody, shop, connected(shop, "stripe", vendor.secret))
    deliver(webhook_url, vendor, *[vendor.payment() for _ in range(5)])
    ids = [event["id"] for event in items(keyed)]

    by_number = [e["id"] for page in range(3) for e in items(keyed, page_size=2, page_number=page)]
    by_cursor = [e["id"] for e in items(keyed, page_size=2, starting_after=str(ids[1]))]

    assert (by_number, by_cursor) == (ids, ids[2:4])


@pytest.mark.parametrize(
    ("params", "status"),
    [({"status": "lost"}, 422), ({"starting_after": "pac_1"}, 404), ({"page_size": "0"}, 422)],
)
def test_bad_filters_are_refused(keyed: httpx.Client, params: dict[str, str], status: int) -> None:
    assert keyed.get("/provider-events", params=params).status_code == status


@BOTH
def test_a_parked_event_is_replayed_by_its_number(
    keyed: httpx.Client, webhook_url: WebhookUrl, vendor: Vendor
) -> None:
    deliver(webhook_url, vendor, vendor.refund())
    process_all(webhook_url)
    (event,) = items(keyed)

    answer = keyed.post("/provider-events/replay", json={"id": event["id"]})

    assert answer.json() == {"replayed_count": 1, "has_more": False}
    assert [event["status"] for event in items(keyed)] == ["received"]


@BOTH
def test_a_replay_without_a_choice_takes_all_parked_events(
    keyed: httpx.Client, webhook_url: WebhookUrl, vendor: Vendor
) -> None:
    deliver(webhook_url, vendor, vendor.refund(payment_id="pi_a"), vendor.refund(payment_id="pi_b"))
    process_all(webhook_url)

    answer = keyed.post("/provider-events/replay", json={})

    assert answer.json() == {"replayed_count": 2, "has_more": False}


@pytest.mark.parametrize("event_id", ["0", "999999999999", "x", "-1", "9" * 40])
def test_an_unknown_event_cannot_be_replayed(keyed: httpx.Client, event_id: str) -> None:
    answer = keyed.post("/provider-events/replay", json={"id": event_id})

    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"id": 5}, "id"),
        ({"payment_id": ""}, "payment_id"),
        ({"payment_id": "nul\0"}, "payment_id"),
        ({"before": 5}, "before"),
        ({"other": 1}, "other"),
    ],
)
def test_a_bad_replay_names_its_field(
    keyed: httpx.Client, body: dict[str, object], field: str
) -> None:
    answer = keyed.post("/provider-events/replay", json=body)

    assert answer.status_code == 422
    assert [detail["field"] for detail in answer.json()["details"]] == [field]


def test_a_key_that_may_only_read_replays_nothing(api: Api) -> None:
    with api.client(api.key_for("read")) as client:
        answer = client.post("/provider-events/replay", json={})

    assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN")
