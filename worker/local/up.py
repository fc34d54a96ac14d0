"""The whole stack under one supervisor: Postgres, Valkey, workers, beat, API.

`gullak up` runs it in the foreground; `Stack` runs it beside other code, for a demo or a test.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Final, Literal, Self

import structlog
import typer

from metering.errors import ConfigurationError
from worker.alive import is_alive
from worker.context import check_buffer
from worker.health import answers_ready, postgres_answers, redis_answers
from worker.local.files import (
    API_URL_FILE,
    DEFAULT_DATA_DIR,
    STACK_DEFAULTS,
    lock_data_dir,
    write_in_use,
    write_private,
)
from worker.local.first import first_key
from worker.local.port import HOST, free_port
from worker.local.supervisor import Role, StopRequestedError, Supervisor
from worker.log import setup_logging
from worker.migrate import migrate_database
from worker.settings import Settings, environment, settings_from

DEFAULT_PORT: Final = 8080
CONCURRENCY: Final = 2
WORKERS_MAX: Final = 16
# Webhooks have a worker of their own: a slow receiver must not delay debits.
WORKER_QUEUES: Final = "sweep,debit,low_credit,purchase,ledger"
# One worker waits for receivers and providers. docker-compose.yml has one worker for each.
WEBHOOK_QUEUES: Final = "webhook,charge"
# At each start as root Celery prints a warning of eight lines.
_QUIET_AS_ROOT: Final = {"PYTHONWARNINGS": "ignore:You're running the worker with superuser"}

log = structlog.get_logger("gullak.up")


class Stack:
    """A running stack: enter it, use `database_url`, `redis_url`, `pids`, leave it.

    `variables` is the environment of the processes (default: that of this process), with
    `overrides` on top. A server whose URL is in it is not started here. `log_files` sends the
    output of each process to D/log. `on_ready` gets the content of the ready file at each change.
    """

    def __init__(
        self,
        data_dir: Path = DEFAULT_DATA_DIR,
        *,
        port: int = 0,
        ready_file: Path | None = None,
        variables: Mapping[str, str] | None = None,
        overrides: Mapping[str, str] | None = None,
        on_ready: Callable[[Mapping[str, object]], None] = lambda _state: None,
        log_files: bool = True,
        workers: int = 1,
    ) -> None:
        self.data_dir = data_dir.resolve()
        self.database_url = ""
        self.redis_url = ""
        self.api_url = ""
        self.api_key = ""
        self._port = port
        self._ready_file = ready_file
        given = environment() if variables is None else variables
        self._variables = {**STACK_DEFAULTS, **given, **(overrides or {})}
        self._on_ready = on_ready
        self._log_files = log_files
        self._workers = workers
        self._supervisor = Supervisor(self._announce)
        self._ready = False
        self._settled = Event()
        self._failure: BaseException | None = None
        self._remember: Callable[[Iterable[int]], None] = lambda _pids: None
        self._thread = Thread(target=self._run_in_thread, name="stack", daemon=True)

    # --- in the foreground ------------------------------------------------------------------

    def run(self) -> None:
        """Start everything, keep it running until `stop`, then stop everything.

        Raises: DataDirInUseError if another stack runs on this data directory, ConfigurationError
        if something could not be started; nothing is left running then.
        """
        with ExitStack() as cleanup:
            try:
                self._start(cleanup)
                self._supervisor.watch()
            except StopRequestedError:
                log.info("stopped before it was ready")

    def stop(self) -> None:
        """Ask the stack to stop; the second call kills. Safe in a signal handler."""
        self._supervisor.stop()

    # --- beside other code ------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        self._settled.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()
        self._thread.join()

    def _run_in_thread(self) -> None:
        try:
            self.run()
        except BaseException as failure:  # noqa: BLE001  # raised again where the stack is entered
            self._failure = failure
        finally:
            self._settled.set()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by role, now; `supervisor` is this process."""
        return {"supervisor": os.getpid(), **self._supervisor.pids}

    def missing(self) -> list[str]:
        """Return the roles that are not ready now, and the servers elsewhere that do not answer."""
        missing = self._supervisor.missing()
        known = self._supervisor.pids
        if not known.get("postgres") and not postgres_answers(self.database_url):
            missing.append("postgres")
        if not known.get("redis") and not redis_answers(self.redis_url):
            missing.append("redis")
        return sorted({*missing, *([] if self._ready else ["start"])})

    # --- the start, in order ----------------------------------------------------------------

    def _start(self, cleanup: ExitStack) -> None:
        cleanup.enter_context(lock_data_dir(self.data_dir))
        if self._ready_file:
            self._ready_file.unlink(missing_ok=True)
            cleanup.callback(self._ready_file.unlink, missing_ok=True)
        self.api_url = f"http://{HOST}:{self._port_taken()}"
        self._prepare_metrics()
        cleanup.callback(self._supervisor.close)
        self._start_servers()
        config = settings_from(self._variables)
        migrate_database(config)
        self.api_key = first_key(self.data_dir, config)
        check_buffer(config)
        write_private(self.data_dir / API_URL_FILE, self.api_url)
        self._supervisor.start(self._process_roles())
        self._ready = True
        self._announce()
        self._settled.set()

    def _port_taken(self) -> int:
        """Return the port of the API: the given one, or a free one.

        Raises: ConfigurationError if another process listens on the given one.
        """
        port = free_port(self._port)
        if self._port not in (0, port):
            raise ConfigurationError(f"cannot listen on {HOST}:{self._port}: it is in use")
        return port

    def _prepare_metrics(self) -> None:
        """Empty the folder of counters, which belong to the processes of one run."""
        folder = settings_from(self._variables).metrics_dir or self.data_dir / "metrics"
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.db"):
            path.unlink()
        # No port for metrics: all workers here would want the same one. The API serves them.
        self._variables |= {"PROMETHEUS_MULTIPROC_DIR": str(folder), "GULLAK_METRICS_PORT": "0"}

    def _start_servers(self) -> None:
        """Start Postgres and Redis, each unless its URL points elsewhere."""
        config = settings_from(self._variables)
        self.database_url = config.database_url.get_secret_value()
        self.redis_url = config.redis_url.get_secret_value()
        if not (self.database_url and self.redis_url):
            self._start_embedded(config)
        self._variables |= {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}
        write_in_use(self.data_dir, self._variables)

    def _start_embedded(self, config: Settings) -> None:
        # Imported late: if both URLs are given, the wheels need not be installed.
        from worker.local import embedded, leftovers  # noqa: PLC0415

        record = self.data_dir / "pids.json"
        leftovers.stop_remembered(record)
        self._remember = lambda pids: leftovers.remember(record, pids)
        credentials = embedded.open_credentials(self.data_dir)
        roles = []
        if not self.database_url:
            self.database_url = credentials.database_url
            # The key lies beside its database, and in none of its dumps.
            if not config.secret_key_list():
                self._variables["GULLAK_SECRET_KEYS"] = embedded.kept_key(self.data_dir)
            roles.append(embedded.postgres_role(self.data_dir, credentials))
        if not self.redis_url:
            self.redis_url = credentials.redis_url
            fsync: Literal["always", "everysec"] = (
                "everysec" if config.durability == "everysec" else "always"
            )
            roles.append(embedded.redis_role(self.data_dir, credentials, fsync))
        self._supervisor.start(roles)

    def _process_roles(self) -> list[Role]:
        """Return the processes beside the servers."""
        return [
            *self._worker_roles(),
            self._role("worker_webhook", *_worker("webhook", WEBHOOK_QUEUES)),
            self._role("beat", *_celery("beat")),
            self._api_role(),
        ]

    def _worker_roles(self) -> list[Role]:
        """Return the workers that debit: `worker`, `worker_2` and so on."""
        ends = ("", *(f"_{number}" for number in range(2, self._workers + 1)))
        return [self._role(f"worker{end}", *_worker(f"main{end}", WORKER_QUEUES)) for end in ends]

    def _api_role(self) -> Role:
        port = self.api_url.rpartition(":")[2]
        argv = (sys.executable, "-m", "api.server", "--host", HOST, "--port", port)
        return replace(self._role("api", *argv), is_ready=lambda _pid: answers_ready(self.api_url))

    def _role(self, name: str, *argv: str) -> Role:
        alive = self.data_dir / "run" / f"{name}.alive"
        # A process that is killed leaves its temporary files in the data directory.
        scratch = self.data_dir / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        own = {"GULLAK_ALIVE_FILE": str(alive), "TMPDIR": str(scratch)}
        return Role(
            name=name,
            argv=argv,
            env=self._variables | _QUIET_AS_ROOT | own,
            tier=1,
            is_ready=lambda pid: is_alive(alive, pid),
            log_file=self.data_dir / "log" / f"{name}.log" if self._log_files else None,
        )

    def _announce(self) -> None:
        """Publish the process ids: at the start, and whenever a process is replaced."""
        pids = self.pids
        self._remember(pid for pid in pids.values() if pid != os.getpid())
        if not self._ready:
            return
        state = {
            "database_url": self.database_url,
            "redis_url": self.redis_url,
            "pids": pids,
            "metrics_url": f"{self.api_url}/metrics",
            "api_url": self.api_url,
            "api_key": self.api_key,
        }
        if self._ready_file:
            write_private(self._ready_file, json.dumps(state))
        self._on_ready(state)


