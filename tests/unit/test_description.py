"""The API description is complete: an example body for each call, and every webhook."""

from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator

from api.app import create_app
from api.examples import BODIES
from metering.webhook.outbox import PAYLOAD_TYPES, WebhookType
from support.edge import description
from worker.settings import settings_from

DOCUMENT: dict[str, Any] = description()
WITH_BODY = {
    operation["operationId"]: operation["requestBody"]["content"]["application/json"]
    for methods in DOCUMENT["paths"].values()
    for operation in methods.values()
    if "requestBody" in operation
}


def problems(value: object, schema: dict[str, Any], document: dict[str, Any]) -> list[str]:
    whole = {**schema, "components": document["components"]}
    found = Draft202012Validator(
        whole, format_checker=Draft202012Validator.FORMAT_CHECKER
    ).iter_errors(value)
    return [f"{error.json_path}: {error.message}" for error in found]


@pytest.mark.parametrize("operation_id", sorted(WITH_BODY))
def test_every_operation_with_a_body_has_an_example_that_fits_its_schema(operation_id: str) -> None:
    content = WITH_BODY[operation_id]

    assert "example" in content, "add one to api/examples.py: a reader copies it"
    assert problems(content["example"], content["schema"], DOCUMENT) == []


def test_every_example_belongs_to_an_operation() -> None:
    assert set(BODIES) == set(WITH_BODY)


def test_examples_use_configured_currencies() -> None:
    document = create_app(settings_from({"GULLAK_CURRENCIES": '{"JPY": 0}'})).openapi()

    content = document["paths"]["/prices"]["post"]["requestBody"]["content"]["application/json"]

    assert content["example"]["currency"] == "JPY"
    assert problems(content["example"], content["schema"], document) == []


def test_every_webhook_that_is_sent_is_described() -> None:
    assert set(DOCUMENT["webhooks"]) == set(get_args(WebhookType)), "add its shape: api/notices.py"


@pytest.mark.parametrize("type_", get_args(WebhookType))
def test_the_description_of_a_webhook_names_its_payload_type(type_: WebhookType) -> None:
    described = DOCUMENT["webhooks"][type_]["post"]["requestBody"]["content"]["application/json"]
    name = described["schema"]["properties"]["data"]["$ref"].rpartition("/")[2]
    payload = DOCUMENT["components"]["schemas"][name]["properties"]["payload_type"]

    assert described["schema"]["properties"]["type"] == {"const": type_}
    assert PAYLOAD_TYPES[type_] in payload.get("enum", [payload.get("const")])
