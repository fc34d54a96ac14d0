"""`gullak keys`: keys of the HTTP API."""

from typing import Annotated

import typer
from typer import Argument, Option

from metering.access.keys import PERMISSIONS, ApiKey, NewKey, create_key, list_keys, revoke_key
from metering.ids import KeyId
from worker.cli.command import Group, Tenant
from worker.cli.page import Sentence, field, table

app = Group()


@app.add("create", field("key"))
def create(
    tenant: Tenant,
    name: Annotated[str, Option(help="Its purpose.")],
    scopes: Annotated[
        list[str] | None,
        Option("--scope", help="What it may do; may be repeated. Default: everything."),
    ] = None,
) -> NewKey:
    """Make a key and print it, once."""
    made = tenant.run(create_key, name, scopes or PERMISSIONS)
    typer.echo(f"{made.key_id}: keep the key now, it is not shown again", err=True)
    return made


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
) -> Sentence:
    """Refuse a key from now on; to revoke it again changes nothing."""
    tenant.run(revoke_key, key)
    return Sentence({"key_id": key}, f"{key} is revoked")
