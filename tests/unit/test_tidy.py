"""House rules that a machine can check. Each message says what to write instead, and why."""

import ast
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from metering import errors
from worker.app import app

ROOT = Path(__file__).parents[2]
PACKAGES = ("metering", "tasks", "worker", "api")
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400
TASK_BODY_LINES_MAX = 15
BANNED_FILES = {"utils.py", "helpers.py", "common.py", "misc.py", "manager.py"}

Rule = Callable[[ast.AST], bool]


@cache
def sources() -> Mapping[str, ast.Module]:
    """Every module of the product, by its path from the root."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    paths.append(ROOT / "celeryconfig.py")
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted(paths)}


@cache
def nodes() -> Mapping[str, list[ast.AST]]:
    """Every node of every module, walked once for all rules."""
    return {path: list(ast.walk(module)) for path, module in sources().items()}


def functions_of(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def calls(*names: str) -> Rule:
    """Match a call of a function or method of one of these names."""

    def matches(node: ast.AST) -> bool:
        if not isinstance(node, ast.Call):
            return False
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        return name in names

    return matches


def calls_plainly(*names: str) -> Rule:
    """Match a call of a function of one of these names, but not of a method."""
    matches = calls(*names)
    return lambda node: matches(node) and isinstance(getattr(node, "func", None), ast.Name)


def names(*wanted: str) -> Rule:
    return lambda node: (
        (isinstance(node, ast.Name) and node.id in wanted)
        or (isinstance(node, ast.Attribute) and node.attr in wanted)
        or (isinstance(node, ast.alias) and node.name in wanted)
    )


def is_float(node: ast.AST) -> bool:
    literal = isinstance(node, ast.Constant) and type(node.value) is float
    return literal or (isinstance(node, ast.Name) and node.id == "float")


def is_redis_key(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.match(r"gullak:\S", node.value) is not None
    )


def found(rule: Rule, *, inside: tuple[str, ...] = PACKAGES) -> list[str]:
    """Where a rule matches, as `path:line`."""
    return [
        f"{path}:{getattr(node, 'lineno', 0)}"
        for path, found_nodes in nodes().items()
        if path.startswith(inside)
        for node in found_nodes
        if rule(node)
    ]


def outside(places: list[str], *allowed: str) -> list[str]:
    return [place for place in places if not re.match("|".join(allowed), place)]


def definition(path: str, name: str) -> str:
    """A pattern for the lines that define a function or constant of a module."""
    for node in sources()[path].body:
        target = getattr(node, "targets", [None])[0]
        if name in (getattr(node, "name", None), getattr(target, "id", None)):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            return rf"{re.escape(path)}:({'|'.join(map(str, lines))})$"
    pytest.fail(f"{path} has no {name} any more: take the allowance away")


# --- size and names -------------------------------------------------------------------------------


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{path}:{node.lineno} {node.name} has {lines_of(node)} lines"
        for path, module in sources().items()
        for node in functions_of(module)
        if lines_of(node) > FUNCTION_LINES_MAX
    ]

    assert not long, f"name its steps as functions of their own ({FUNCTION_LINES_MAX} lines)"


def test_files_stay_readable_in_one_sitting() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in sources()}

    long = {path: lines for path, lines in lengths.items() if lines > FILE_LINES_MAX}

    assert not long, f"split it by its nouns ({FILE_LINES_MAX} lines)"


def test_files_are_named_for_what_they_hold() -> None:
    vague = [path for path in sources() if Path(path).name in BANNED_FILES]

    assert not vague, "name it for its contents: a drawer for everything is never tidied"


def test_the_code_has_no_todo_marks() -> None:
    mark = re.compile(r"\b(FIXME|TODO|XXX)\b")

    left = [path for path in sources() if mark.search((ROOT / path).read_text())]

    assert not left, "do it, or open an issue: a note in the code is found by nobody"


def test_every_name_is_used() -> None:
    words = re.compile(r"\w+")
    counts = Counter(
        word for path in sources() for word in words.findall((ROOT / path).read_text())
    )

    unused = {
        f"{path} {name}"
        for path, module in sources().items()
        if not path.startswith(("metering/migrations/", "celeryconfig"))
        for name in _made_by(module)
        if counts[name] == 1 and name != "__all__"
    }

    assert not unused, "delete it, or finish it: the next reader takes it for used"


def _made_by(module: ast.Module) -> Iterator[str]:
    """The functions, classes and constants of a module, except those that a decorator registers."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from () if node.decorator_list else (node.name,)
        elif isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


# --- transactions and tasks -----------------------------------------------------------------------


def test_only_the_sessions_commit() -> None:
    places = outside(found(calls("commit")), r"worker/session\.py")

    assert not places, "open `scope().transaction()`: a run is one transaction, or half of it stays"


def test_messages_are_sent_by_wake_only() -> None:
    places = outside(
        found(calls("delay", "apply_async", "send_task")),
        r"worker/(broker|schedule)\.py",
    )

    assert not places, "use `worker.task.wake`: a publish inside a transaction can hang, or lie"


def test_a_task_body_opens_a_scope_calls_one_use_case_and_returns_counts() -> None:
    long = [
        f"{path}:{node.lineno} {node.name}"
        for path, module in sources().items()
        if path.startswith("tasks/")
        for node in functions_of(module)
        if any(calls("task")(decorator) for decorator in node.decorator_list)
        and lines_of(node) > TASK_BODY_LINES_MAX
    ]

    assert not long, f"move the work into a use case below metering/ ({TASK_BODY_LINES_MAX} lines)"


