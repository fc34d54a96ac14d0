"""`gullak keys`: who may call the HTTP API."""

from typing import Annotated

import typer

from metering.access.keys import SCOPES, create_key, list_keys, revoke_key
from metering.ids import KeyId
from worker.cli.options import AsJson, Business, Wide
from worker.cli.show import print_json, print_table
from worker.cli.target import DataDir, business_of, open_target

app = typer.Typer(help="Who may call the HTTP API.", no_args_is_help=True)


@app.command("create")
def create(
    *,
    name: Annotated[str, typer.Option(help="What the key is for.")],
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scope", help="What it may do; may be repeated. Default: everything."),
    ] = None,
    business: Business = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, once."""
    with open_target(data_dir) as target, target.transaction() as conn:
        made = create_key(conn, business_of(conn, business), name, scopes or SCOPES)
    typer.echo(made.key)
    typer.echo(f"{made.key_id}: keep the key now, it is not shown again", err=True)


@app.command("list")
def list_all(
    *,
    wide: Wide = False,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List the keys of a business, newest first; never their secrets."""
    with open_target(data_dir) as target, target.transaction() as conn:
        keys = list_keys(conn, business_of(conn, business))
    if as_json:
        print_json(keys)
        return
    rows = [
        (
            key.key_id,
            key.name,
            key.prefix,
            ", ".join(key.scopes),
            key.last_used_at,
            key.revoked_at,
            key.created_at,
        )
        for key in keys
    ]
    columns = ("key_id", "name~", "prefix", "scopes~", "last_used_at", "revoked_at", "created_at")
    print_table(columns, rows, wide=wide)


@app.command("revoke")
def revoke(
    *,
    key: Annotated[str, typer.Argument(help="Key id.", metavar="KEY_ID")],
    business: Business = None,
    data_dir: DataDir = None,
) -> None:
    """Refuse a key from now on; once more changes nothing."""
    with open_target(data_dir) as target, target.transaction() as conn:
        revoke_key(conn, business_of(conn, business), KeyId(key))
    typer.echo(f"{key} is revoked")
