"""Options that several commands share."""

from typing import Annotated

import typer

Business = Annotated[
    str | None,
    typer.Option(
        "--business", "-b", help="Business id; not needed while there is only one.", metavar="ID"
    ),
]
Customer = Annotated[str, typer.Option("--customer", "-c", help="Customer id.", metavar="ID")]
CurrencyCode = Annotated[str, typer.Option("--currency", help="ISO 4217 code.", metavar="CODE")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Wide = Annotated[bool, typer.Option("--wide", "-w", help="Show all columns, not six.")]
Limit = Annotated[int, typer.Option("--limit", help="How many at most.", min=1, max=1000)]
Priority = Annotated[
    int | None, typer.Option("--priority", help="0 to 100: the smaller is burned first.")
]
ValidDays = Annotated[
    int | None,
    typer.Option("--valid-days", help="How many days its credit counts. Default: for ever."),
]
