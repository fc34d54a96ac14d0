"""`gullak endpoint`: where webhooks go."""

from typing import Annotated, Any, Final

import typer
from typer import Argument, Option

from metering.ids import BusinessId, EndpointId
from metering.webhook.deliveries import send_test
from metering.webhook.endpoints import (
    ENDPOINTS_MAX,
    ROTATION_OVERLAP_S,
    NewEndpoint,
    create_endpoint,
    delete_endpoint,
    disable_endpoint,
    enable_endpoint,
    endpoint_secret,
    list_endpoints,
    rotate_secret,
)
from worker.cli.command import Group, Tenant
from worker.cli.page import Sentence, field, fields, table
from worker.cli.target import Target
from worker.context import reach_of

app = Group()

EndpointArgument = Annotated[EndpointId, Argument(help="Endpoint id.", metavar="ENDPOINT")]

# Values of headers can be credentials of the receiver: they are not printed.
_SHOWN: Final = """
    endpoint_id, url, filter_types, disabled_at, disabled_reason, failures_in_row, description,
    created_at
"""


@app.add("create", field("endpoint_id", "secret"))
def create(
    target: Target,
    business: BusinessId,
    url: Annotated[str, Argument(help="Receives the webhooks.")],
    types: Annotated[
        list[str] | None,
        Option("--type", help="Only this type of event; may be repeated. Default: all."),
    ] = None,
    description: Annotated[str | None, Option()] = None,
) -> dict[str, Any]:
    """Make an endpoint; print its id and the secret that signs."""
    new = NewEndpoint(url=url, description=description, filter_types=types)
    # Before the transaction: it may ask a name server.
    refusal = reach_of(target.settings).refusal_now(url)
    with target.transaction() as conn:
        made = create_endpoint(conn, business, new)
        secret = endpoint_secret(conn, business, made.endpoint_id)
    if refusal:
        # A warning only: the workers' environment may allow what ours does not.
        typer.echo(f"gullak: warning: {url} {refusal}", err=True)
    return {**fields(made, _SHOWN), "secret": secret}


@app.add(
    "list",
    table(
        """
            endpoint_id, url, filter_types~, disabled_at, disabled_reason~, failures_in_row#,
            description~, created_at
        """,
        filter_types=lambda one: ", ".join(one["filter_types"] or ()),
    ),
)
def list_all(tenant: Tenant) -> list[dict[str, Any]]:
    """List the endpoints of a business, oldest first."""
    return [fields(found, _SHOWN) for found in tenant.run(list_endpoints, limit=ENDPOINTS_MAX)]


@app.add("disable")
def disable(tenant: Tenant, endpoint: EndpointArgument) -> Sentence:
    """Stop sending to an endpoint; pending deliveries wait."""
    disabled = tenant.run(disable_endpoint, endpoint)
    return Sentence(fields(disabled, _SHOWN), f"{endpoint} is disabled")


@app.add("enable")
def enable(tenant: Tenant, endpoint: EndpointArgument) -> Sentence:
    """Send to an endpoint again, beginning with the deliveries that waited."""
    enabled = tenant.run(enable_endpoint, endpoint)
    return Sentence(fields(enabled, _SHOWN), f"{endpoint} is enabled")


@app.add("delete")
def delete(tenant: Tenant, endpoint: EndpointArgument) -> Sentence:
    """Delete an endpoint and its deliveries; the events stay."""
    tenant.run(delete_endpoint, endpoint)
    return Sentence({"endpoint_id": endpoint}, f"{endpoint} is gone")


@app.add("test")
def send_one(tenant: Tenant, endpoint: EndpointArgument) -> Sentence:
    """Send a webhook.test to an endpoint; `gullak webhook list` shows whether it arrived."""
    event = tenant.run(send_test, endpoint)
    return Sentence({"webhook_event_id": event}, f"{event} is on its way")


@app.add("rotate-secret", field("secret"))
def rotate(
    tenant: Tenant,
    endpoint: EndpointArgument,
    overlap_s: Annotated[
        int, Option(help="For so many seconds the old secret signs too; 0 if it leaked.")
    ] = ROTATION_OVERLAP_S,
) -> dict[str, object]:
    """Sign with a new secret from now on, and print it."""
    secret = tenant.run(rotate_secret, endpoint, overlap_s=overlap_s)
    return {"endpoint_id": endpoint, "secret": secret}
