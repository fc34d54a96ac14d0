"""The OpenAPI description: what this installation takes, and how one call leads to the next."""

from typing import Any, Final, TypeAlias

from fastapi import FastAPI
from pydantic import TypeAdapter

from metering.accept import AcceptLimits, UsageEvent
from metering.text import NO_NUL

# As FastAPI builds it: any JSON.
Document: TypeAlias = dict[str, Any]

_REFS: Final = "#/components/schemas/{model}"
_CURRENCY_NAMES: Final = frozenset({"currency", "billing_currency"})
# What a call makes, by its path: the parameter that names it elsewhere, and where its id is.
_MADE: Final = {
    "/customers": ("customer_id", "$response.body#/customer_id"),
    "/customers/{customer_id}/purchases": ("purchase_id", "$response.body#/id"),
    "/packages": ("package_id", "$response.body#/id"),
    "/customers/{customer_id}/checkouts": ("checkout_id", "$response.body#/id"),
    "/meters": ("meter_id", "$response.body#/id"),
    "/low-credit-rules": ("rule_id", "$response.body#/id"),
    "/webhooks": ("webhook_id", "$response.body#/id"),
}


def describe(app: FastAPI, currencies: tuple[str, ...]) -> None:
    """Make `app` describe itself, with the currencies that are configured."""
    plain = app.openapi

    def openapi() -> Document:
        if app.openapi_schema is None:
            document = plain()
            _add_ingest(document)
            _add_links(document)
            _narrow(document, list(currencies))
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_ingest(document: Document) -> None:
    """Describe the body that is read straight from its bytes."""
    event = TypeAdapter(UsageEvent).json_schema(ref_template=_REFS)
    document["components"]["schemas"]["UsageEvent"] = event
    document["components"]["schemas"]["Ingest"] = {
        "type": "object",
        "title": "Ingest",
        "description": "Usage events of one request; an `event_id` comes once.",
        "required": ["events"],
        "additionalProperties": False,
        "properties": {
            "events": {
                "type": "array",
                "minItems": 1,
                "maxItems": AcceptLimits().request_events_max,
                "items": {"$ref": _REFS.format(model="UsageEvent")},
            }
        },
    }


def _add_links(document: Document) -> None:
    """Say which calls take the id of what a call has made."""
    operations = [
        (path, operation)
        for path, methods in document["paths"].items()
        for operation in methods.values()
    ]
    for made_at, (parameter, expression) in _MADE.items():
        maker = document["paths"][made_at]["post"]
        (status,) = [status for status in maker["responses"] if status.startswith("2")]
        maker["responses"][status]["links"] = {
            operation["operationId"]: {
                "operationId": operation["operationId"],
                "parameters": {parameter: expression},
            }
            for path, operation in operations
            if f"{{{parameter}}}" in path
        }


def _narrow(node: object, currencies: list[str]) -> None:
    """Say of every currency which ones there are, and of every query text that it has no NUL.

    A node with `in` is a parameter.
    """
    if isinstance(node, list):
        for part in node:
            _narrow(part, currencies)
    elif isinstance(node, dict):
        if node.get("in") == "query":
            _restrict(node["schema"], {"pattern": NO_NUL})
        if "in" in node and node["name"] in _CURRENCY_NAMES:
            _restrict(node["schema"], {"enum": currencies})
        for name, part in node.get("properties", {}).items():
            if name in _CURRENCY_NAMES:
                _restrict(part, {"enum": currencies})
        for part in node.values():
            _narrow(part, currencies)


def _restrict(schema: Document, more: Document) -> None:
    for choice in schema.get("anyOf", [schema]):
        if choice.get("type") == "string" and "format" not in choice and "enum" not in choice:
            choice.update(more)
