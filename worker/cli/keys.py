"""`gullak keys`: keys of the HTTP API."""

from typing import Annotated

import typer
from typer import Argument, Option

from metering.access.keys import PERMISSIONS, ApiKey, create_key, list_keys, revoke_key
from metering.ids import KeyId
from worker.cli.command import Group, Tenant
from worker.cli.page import table

app = Group()


@app.add("create")
def create(
    tenant: Tenant,
    name: Annotated[str, Option(help="Its purpose.")],
    scopes: Annotated[
        list[str] | None,
        Option("--scope", help="What it may do; may be repeated. Default: everything."),
    ] = None,
) -> str:
    """Make a key and print it, once."""
    made = tenant.run(create_key, name, scopes or PERMISSIONS)
    typer.echo(f"{made.key_id}: keep the key now, it is not shown again", err=True)
    return made.key


@app.add(
    "list",
    table(
        "key_id, name~, prefix, scopes~, last_used_at, revoked_at, created_at",
        scopes=lambda key: ", ".join(key.scopes),
    ),
)
def list_all(tenant: Tenant) -> list[ApiKey]:
    """List the keys of a business, newest first; never their secrets."""
    return tenant.run(list_keys)


@app.add("revoke")
def revoke(
    tenant: Tenant, key: Annotated[KeyId, Argument(help="Key id.", metavar="KEY_ID")]
) -> str:
    """Refuse a key from now on; to revoke it again changes nothing."""
    tenant.run(revoke_key, key)
    return f"{key} is revoked"
