"""The API says of each POST whether a client may repeat it after an unknown outcome."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute

from api.app import ROUTERS
from api.idempotency import note_repeatable

# These do their work again when they are repeated: they take no idempotency key.
ONCE = {
    "/customers",
    "/meters",
    "/packages",
    "/prices",
    "/webhooks/{webhook_id}/replay",
    "/webhooks/{webhook_id}/test",
}


def posts() -> Iterator[APIRoute]:
    for module in ROUTERS:
        for route in module.router.routes:
            if isinstance(route, APIRoute) and "POST" in (route.methods or ()):
                yield route


def is_repeatable(route: APIRoute) -> bool:
    calls = [each.call for each in _dependencies(route)]
    return note_repeatable in calls or "idempotency.by(" in inspect.getsource(route.endpoint)


def _dependencies(route: APIRoute) -> list[Any]:
    found: list[Any] = []
    left = list(route.dependant.dependencies)
    while left:
        found.append(left.pop())
        left += found[-1].dependencies
    return found


@pytest.mark.parametrize("route", list(posts()), ids=lambda route: route.path)
def test_a_post_is_declared_repeatable_or_listed_as_not_repeatable(route: APIRoute) -> None:
    takes_key = route.body_field is not None and "idempotency_key" in getattr(
        route.body_field.field_info.annotation, "model_fields", {}
    )

    assert is_repeatable(route) or route.path in ONCE
    assert not (takes_key and route.path in ONCE)


def test_every_listed_path_exists() -> None:
    assert {route.path for route in posts()} >= ONCE
