"""All SQL over the columns that hold secrets, a sentence each."""

from typing import Final, NamedTuple

from sqlalchemy import TextClause, text


class Holder(NamedTuple):
    """A table that holds secrets: the columns, and those of them that are JSON; a page; a write."""

    columns: tuple[str, ...]
    json_columns: tuple[str, ...]
    page: TextClause
    write: TextClause


def _holder(table: str, key: str, plain: tuple[str, ...], json: tuple[str, ...] = ()) -> Holder:
    columns = (*plain, *json)
    sets = [f"{column} = :{column}" for column in plain]
    sets += [f"{column} = CAST(:{column} AS json)" for column in json]
    return Holder(
        columns,
        json,
        # The next rows after a key, locked until they are written.
        text(
            f"SELECT {key} AS key, {', '.join(columns)} FROM {table} WHERE {key} > :after"
            f" ORDER BY {key} LIMIT :page FOR NO KEY UPDATE"
        ),
        # Write the secrets of a row.
        text(f"UPDATE {table} SET {', '.join(sets)} WHERE {key} = :key"),
    )


# Every column that holds a secret. Headers of a webhook can carry credentials of its receiver.
HOLDERS: Final = (
    _holder("provider_accounts", "account_id", ("api_key", "webhook_secret")),
    _holder("webhook_endpoints", "endpoint_id", ("secret", "previous_secret"), ("headers",)),
)
