"""One wrapper for all commands: it opens the servers, calls the function, prints the result.

A function states by the types of its parameters what it works on:

    tenant: Tenant                           one business, in a transaction
    conn: Connection                         a transaction over all businesses
    business: BusinessId                     the business of --business, or the only one
    business: BusinessId | None              that of --business, or None for all
    target: Target                           settings, transactions and buffer
    new: Annotated[NewThing, Options(…)]     a pydantic model, made of an option for each field

All other parameters are options and arguments of typer. The wrapper adds `--data-dir`, `--json`,
`--business` where one is wanted, and `--wide` where there is more to show.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce, wraps
from inspect import Parameter, Signature, signature
from operator import or_
from typing import (
    Annotated,
    Any,
    Concatenate,
    Final,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import typer
from sqlalchemy import Connection

from metering.ids import BusinessId
from worker.cli.page import SENTENCE, Page, View
from worker.cli.shared import AnyBusiness, AsJson, Business, DataDir, Wide
from worker.cli.show import print_json
from worker.cli.target import Target, business_of, open_target
from worker.log import log_to_stderr

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Tenant:
    """One business, in a transaction that commits when the command has worked."""

    target: Target
    conn: Connection
    business: BusinessId

    def run(
        self,
        use_case: Callable[Concatenate[Connection, BusinessId, P], R],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> R:
        """Call a use case for this business."""
        return use_case(self.conn, self.business, *arguments, **options)


class Options(dict[str, Any]):
    """The fields of a model: an option each, `name=Annotated[str, typer.Option(…)]`, or a value."""


_ANY: Final = BusinessId | None
_OPENED: Final = (Tenant, Connection, BusinessId, _ANY, Target)


def _success(_result: object) -> int:
    return 0


def command(
    page: Page = SENTENCE, *, exit_code: Callable[[Any], int] = _success
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a function a command whose result `page` prints: by default a `Sentence`.

    With `--json` the result is printed as it is, or as its method `as_json` returns it.
    `exit_code` returns the exit code for a result.
    """

    def wrapped(function: Callable[..., Any]) -> Callable[..., None]:
        wanted = signature(function).parameters
        types = {name: each.annotation for name, each in wanted.items()}
        opened = {name: of for name, of in types.items() if of in _OPENED}
        models = {name: of for name, of in types.items() if _options_of(of) is not None}

        @wraps(function)
        def run(context: typer.Context, **given: Any) -> None:
            if context.invoked_subcommand is not None:
                return
            log_to_stderr()
            as_json, wide = given.pop("as_json", False), given.pop("wide", False)
            data_dir, name = given.pop("data_dir"), given.pop("business_name", None)
            for model, annotation in models.items():
                given[model] = _model(annotation, given)
            with open_target(data_dir) as target, ExitStack() as stack:
                found = _open(stack, target, {*opened.values()}, name)
                result = function(**{each: found[of] for each, of in opened.items()}, **given)
            view = View(target.settings.currencies, wide=wide, limit=given.get("limit", 0))
            if as_json:
                print_json(result.as_json() if hasattr(result, "as_json") else result)
            else:
                page.print(result, view)
            if code := exit_code(result):
                raise typer.Exit(code)

        parameters = [*_parameters(wanted.values(), {*opened.values()}, page)]
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return wrapped


class Group(typer.Typer):
    """A noun and its commands: `gullak NOUN COMMAND`; `runs_alone`: also `gullak NOUN`."""

    def __init__(self, *, runs_alone: bool = False) -> None:
        super().__init__(no_args_is_help=not runs_alone, invoke_without_command=runs_alone)

    def add(
        self, name: str, page: Page = SENTENCE, *, exit_code: Callable[[Any], int] = _success
    ) -> Callable[[Callable[..., Any]], None]:
        """Add a function under this name, as `command` makes it one."""
        register, wrap = self.command(name), command(page, exit_code=exit_code)

        def added(function: Callable[..., Any]) -> None:
            register(wrap(function))

        return added


def _model(annotation: Any, given: dict[str, Any]) -> object:
    """Take the fields of a model out of `given`; a field that is None keeps its default."""
    model, options = get_args(annotation)
    fields = {name: given.pop(name, of) for name, of in options.items()}
    return model.model_validate({name: v for name, v in fields.items() if v is not None})


def _open(
    stack: ExitStack, target: Target, wanted: set[object], name: str | None
) -> dict[object, Any]:
    """Return what a command works on, by type."""
    found: dict[object, Any] = {Target: target, _ANY: None}
    if wanted & {Tenant, Connection}:
        found[Connection] = stack.enter_context(target.transaction())
    if wanted & {Tenant, BusinessId} or name is not None:
        with ExitStack() as short:
            conn = found.get(Connection) or short.enter_context(target.transaction())
            found[BusinessId] = found[_ANY] = business_of(conn, name)
    if Tenant in wanted:
        found[Tenant] = Tenant(target, found[Connection], found[BusinessId])
    return found


def _options_of(annotation: Any) -> Options | None:
    return next((each for each in get_args(annotation) if isinstance(each, Options)), None)


def _parameters(
    wanted: Iterable[Parameter], opened: set[object], page: Page
) -> Iterator[Parameter]:
    """Yield what typer sees: the function's own options, then those that commands share."""
    yield _parameter("context", typer.Context, default=Parameter.empty)
    for each in wanted:
        if (options := _options_of(each.annotation)) is not None:
            for name, of in options.items():
                if get_origin(of) is not Annotated:
                    continue
                is_optional = type(None) in get_args(get_args(of)[0])
                yield _parameter(name, _plain(of), default=None if is_optional else Parameter.empty)
        elif each.annotation not in _OPENED:
            yield _parameter(each.name, _plain(each.annotation), default=each.default)
    if page.has_wide:
        yield _parameter("wide", Wide, default=False)
    if opened & {Tenant, BusinessId, _ANY}:
        yield _parameter("business_name", AnyBusiness if _ANY in opened else Business)
    yield _parameter("as_json", AsJson, default=False)
    yield _parameter("data_dir", DataDir)


def _parameter(name: str, annotation: object, *, default: object = None) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _plain(annotation: Any) -> Any:
    """Return an option with plain types for each NewType, whose name help would show."""
    if get_origin(annotation) is not Annotated:
        return annotation
    of, *about = get_args(annotation)
    parts = get_args(of) if get_origin(of) is Union else (of,)
    return Annotated[reduce(or_, (getattr(each, "__supertype__", each) for each in parts)), *about]
