"""A PgBouncer for one test, in transaction mode: each transaction may get another session."""

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from worker.health import postgres_answers
from worker.local.embedded import SYSTEM_USER
from worker.local.port import HOST, free_port

START_TIMEOUT_S = 20
CONFIG = """
[databases]
* = host={host} port={server_port}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = {sessions}
logfile = {folder}/pgbouncer.log
"""


@contextmanager
def running_pooler(folder: Path, database_url: str, sessions: int = 12) -> Iterator[str]:
    """Start it in front of the server of `database_url`; yield the URL through it.

    It has its default settings: it refuses parameters that it cannot carry.
    """
    program = shutil.which("pgbouncer", path=f"{os.defpath}:/usr/sbin")
    if program is None:
        pytest.skip("PgBouncer is not installed (Debian, Ubuntu: apt install pgbouncer)")
    server, port = urlsplit(database_url), free_port()
    (folder / "users.txt").write_text(f'"{server.username}" "{server.password}"\n')
    config = folder / "pgbouncer.ini"
    values = {"host": HOST, "server_port": server.port, "port": port, "sessions": sessions}
    config.write_text(CONFIG.format(folder=folder, **values))
    process = subprocess.Popen([program, "--quiet", str(config)], user=_user(folder))
    url = server._replace(netloc=f"{server.username}:{server.password}@{HOST}:{port}").geturl()
    try:
        _wait_for(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def _user(folder: Path) -> str | None:
    """PgBouncer refuses to run as root, as Postgres does: it runs as the same user."""
    if os.geteuid() != 0:
        return None
    pwd.getpwnam(SYSTEM_USER)
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, SYSTEM_USER)
    return SYSTEM_USER


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not postgres_answers(url):
        assert process.poll() is None, "PgBouncer did not start"
        assert time.monotonic() < deadline
        time.sleep(0.05)
