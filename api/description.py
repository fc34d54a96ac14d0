"""The OpenAPI description: what FastAPI leaves out of it.

The body of ingestion, examples, links between calls, webhooks, and the configured currencies.
"""

from typing import Any, Final, TypeAlias

from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from api import examples
from api.notices import SHAPES
from metering.accept import AcceptLimits, UsageEvent
from metering.fields import NO_NUL

# The JSON object that FastAPI builds.
Document: TypeAlias = dict[str, Any]

_REFS: Final = "#/components/schemas/{model}"
_CURRENCY_NAMES: Final = frozenset({"currency", "billing_currency"})
# Calls that create an object: the path parameter for its id, and where the response holds it.
_MADE: Final = {
    "/customers": ("customer_id", "$response.body#/customer_id"),
    "/customers/{customer_id}/purchases": ("purchase_id", "$response.body#/id"),
    "/packages": ("package_id", "$response.body#/id"),
    "/customers/{customer_id}/checkouts": ("checkout_id", "$response.body#/id"),
    "/meters": ("meter_id", "$response.body#/id"),
    "/low-credit-rules": ("rule_id", "$response.body#/id"),
    "/webhooks": ("webhook_id", "$response.body#/id"),
}

_WEBHOOK_HEADERS: Final = {
    "webhook-id": "The id of the event, the same in every attempt: use it to detect duplicates.",
    "webhook-timestamp": "When the attempt was made, in Unix seconds.",
    "webhook-signature": "`v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`."
    " There are several, separated by spaces, while a secret is being replaced.",
}


def describe(app: FastAPI, currencies: tuple[str, ...]) -> None:
    """Complete the description of `app`, with the configured currencies."""
    plain = app.openapi

    def openapi() -> Document:
        if app.openapi_schema is None:
            document = plain()
            _add_ingest(document)
            _add_links(document)
            _add_examples(document, currencies[0])
            _add_webhooks(document)
            _narrow(document, list(currencies))
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_ingest(document: Document) -> None:
    """Describe the body of ingestion, which the route parses without FastAPI."""
    event = TypeAdapter(UsageEvent).json_schema(ref_template=_REFS)
    document["components"]["schemas"]["UsageEvent"] = event
    document["components"]["schemas"]["Ingest"] = {
        "type": "object",
        "title": "Ingest",
        "description": "The usage events of one request. No two have the same `event_id`.",
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


def _add_examples(document: Document, currency: str) -> None:
    """Add an example to each operation that takes a body."""
    bodies = examples.bodies(currency)
    for methods in document["paths"].values():
        for operation in methods.values():
            if "requestBody" in operation and operation["operationId"] in bodies:
                content = operation["requestBody"]["content"]["application/json"]
                content["example"] = bodies[operation["operationId"]]


def _add_webhooks(document: Document) -> None:
    """Describe the webhooks that a business receives, one by type."""
    shapes: list[type[BaseModel]] = list(dict.fromkeys(shape for shape, _ in SHAPES.values()))
    _, described = models_json_schema(
        [(shape, "serialization") for shape in shapes], ref_template=_REFS
    )
    document["components"]["schemas"] |= described["$defs"]
    document["webhooks"] = {
        type_: {"post": _webhook(type_, shape.__name__, summary)}
        for type_, (shape, summary) in SHAPES.items()
    }


def _webhook(type_: str, shape: str, summary: str) -> Document:
    envelope = {
        "type": "object",
        "required": ["business_id", "type", "timestamp", "data"],
        "properties": {
            "business_id": {"type": "string"},
            "type": {"const": type_},
            "timestamp": {"type": "string", "format": "date-time"},
            "data": {"$ref": _REFS.format(model=shape)},
        },
    }
    return {
        "summary": summary,
        "description": "Sent to each enabled endpoint that receives this type. Repeated until the"
        " endpoint answers with 2xx. Signed as in Standard Webhooks, with the endpoint's secret.",
        "operationId": f"told_of_{type_.replace('.', '_')}",
        "tags": ["sent to you"],
        "parameters": [
            {
                "name": name,
                "in": "header",
                "required": True,
                "description": meaning,
                "schema": {"type": "string"},
            }
            for name, meaning in _WEBHOOK_HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": envelope}},
        },
        "responses": {"2XX": {"description": "Delivered. Any other response: it is sent again."}},
    }


def _add_links(document: Document) -> None:
    """Link each call that creates an object to the calls that take its id."""
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
    """Limit every currency to the configured ones, and every query text to one without NUL.

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
