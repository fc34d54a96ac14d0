from threading import Barrier, Thread

import psycopg
import pytest
from sqlalchemy import text

from metering.errors import ConfigurationError
from worker.migrate import MIGRATION_LOCK, migrate, migrate_database
from worker.session import make_engine
from worker.settings import settings_from


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as conn:
        rows = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {name for (name,) in rows}


def test_an_empty_database_gets_all_tables(empty_database_url: str) -> None:
    migrate_database(settings_from({"DATABASE_URL": empty_database_url}))

    assert {"wallets", "ledger_entries", "alembic_version"} <= tables(empty_database_url)


def test_a_second_run_changes_nothing(database_url: str) -> None:
    before = tables(database_url)

    migrate_database(settings_from({"DATABASE_URL": database_url}))

    assert tables(database_url) == before


def test_runs_at_once_do_not_disturb_each_other(empty_database_url: str) -> None:
    config = settings_from({"DATABASE_URL": empty_database_url})
    together = Barrier(4)
    failures: list[Exception] = []

    def run() -> None:
        together.wait()
        try:
            migrate_database(config)
        except Exception as error:  # noqa: BLE001  # shown by the assertion
            failures.append(error)

    runners = [Thread(target=run) for _ in range(4)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()

    assert failures == []
    assert "wallets" in tables(empty_database_url)


def test_a_failure_leaves_the_database_as_it_was(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url) as conn:
        conn.execute("CREATE TABLE purchases (id text)")

    with pytest.raises(ConfigurationError, match="purchases"):
        migrate_database(settings_from({"DATABASE_URL": empty_database_url}))

    assert tables(empty_database_url) == {"purchases"}


def test_a_run_joins_an_open_transaction_and_does_not_commit_it(empty_database_url: str) -> None:
    engine = make_engine(settings_from({"DATABASE_URL": empty_database_url}))
    with engine.connect() as conn:
        migrate(conn)
        seen_inside = conn.execute(text("SELECT count(*) FROM wallets")).scalar_one()
        conn.rollback()
    engine.dispose()

    assert seen_inside == 0
    assert tables(empty_database_url) == set()


def test_the_lock_is_free_after_a_run(database_url: str) -> None:
    migrate_database(settings_from({"DATABASE_URL": database_url}))

    with psycopg.connect(database_url) as conn:
        taken = conn.execute("SELECT pg_try_advisory_lock(%s)", [MIGRATION_LOCK]).fetchone()
    assert taken == (True,)


def test_a_missing_database_is_reported_in_one_line() -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL is not set"):
        migrate_database(settings_from({}))


def test_a_missing_server_is_reported_without_the_password() -> None:
    url = "postgresql://gullak:hidden@127.0.0.1:1/gullak"

    with pytest.raises(ConfigurationError) as refused:
        migrate_database(settings_from({"DATABASE_URL": url}))

    assert "hidden" not in refused.value.message
