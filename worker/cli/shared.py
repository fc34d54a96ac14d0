"""Options that commands share: the wrapper in `command.py` adds those that a command can use."""

from pathlib import Path
from typing import Annotated

from typer import Option

from worker.local.files import DEFAULT_DATA_DIR

Business = Annotated[
    str | None,
    Option(
        "--business", "-b", help="Business id; not needed while there is only one.", metavar="ID"
    ),
]
AnyBusiness = Annotated[
    str | None, Option("--business", "-b", help="Only this business.", metavar="ID")
]
AsJson = Annotated[bool, Option("--json", help="Print JSON instead of a table.")]
Wide = Annotated[bool, Option("--wide", "-w", help="Show all columns, not six.")]
DataDir = Annotated[
    Path | None,
    Option(
        "--data-dir",
        help="Data directory of a running `gullak up`. Default: DATABASE_URL and REDIS_URL, "
        f"and where they are not set {DEFAULT_DATA_DIR}.",
        show_default=False,
        file_okay=False,
    ),
]
