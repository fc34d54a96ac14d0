"""Webhook endpoints over HTTP, driven by the vendor's official SDK."""

from collections.abc import Iterator

import dodopayments
import httpx
import pytest
from dodopayments import DodoPayments
from standardwebhooks import Webhook

from metering.webhook.endpoints import ENDPOINTS_MAX
from support.edge import Api
from support.tenant import Shop

URL = "https://example.com/hook"


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def api(module_api: Api) -> Api:
    return module_api


@pytest.fixture(params=[True, False], ids=["strict", "loose"])
def client(request: pytest.FixtureRequest, api: Api) -> Iterator[DodoPayments]:
    with DodoPayments(
        bearer_token=api.key, base_url=api.url, _strict_response_validation=request.param
    ) as opened:
        yield opened


def test_an_endpoint_is_made_read_and_listed(client: DodoPayments) -> None:
    made = client.webhooks.create(
        url=URL, description="ours", filter_types=["credit.balance_low"], metadata={"team": "a"}
    )

    assert client.webhooks.retrieve(made.id) == made
    assert [item.id for item in client.webhooks.list()] == [made.id]
    assert (made.url, made.description, made.disabled) == (URL, "ours", False)
    assert (made.filter_types, made.metadata) == (["credit.balance_low"], {"team": "a"})


def test_the_secret_of_an_endpoint_signs_its_webhooks(client: DodoPayments) -> None:
    made = client.webhooks.create(url=URL)

    secret = client.webhooks.retrieve_secret(made.id).secret

    assert secret.startswith("whsec_")
    Webhook(secret)


def test_a_change_keeps_the_fields_that_are_not_given(client: DodoPayments) -> None:
    made = client.webhooks.create(url=URL, description="ours", metadata={"team": "a"})

    changed = client.webhooks.update(made.id, disabled=True, metadata={"team": "b"})

    assert (changed.url, changed.description) == (URL, "ours")
    assert (changed.disabled, changed.metadata) == (True, {"team": "b"})
    assert client.webhooks.update(made.id, disabled=False).disabled is False


def test_an_endpoint_can_receive_all_types_again(client: DodoPayments) -> None:
    made = client.webhooks.create(url=URL, filter_types=["credit.added"])

    assert client.webhooks.update(made.id, filter_types=[]).filter_types is None


def test_a_deleted_endpoint_is_gone(client: DodoPayments) -> None:
    made = client.webhooks.create(url=URL)

    client.webhooks.delete(made.id)

    with pytest.raises(dodopayments.NotFoundError):
        client.webhooks.retrieve(made.id)


def test_pages_hold_every_endpoint_once(client: DodoPayments) -> None:
    made = [client.webhooks.create(url=f"{URL}/{n}").id for n in range(5)]

    assert [item.id for item in client.webhooks.list(limit=2)] == made


def test_headers_are_merged_and_credentials_are_not_shown_again(client: DodoPayments) -> None:
    made = client.webhooks.create(url=URL, headers={"Authorization": "Bearer x", "X-Old": "1"})

    client.webhooks.headers.update(made.id, headers={"X-Team": "a", "X-Old": ""})

    shown = client.webhooks.headers.retrieve(made.id)
    assert (shown.headers, shown.sensitive) == ({"X-Team": "a"}, ["Authorization"])


def test_a_repeated_request_returns_the_endpoint_of_the_first(client: DodoPayments) -> None:
    made = client.webhooks.create(url=URL, idempotency_key="k")

    assert client.webhooks.create(url=URL, idempotency_key="k").id == made.id
    with pytest.raises(dodopayments.ConflictError):
        client.webhooks.create(url=f"{URL}/other", idempotency_key="k")


def test_a_replay_makes_missed_webhooks_due(api: Api, shop: Shop) -> None:
    with api.client() as http:
        http.post("/low-credit-rules", json={"currency": "USD", "threshold": 5})
        shop.enter(10)
        shop.enter(6, debit=True)
        made = http.post("/webhooks", json={"url": URL}).json()

        answer = http.post(f"/webhooks/{made['id']}/replay", json={"since": "2020-01-01T00:00:00Z"})

    # The credit, the debit, and the alert.
    assert answer.json() == {"replayed_count": 3}
    assert (
        shop.rows("SELECT endpoint_id, status FROM webhook_deliveries")
        == [(made["id"], "pending")] * 3
    )


REFUSED = {
    "no URL": ({}, "url"),
    "not a URL": ({"url": "nowhere"}, "url"),
    "a type that nobody sends": ({"url": URL, "filter_types": ["license_key.created"]}, "types"),
    "a header of ours": ({"url": URL, "headers": {"webhook-id": "1"}}, "headers"),
    "a throttle": ({"url": URL, "rate_limit": 5}, "rate_limit"),
    "an unknown field": ({"url": URL, "more": 1}, "more"),
    "NUL": ({"url": URL, "description": "a\0b"}, "description"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_endpoint_is_refused_by_field(api: Api, name: str) -> None:
    body, field = REFUSED[name]
    with api.client() as http:
        answer = http.post("/webhooks", json=body)

        assert answer.status_code == 422
        assert field in answer.text
        assert http.get("/webhooks").json()["data"] == []


def test_a_business_has_a_limited_number_of_endpoints(api: Api) -> None:
    with api.client() as http:
        answers = [http.post("/webhooks", json={"url": URL}) for _ in range(ENDPOINTS_MAX + 1)]

    assert [answer.status_code for answer in answers[:-1]] == [200] * ENDPOINTS_MAX
    assert answers[-1].status_code == 422


def test_reading_a_secret_needs_the_write_permission(api: Api) -> None:
    with api.client() as http:
        made = http.post("/webhooks", json={"url": URL}).json()
    with api.client(api.key_for("read")) as reader:
        answers: list[httpx.Response] = [
            reader.get(f"/webhooks/{made['id']}{part}") for part in ("", "/secret")
        ]

    assert [answer.status_code for answer in answers] == [200, 403]
