"""Every command by its name: where it is, and its line in `gullak --help`.

A command is imported when it is run: `gullak --help` and a misspelt command import none of them.
"""

from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

# Where each command or group is, as `module:attribute` of this package or from the root, and its
# line of help: for a command, its docstring's first sentence.
COMMANDS: Final = {
    "migrate": ("migrate:migrate", "Bring the database of DATABASE_URL to the newest schema."),
    "up": (
        "worker.local.up:up",
        "Run the whole stack until Ctrl-C: stores, workers, beat and API, restarted when they die.",
    ),
    "demo": (
        "worker.demo.command:demo",
        "Show the whole path at work: usage in, debits, alerts out, while processes are killed.",
    ),
    "credit": ("entry:credit", "Credit a wallet by hand."),
    "debit": ("entry:debit", "Debit a wallet by hand; an amount above the balance is refused."),
    "balance": ("customer:balance", "Show the balance of each wallet of a customer."),
    "history": ("entry:history", "Show the entries of a wallet, newest first."),
    "lots": ("lot:lots", "Show the lots of a customer's credit, newest first."),
    "explain": ("explain:explain", "Explain an entry: its reason, its events and its lots."),
    "refund": ("lot:refund", "Give a debit back to the lots that paid for it."),
    "events": ("events:events", "Show events: buffered, posted with cost and entry, or refused."),
    "replay": ("refused:replay", "Send refused events again, after their cause is fixed."),
    "import": (
        "importing.command:import_usage",
        "Send the usage events of a file; after an interruption, run it again to go on.",
    ),
    "env": ("env:env", "Print the variables of a running stack, the API key among them."),
    "status": ("status:status", "Show on one page whether something waits for a person."),
    "business": ("business:app", "The businesses that sell."),
    "keys": ("keys:app", "Keys of the HTTP API."),
    "customer": ("customer:app", "The customers who pay, and their wallets."),
    "meter": ("meter:app", "Which events are measured, and how."),
    "price": ("price:app", "What a unit costs, since when."),
    "wallet": ("customer:wallet", "How far a wallet may be overdrawn."),
    "rule": ("rule:app", "When a webhook reports a low balance."),
    "endpoint": ("endpoint:app", "Where webhooks go."),
    "package": ("package:app", "What is sold, and how much credit it is worth."),
    "purchase": ("purchase:app", "Orders of credit, their payments and refunds."),
    "providers": ("providers:app", "Payment providers and their webhooks."),
    "checkout": ("checkout:app", "A price that credit pays first."),
    "top-up": ("top_up:app", "Wallets that buy credit when they are low."),
    "charge": ("charge:app", "Requests to payment providers for money."),
    "webhook": ("webhook:app", "Deliveries of webhooks."),
    "secrets": ("vault:app", "Keys that seal the secrets in the database."),
    "verify": ("verify:app", "Check every invariant of the ledger."),
    "refused": ("refused:app", "Events that were refused, and wait."),
}


class Deferred(TyperCommand):
    """A command that is not imported yet: its name, its help, and where it is."""

    def __init__(self, name: str, place: str, about: str) -> None:
        super().__init__(name, help=about)
        self._place = place

    @cached_property
    def loaded(self) -> Any:
        """The command itself: typer has no public type for it."""
        module, _, attribute = self._place.partition(":")
        name = module if module.startswith("worker.") else f"worker.cli.{module}"
        found = getattr(import_module(name), attribute)
        if isinstance(found, typer.Typer):
            group = typer.main.get_group(found)
            group.help = group.help or self.help
            return group
        alone = typer.Typer(add_completion=False)
        alone.command(self.name)(found)
        return typer.main.get_command(alone)

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Begin the run of the command itself."""
        return self.loaded.make_context(*arguments, **options)


class Commands(TyperGroup):
    """`gullak`: all commands, and the options that may stand before or after a command."""

    def __init__(self, **options: Any) -> None:
        deferred = {name: Deferred(name, *found) for name, found in COMMANDS.items()}
        super().__init__(**{**options, "commands": deferred})

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Pass the shared options on: `gullak --json balance X` is `gullak balance --json X`."""
        name, command, rest = super().resolve_command(ctx, args)
        shared = [word for option in self.params for word in _shared(option, ctx)]
        if shared and command is not None:
            is_group = hasattr(getattr(command, "loaded", command), "commands")
            position = 1 if is_group and rest and not rest[0].startswith("-") else 0
            # Before the command's own options: the last of two equal options wins.
            rest[position:position] = shared
        return name, command, rest


def _shared(option: Any, ctx: Any) -> Sequence[str]:
    """Return a shared option as it was given; nothing if it was not."""
    value = ctx.params.get(option.name)
    if not value or option.name == "_version":
        return ()
    return (option.opts[0],) if value is True else (option.opts[0], str(value))