def _celery(*argv: str) -> Sequence[str]:
    return (sys.executable, "-m", "celery", "-A", "worker.app", "--quiet", *argv)


def _worker(name: str, queues: str) -> Sequence[str]:
    return _celery(
        *("worker", "-n", f"{name}@%h", "-Q", queues, "--concurrency", str(CONCURRENCY)),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    )


def _say_ready(state: Mapping[str, object]) -> None:
    loopback = settings_from({**STACK_DEFAULTS, **environment()}).webhook_allow_loopback
    may_go = "public addresses and to this machine" if loopback else "public addresses only"
    log.info("ready", pids=state["pids"], url=state["api_url"], webhooks=f"may go to {may_go}")


def up(
    data_dir: Annotated[
        Path, typer.Option(help="Where Postgres and Redis keep their data.", file_okay=False)
    ] = DEFAULT_DATA_DIR,
    port: Annotated[
        int,
        typer.Option(help="Port of the API; 0 takes a free one.", max=65535),
    ] = DEFAULT_PORT,
    workers: Annotated[
        int,
        typer.Option(
            help=f"Processes that debit, each with {CONCURRENCY} children.", min=1, max=WORKERS_MAX
        ),
    ] = 1,
    ready_file: Annotated[
        Path | None,
        typer.Option(help="Written when all is ready: URLs, an API key, process ids; JSON."),
    ] = None,
) -> None:
    """Run the whole stack until Ctrl-C: stores, workers, beat and API, restarted when they die.

    DATABASE_URL or REDIS_URL in the environment point it at servers of your own.
    """
    setup_logging(settings_from(environment()))
    stack = Stack(
        data_dir,
        port=port,
        ready_file=ready_file.resolve() if ready_file else None,
        on_ready=_say_ready,
        log_files=False,
        workers=workers,
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stack.stop())
    stack.run()
    log.info("stopped")
