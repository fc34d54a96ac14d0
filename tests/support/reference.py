"""Write docs/reference: pages made from the code. `make docs` runs it; a unit test compares.

Settings come from the class and the comments above its fields, metrics from their objects, HTTP
calls from the OpenAPI description.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from prometheus_client.metrics import MetricWrapperBase

import worker.metrics
from api.app import create_app
from metering.accept.client import exchange, pending
from worker.settings import Settings, settings_from

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "docs" / "reference"
Schema: TypeAlias = Mapping[str, Any]

_SECTION: Final = re.compile(r"    # --- (.+?) -+\n")
_COMMENT: Final = re.compile(r"    # (.*)\n")
_FIELD: Final = re.compile(r"    (\w+): ")
_SCHEMA: Final = Settings.model_json_schema()["properties"]
# Settings of the tests of Gullak itself.
_LEFT_OUT: Final = "tests"


# --- settings ---------------------------------------------------------------------------------


def settings_page() -> str:
    """Return a table of settings for each section of the class."""
    sections: dict[str, list[str]] = {}
    section = ""
    comment: list[str] = []
    for line in _body_of_settings():
        if found := _SECTION.fullmatch(line):
            section, comment = found[1], []
        elif found := _COMMENT.fullmatch(line):
            comment.append(found[1])
        elif found := _FIELD.match(line):
            meaning = " ".join(comment)
            assert meaning, f"{found[1]} has no comment"
            sections.setdefault(section, []).append(_setting(found[1], meaning))
            comment = []
    head = ["| variable | default | values | meaning |", "| --- | --- | --- | --- |"]
    tables = [
        f"## {title[:1].upper()}{title[1:]}\n\n" + "\n".join([*head, *rows])
        for title, rows in sections.items()
        if title != _LEFT_OUT
    ]
    return "\n\n".join([_SETTINGS_HEAD, *tables]) + "\n"


def _body_of_settings() -> list[str]:
    """Return the lines of the class from its first section to its first method."""
    source = (ROOT / "worker" / "settings.py").read_text()
    fields = source.partition("class Settings(")[2].partition("    @field_validator")[0]
    lines = fields[fields.index("    # ---") :].splitlines(keepends=True)
    return [line for line in lines if line.strip()]


def _setting(name: str, comment: str) -> str:
    field = Settings.model_fields[name]
    variable = str(field.validation_alias or f"GULLAK_{name.upper()}")
    schema = _SCHEMA[str(field.validation_alias or name)]
    return f"| `{variable}` | {_default(schema.get('default'))} | {_values(schema)} | {comment} |"


def _default(value: object) -> str:
    if value in (None, ""):
        return ""
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _values(schema: Schema) -> str:
    """Return what a setting or field may be: choices, or a range."""
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    bounds = (schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum"))
    least, most = (None if bound is None else f"{bound:,}" for bound in bounds)
    if least is not None and most is not None:
        return f"{least} to {most}"
    if least is not None:
        return f"≥ {least}" if "minimum" in schema else f"> {least}"
    return ""


_SETTINGS_HEAD: Final = """# Settings

Settings are environment variables. A process reads them once, when it starts, and ends with one
line and the code 78 if one of them is wrong. Units end the names: `_S` is seconds, `_MS`
milliseconds. A list or a table is written as JSON.

`make docs` makes this page from `worker/settings.py`."""


# --- metrics ----------------------------------------------------------------------------------


def metrics_page() -> str:
    """Return a table of the metrics of the service and one of those of a producer."""
    head = "| metric | type | labels | meaning |\n| --- | --- | --- | --- |"
    service = "\n".join([head, *_rows_of(worker.metrics)])
    producer = "\n".join([head, *_rows_of(pending, exchange)])
    return f"{_METRICS_HEAD}\n\n{service}\n\n{_PRODUCER_HEAD}\n\n{producer}\n"


def _rows_of(*modules: object) -> list[str]:
    found = [
        metric
        for module in modules
        for metric in vars(module).values()
        if isinstance(metric, MetricWrapperBase)
    ]
    return [f"| `{name_of(m)}` | {m._type} | {_labels_of(m)} | {m._documentation} |" for m in found]


def name_of(metric: MetricWrapperBase) -> str:
    """Return the name that Prometheus sees."""
    return f"{metric._name}_total" if metric._type == "counter" else metric._name


def _labels_of(metric: MetricWrapperBase) -> str:
    return ", ".join(f"`{label}`" for label in metric._labelnames)


_METRICS_HEAD: Final = """# Metrics

`/metrics` of the API, and `/metrics` of a worker with `GULLAK_METRICS_PORT`, are in the text
format of Prometheus. They need no key: protect them by your proxy. Where the processes of one
machine share `PROMETHEUS_MULTIPROC_DIR`, as under `gullak up`, each of them answers for all.
Counters and histograms count from the start of that folder. A gauge is the last value that any
process has set.

A task measures once a minute what waits: refused events, webhooks, parked money, wallets below
zero, the oldest event. `gullak_measured_timestamp_seconds` says when.
[alerts.yml](../alerts.yml) has rules for all that should wake a person, and the
[runbook](../runbook.md) says what to do.

`make docs` makes this page from the code."""
_PRODUCER_HEAD: Final = """## Metrics of a producer

