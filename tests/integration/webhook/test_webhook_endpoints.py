"""Endpoints: their limits, their secrets, and that each belongs to one business."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError
from sqlalchemy import Connection

from metering.errors import InvalidInputError, NotFoundError, TooManyEndpointsError
from metering.ids import BusinessId, EndpointId
from metering.webhook import endpoints
from metering.webhook.deliver import DeliveryReport, count_due
from metering.webhook.endpoints import (
    EndpointChange,
    HeaderChange,
    NewEndpoint,
    create_endpoint,
    endpoint_secret,
    rotate_secret,
)
from support.webhook_receiver import Bench

pytest_plugins = ("support.webhook_fixtures",)


# --- endpoints ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


def test_after_a_rotation_the_previous_secret_also_signs_for_a_while(bench: Bench) -> None:
    made, inbox = bench.receiver()
    with bench.sessions.transaction() as conn:
        new = rotate_secret(conn, bench.business_id, made.endpoint_id)
        assert endpoint_secret(conn, bench.business_id, made.endpoint_id) == new
    inbox.secrets.append(new)
    bench.publish()
    assert bench.deliver() == DeliveryReport(1, 0, 0)

    with bench.sessions.transaction() as conn:
        newest = rotate_secret(conn, bench.business_id, made.endpoint_id, overlap_s=0)
    inbox.secrets = [newest]
    bench.publish()
    assert bench.deliver() == DeliveryReport(1, 0, 0)
    assert " " not in inbox.requests[-1][0]["Webhook-Signature"]


def test_a_given_secret_is_checked_and_never_quoted(bench: Bench) -> None:
    made, _ = bench.receiver()
    for bad in ("", "hunter2", "whsec_", "whsec_aHVudGVyMg==", "whsec_hunter2!" + "A" * 40):
        with bench.sessions.transaction() as conn, pytest.raises(InvalidInputError) as refusal:
            rotate_secret(conn, bench.business_id, made.endpoint_id, secret=bad)
        assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "https://user:pass@example.com/",
        "https://key@example.com/",
        "https://example.com/#part",
        "https://example.com:99999/",
        "https://example.com:0/",
        "https://exa mple.com/",
        "https://example.com/a\nb",
        "https://example.com/" + "x" * 2048,
    ],
)
def test_bad_urls_are_refused(bench: Bench, url: str) -> None:
    assert refused(bench, url=url) == ["url"]


def refused(bench: Bench, **values: object) -> list[str]:
    """The fields for which an endpoint is refused."""
    given = {"url": "https://example.com/", **values}
    with (
        bench.sessions.transaction() as conn,
        pytest.raises((InvalidInputError, ValidationError)) as refusal,
    ):
        create_endpoint(conn, bench.business_id, NewEndpoint.model_validate(given))
    error = refusal.value
    if isinstance(error, InvalidInputError):
        return sorted({problem.field for problem in error.problems})
    assert isinstance(error, ValidationError)
    return sorted({str(problem["loc"][0]) for problem in error.errors()})


@pytest.mark.parametrize(
    "headers",
    [
        {"Webhook-Signature": "v1,x"},
        {"webhook-anything": "x"},
        {"HOST": "x"},
        {"content-type": "text/plain"},
        {"Transfer-Encoding": "chunked"},
        {"proxy-authorization": "x"},
        {"": "x"},
        {"a b": "x"},
        {"x-a": "one\r\ntwo: three"},
        {"x-a": ""},
        {"x-a": "₹"},
        {"x" * 101: "y"},
        {"x-a": "y" * 1001},
        {f"x-{n}": "y" for n in range(51)},
    ],
)
def test_bad_headers_are_refused(bench: Bench, headers: dict[str, str]) -> None:
    (field,) = refused(bench, headers=headers)

    assert field.partition(".")[0] == "headers"


def test_changed_and_stored_headers_have_one_limit_together(
    bench: Bench,
) -> None:
    made, _ = bench.receiver()
    full = {f"x-{n}": "y" for n in range(endpoints.ENTRIES_MAX - 1)}

    def change(headers: dict[str, str]) -> None:
        with bench.sessions.transaction() as conn:
            wanted = HeaderChange(headers=headers)
            endpoints.change_headers(conn, bench.business_id, made.endpoint_id, wanted)

    change(full)
    with pytest.raises(InvalidInputError) as refusal:
        change({"x-more": "y"})
    change({"x-0": "", "x-more": "y"})

    assert [problem.field for problem in refusal.value.problems] == ["headers"]
    headers = bench.endpoint(made.endpoint_id).headers
    assert len(headers) == endpoints.ENTRIES_MAX
    assert "x-0" not in headers


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("description", "x" * 1001),
        ("description", "a\0b"),
        ("metadata", {"x" * 101: "y"}),
        ("metadata", {"x": "y" * 1001}),
        ("metadata", {f"x{n}": "y" for n in range(51)}),
        ("filter_types", ["credit.added"] * 101),
    ],
)
def test_a_field_that_is_too_long_is_refused(bench: Bench, field: str, value: object) -> None:
    assert refused(bench, **{field: value}) == [field]


def test_unknown_types_are_refused_with_their_position(bench: Bench) -> None:
    assert refused(bench, filter_types=["credit.added", "credit.lost"]) == ["filter_types[1]"]


def test_an_endpoint_is_listed_changed_and_deleted_by_its_own_business_only(bench: Bench) -> None:
    other = bench.new_business()
    first, _ = bench.receiver()
    second, _ = bench.receiver()
    with bench.sessions.transaction() as conn:
        page = endpoints.list_endpoints(conn, bench.business_id, limit=1)
        rest = endpoints.list_endpoints(
            conn, bench.business_id, limit=9, after=page[-1].endpoint_id
        )
        assert {e.endpoint_id for e in [*page, *rest]} == {first.endpoint_id, second.endpoint_id}
        assert endpoints.list_endpoints(conn, other, limit=9) == []
        change = EndpointChange(
            url="https://example.com/new",
            description="the new one",
            filter_types=[],
            metadata={"team": "billing"},
        )
        changed = endpoints.change_endpoint(conn, bench.business_id, first.endpoint_id, change)
        assert (changed.url, changed.filter_types) == ("https://example.com/new", None)
        endpoints.delete_endpoint(conn, bench.business_id, second.endpoint_id)
    calls: list[Callable[[Connection, BusinessId, EndpointId], object]] = [
        endpoints.get_endpoint,
        endpoints.endpoint_secret,
        endpoints.rotate_secret,
        endpoints.disable_endpoint,
        endpoints.enable_endpoint,
        endpoints.delete_endpoint,
    ]
    for call in calls:
        for business_id, endpoint_id in (
            (other, first.endpoint_id),
            (bench.business_id, second.endpoint_id),
        ):
            with bench.sessions.transaction() as conn, pytest.raises(NotFoundError):
                call(conn, business_id, endpoint_id)


def test_a_business_has_a_limited_number_of_endpoints(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "ENDPOINTS_MAX", 2)
    bench.receiver()
    bench.receiver()

    with pytest.raises(TooManyEndpointsError):
        bench.receiver()


def test_the_sweep_counts_the_claimable_deliveries(bench: Bench) -> None:
    bench.receiver()
    bench.publish(3)
    with bench.sessions.transaction() as conn:
        assert count_due(conn, bench.policy, count_max=100) == 3
        assert count_due(conn, bench.policy, count_max=2) == 2
    bench.deliver()
    with bench.sessions.transaction() as conn:
        assert count_due(conn, bench.policy, count_max=100) == 0
