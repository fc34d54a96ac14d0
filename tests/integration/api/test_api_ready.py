"""`/readyz` of the API names what is missing, so that a balancer sends nobody there."""

import httpx
import pytest

from support.edge import Api
from support.tenant import Shop


def ready(api: Api) -> httpx.Response:
    return httpx.get(f"{api.url}/readyz")


def test_with_everything_there_it_is_ready(api: Api) -> None:
    answer = ready(api)

    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "ok", "missing": [], "causes": {}},
    )


LACKS = {
    "schema": "UPDATE alembic_version SET version_num = '0001'",
    "wall": "ALTER TABLE customers DISABLE ROW LEVEL SECURITY",
}


@pytest.mark.parametrize("name", LACKS)
def test_it_names_what_the_database_lacks(api: Api, shop: Shop, name: str) -> None:
    with shop.sessions.transaction() as conn:
        conn.exec_driver_sql(LACKS[name])

    answer = ready(api)

    assert (answer.status_code, answer.json()["missing"]) == (503, [name])


def test_a_database_without_tables_is_not_ready(api: Api, shop: Shop) -> None:
    with shop.sessions.transaction() as conn:
        conn.exec_driver_sql("DROP TABLE alembic_version")

    assert ready(api).json()["missing"] == ["schema"]