A process that records usage with `Meter` or its middleware has these in its own registry:"""


# --- HTTP calls -------------------------------------------------------------------------------


def http_page() -> str:
    """Return every call by resource, every webhook, and every object that they carry."""
    document = create_app(settings_from({})).openapi()
    resources: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            (tag,) = operation["tags"]
            resources.setdefault(tag, []).append(_call(f"{method.upper()} {path}", operation))
    parts = [_HTTP_HEAD, _errors(document)]
    for tag, calls in resources.items():
        parts += [f"## {tag[:1].upper()}{tag[1:]}", *calls]
    parts += [_WEBHOOKS_HEAD, _webhooks(document["webhooks"])]
    parts += ["## Objects", *_objects(document["components"]["schemas"])]
    return "\n\n".join(parts) + "\n"


def _call(title: str, operation: Schema) -> str:
    needs = [
        scope for security in operation.get("security", ()) for scope in security["HTTPBearer"]
    ]
    parts = [f"### {title}", operation.get("description", "")]
    if needs:
        parts.append(f"Permission: {', '.join(f'`{need}`' for need in needs)}.")
    if parameters := operation.get("parameters"):
        head = "| parameter | in | type | meaning |\n| --- | --- | --- | --- |"
        parts.append("\n".join([head, *map(_parameter, parameters)]))
    if body := operation.get("requestBody"):
        content = body["content"]["application/json"]
        parts.append(f"Body: {_type(content['schema'])}, for example")
        parts.append(f"```json\n{json.dumps(content['example'], indent=2)}\n```")
    parts.append(f"Answer: {_answer(operation['responses'])}.")
    return "\n\n".join(filter(None, parts))


def _parameter(parameter: Schema) -> str:
    schema = parameter["schema"]
    name = f"`{parameter['name']}`" + (" (required)" if parameter.get("required") else "")
    meaning = _line(parameter.get("description", ""))
    return f"| {name} | {parameter['in']} | {_type(schema)} | {meaning} |"


def _answer(responses: Schema) -> str:
    status = next(status for status in responses if status[0] in "23")
    for media, content in responses[status].get("content", {}).items():
        kind = _type(content.get("schema", {}))
        return f"{status}, {kind}" if kind and media == "application/json" else f"{status}, {media}"
    return str(status)


def _errors(document: Schema) -> str:
    found: dict[str, str] = {}
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if status[0] in "45" and "security" in operation:
                    found[status] = response["description"]
    rows = [f"| {status} | {_line(found[status])} |" for status in sorted(found)]
    head = "| status | meaning |\n| --- | --- |"
    return "\n".join([head, *rows])


def _webhooks(webhooks: Schema) -> str:
    rows = []
    for type_, methods in webhooks.items():
        (operation,) = methods.values()
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        rows.append(
            f"| `{type_}` | {_type(schema['properties']['data'])} | {_line(operation['summary'])} |"
        )
    return "\n".join(["| type | data | meaning |\n| --- | --- | --- |", *rows])


def _objects(schemas: Schema) -> Iterable[str]:
    for name in sorted(schemas):
        schema = schemas[name]
        parts = [f"### {_title(name)}", schema.get("description", "")]
        if "enum" in schema:
            parts.append(f"One of {_values(schema)}.")
        if properties := schema.get("properties"):
            required = schema.get("required", ())
            rows = [
                _property(key, part, is_required=key in required)
                for key, part in properties.items()
            ]
            parts.append("\n".join(["| field | type | meaning |\n| --- | --- | --- |", *rows]))
        yield "\n\n".join(filter(None, parts))


def _title(name: str) -> str:
    """Return what an object is called on the page; FastAPI names some of them by their module."""
    if found := re.fullmatch(r"Page_(\w+)_", name):
        return f"Page of {found[1]}"
    module, _, short = name.removeprefix("api__routes__").rpartition("__")
    return f"{short} of {module}" if module else name


def _property(name: str, schema: Schema, *, is_required: bool) -> str:
    shown = f"`{name}`" + (" (required)" if is_required else "")
    return f"| {shown} | {_type(schema)} | {_line(schema.get('description', ''))} |"


def _type(schema: Schema) -> str:
    """Return a schema in a few words, with links to objects."""
    if name := schema.get("$ref", "").rpartition("/")[2]:
        title = _title(name)
        return f"[{title}](#{title.lower().replace(' ', '-')})"
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(dict.fromkeys(map(_type, choices)))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    kind = schema.get("format") or schema.get("type", "")
    values = _values(schema)
    return values if "`" in values else " ".join(filter(None, (kind, values)))


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


_HTTP_HEAD: Final = """# HTTP reference

Send `Authorization: Bearer KEY` with every call. Bodies and answers are JSON. All amounts are
whole minor units. A path may end with a slash. `/docs` of a running API shows the same, and
lets you try each call.

A field of the body or a query parameter that is not listed is refused, and so is one that is given
twice. Two kinds of calls let unknown parameters pass: those without a key, and the webhooks of
providers.

A second DELETE finds what a GET would find. What was archived, ended or dismissed is still there:
the answer is that of the first DELETE, and nothing changes. What is gone answers 404.

An error has a body like [ErrorBody](#errorbody):"""
_WEBHOOKS_HEAD: Final = """## Webhooks that Gullak sends

Each is a POST with `business_id`, `type`, `timestamp` and `data`, and with the headers
`webhook-id`, `webhook-timestamp` and `webhook-signature` of Standard Webhooks. [Receive
webhooks](../integrating.md#receive-webhooks) shows a receiver."""

PAGES: Final = {
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "http.md": http_page,
}


def stale_pages() -> list[str]:
    """Return the pages that are not what the code says."""
    return [
        name
        for name, page in PAGES.items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text() != page()
    ]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file_name, made in PAGES.items():
        (FOLDER / file_name).write_text(made())
    sys.stdout.write(f"wrote {', '.join(PAGES)} in {FOLDER.relative_to(ROOT)}\n")