# A task's name and arguments are a wire format: messages of the old release meet the new code.
# Never rename in one step; a new argument has a default. Only ids and numbers travel.
TASKS = {
    "debit.drain": "(shard: int)",
    "debit.partition": "()",
    "debit.publish_quantities": "()",
    "debit.mark_mended": "()",
    "debit.summarize": "()",
    "debit.sweep": "()",
    "ledger.measure": "()",
    "ledger.prune": "()",
    "ledger.verify": "(since: int=0)",
    "low_credit.check": "()",
    "purchase.charge": "(charge_id: str)",
    "purchase.credit": "(purchase_id: str)",
    "purchase.expire": "()",
    "purchase.inbox": "(event_number: int)",
    "purchase.sweep": "()",
    "purchase.tell_expiring": "()",
    "purchase.top_up": "()",
    "webhook.deliver": "()",
    "webhook.sweep": "()",
}


def test_the_names_and_arguments_of_tasks_are_those_that_messages_carry() -> None:
    bodies = {
        decorator.args[0].value: f"({ast.unparse(node.args)})"
        for path, module in sources().items()
        if path.startswith("tasks/")
        for node in functions_of(module)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and isinstance(decorator.args[0], ast.Constant)
    }

    assert bodies == TASKS, "messages under way carry the old names and arguments"


def test_a_task_is_registered_under_its_name_and_no_other_exists() -> None:
    app.loader.import_default_modules()

    assert {name for name in app.tasks if not name.startswith("celery.")} == set(TASKS)


# --- one place each -------------------------------------------------------------------------------


def test_only_the_settings_read_the_environment() -> None:
    places = outside(found(names("environ", "getenv", "environb")), r"worker/settings\.py")
    # The word is also WSGI's name for a request, given as an argument.
    places = outside(places, r"metering/accept/client/wsgi\.py")

    assert not places, "add a setting: what is read in one place can be listed, checked and tested"


def test_all_sql_of_a_store_is_in_its_statements() -> None:
    places = outside(
        found(calls_plainly("text", "select", "insert", "update", "delete")),
        # An invariant is a query with a name.
        r".*/(statements|invariants)\.py",
        r"metering/migrations/",
        # The session settings and the lock of the migrations belong to no store.
        r"worker/migrate\.py",
    )

    assert not places, "name it in the stage's statements.py: all queries of a table side by side"


def test_keys_of_redis_are_named_in_keys_only() -> None:
    places = outside(found(is_redis_key), r"metering/buffer/keys\.py")

    assert not places, "add it to metering/buffer/keys.py, whose glossary is the schema of Redis"


def test_metrics_are_defined_where_their_table_is_generated() -> None:
    makers = {"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum"}
    imports = lambda node: (  # noqa: E731
        isinstance(node, ast.ImportFrom)
        and node.module == "prometheus_client"
        and any(alias.name in makers for alias in node.names)
    )
    places = outside(
        found(imports),
        r"worker/metrics\.py",
        # A producer has metrics of its own, because it imports only `metering`.
        r"metering/accept/client/(pending|exchange)\.py",
    )

    assert not places, "add it to worker/metrics.py, then run `make docs`"


def test_code_for_money_uses_no_float() -> None:
    places = outside(
        found(
            is_float,
            inside=(
                "metering/ledger",
                "metering/payment",
                "metering/purchase",
                "metering/money.py",
            ),
        ),
        # A caller's JSON may hold a double; it is taken in its shortest decimal form.
        definition("metering/money.py", "_number_of"),
    )

    assert not places, "use an integer of minor units, or Decimal in `money.EXACT`: floats round"


# --- settings and errors --------------------------------------------------------------------------


def test_every_setting_is_preceded_by_its_reason() -> None:
    path = ROOT / "worker" / "settings.py"
    lines = path.read_text().splitlines()
    (body,) = [
        node.body
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
    ]
    fields = [node for node in body if isinstance(node, ast.AnnAssign)]

    starts = {field.lineno for field in fields}
    bare = [
        ast.unparse(field.target)
        for field in fields
        if not _is_explained(lines, starts, field.lineno)
    ]

    assert fields
    assert not bare, "say unit, effect and reason of the default in a comment above"


def _is_explained(lines: list[str], starts: set[int], lineno: int) -> bool:
    """A comment stands above it, or above the group of settings that it belongs to."""
    while lineno - 1 in starts:
        lineno -= 1
    above = lines[lineno - 2].strip()
    return above.startswith("#") and not above.startswith("# ---")


def error_classes() -> list[str]:
    return [
        name
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.GullakError) and value.__module__ == errors.__name__
    ]


@pytest.mark.parametrize("name", error_classes())
def test_every_error_is_raised_somewhere(name: str) -> None:
    has_subclasses = bool(getattr(errors, name).__subclasses__())

    assert has_subclasses or name in raised_names(), "delete it: nothing raises it"


@cache
def raised_names() -> set[str]:
    """The names that are called or raised somewhere; a dead letter's reason is made by a call."""
    outside_errors = (
        node
        for path, path_nodes in nodes().items()
        if path != "metering/errors.py"
        for node in path_nodes
    )
    return {name for node in outside_errors if (name := _made_name(node)) is not None}


def _made_name(node: ast.AST) -> str | None:
    if isinstance(node, ast.Call):
        return node.func.attr if isinstance(node.func, ast.Attribute) else _id_of(node.func)
    return _id_of(node.exc) if isinstance(node, ast.Raise) else None


def _id_of(node: ast.AST | None) -> str | None:
    return node.id if isinstance(node, ast.Name) else None
