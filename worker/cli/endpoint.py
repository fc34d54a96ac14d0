"""`gullak endpoint`: where webhooks go."""

from typing import Annotated, Final

import typer

from metering.ids import EndpointId
from metering.webhook.deliveries import send_test
from metering.webhook.endpoints import (
    ENDPOINTS_MAX,
    ROTATION_OVERLAP_S,
    Endpoint,
    create_endpoint,
    delete_endpoint,
    disable_endpoint,
    enable_endpoint,
    endpoint_secret,
    list_endpoints,
    rotate_secret,
)
from worker.cli.options import AsJson, Business, Wide
from worker.cli.show import print_json, print_table
from worker.cli.target import DataDir, business_of, open_target
from worker.local.receivers import reach_of

app = typer.Typer(help="Where webhooks go.", no_args_is_help=True)

EndpointArgument = Annotated[str, typer.Argument(help="Endpoint id.", metavar="ENDPOINT")]

# Values of headers can be credentials of the receiver: they are not printed.
_SHOWN: Final = (
    "endpoint_id",
    "url",
    "filter_types",
    "disabled_at",
    "disabled_reason",
    "failures_in_row",
    "description",
    "created_at",
)
_COLUMNS: Final = (
    *("endpoint_id", "url", "filter_types~", "disabled_at", "disabled_reason~"),
    *("failures_in_row#", "description~", "created_at"),
)


@app.command("create")
def create(
    *,
    url: Annotated[str, typer.Argument(help="Receives the webhooks.")],
    types: Annotated[
        list[str] | None,
        typer.Option("--type", help="Only this type of event; may be repeated. Default: all."),
    ] = None,
    description: Annotated[str | None, typer.Option()] = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Make an endpoint; print its id and the secret that signs."""
    with open_target(data_dir) as target:
        # Before the transaction: it may ask a name server.
        refusal = reach_of(target.settings).refusal_now(url)
        with target.transaction() as conn:
            business_id = business_of(conn, business)
            made = create_endpoint(
                conn, business_id, url, description=description, filter_types=types or None
            )
            secret = endpoint_secret(conn, business_id, made.endpoint_id)
    if refusal:
        # No error: the workers' environment may allow what this one's does not.
        typer.echo(f"gullak: warning: {url} {refusal}", err=True)
    if as_json:
        print_json({**_record(made), "secret": secret})
    else:
        typer.echo(f"{made.endpoint_id}\n{secret}")


@app.command("list")
def list_all(
    *,
    wide: Wide = False,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List the endpoints of a business, oldest first."""
    with open_target(data_dir) as target, target.transaction() as conn:
        found = list_endpoints(conn, business_of(conn, business), limit=ENDPOINTS_MAX)
    records = [_record(endpoint) for endpoint in found]
    if as_json:
        print_json(records)
        return
    rows = [
        [", ".join(value) if isinstance(value, tuple) else value for value in record.values()]
        for record in records
    ]
    print_table(_COLUMNS, rows, wide=wide)


def _record(endpoint: Endpoint) -> dict[str, object]:
    return {name: getattr(endpoint, name) for name in _SHOWN}


@app.command("disable")
def disable(
    *, endpoint: EndpointArgument, business: Business = None, data_dir: DataDir = None
) -> None:
    """Stop sending to an endpoint; what is pending waits."""
    with open_target(data_dir) as target, target.transaction() as conn:
        disable_endpoint(conn, business_of(conn, business), EndpointId(endpoint))
    typer.echo(f"{endpoint} is disabled")


@app.command("enable")
def enable(
    *, endpoint: EndpointArgument, business: Business = None, data_dir: DataDir = None
) -> None:
    """Send to an endpoint again, beginning with what waited."""
    with open_target(data_dir) as target, target.transaction() as conn:
        enable_endpoint(conn, business_of(conn, business), EndpointId(endpoint))
    typer.echo(f"{endpoint} is enabled")


@app.command("delete")
def delete(
    *, endpoint: EndpointArgument, business: Business = None, data_dir: DataDir = None
) -> None:
    """Forget an endpoint with its deliveries; the events stay."""
    with open_target(data_dir) as target, target.transaction() as conn:
        delete_endpoint(conn, business_of(conn, business), EndpointId(endpoint))
    typer.echo(f"{endpoint} is gone")


@app.command("test")
def try_out(
    *, endpoint: EndpointArgument, business: Business = None, data_dir: DataDir = None
) -> None:
    """Send a webhook.test to an endpoint; `gullak webhook list` tells whether it arrived."""
    with open_target(data_dir) as target, target.transaction() as conn:
        event_id = send_test(conn, business_of(conn, business), EndpointId(endpoint))
    typer.echo(f"{event_id} is on its way")


@app.command("rotate-secret")
def rotate(
    *,
    endpoint: EndpointArgument,
    overlap_s: Annotated[
        int, typer.Option(help="Seconds that the old secret signs too; 0: it leaked.")
    ] = ROTATION_OVERLAP_S,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Sign with a new secret from now on, and print it."""
    with open_target(data_dir) as target, target.transaction() as conn:
        business_id = business_of(conn, business)
        secret = rotate_secret(conn, business_id, EndpointId(endpoint), overlap_s=overlap_s)
    if as_json:
        print_json({"endpoint_id": endpoint, "secret": secret})
    else:
        typer.echo(secret)
