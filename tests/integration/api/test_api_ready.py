"""`/readyz` of the API names what is missing, so that a load balancer stops sending requests."""

import httpx
import pytest

from support.edge import Api
from support.tenant import Shop


def ready(api: Api) -> httpx.Response:
    return httpx.get(f"{api.url}/readyz")


def test_the_api_is_ready_if_nothing_is_missing(api: Api) -> None:
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
def test_readiness_names_the_missing_part_of_the_database(api: Api, shop: Shop, name: str) -> None:
    with shop.sessions.transaction() as conn:
        conn.exec_driver_sql(LACKS[name])

    answer = ready(api)

    assert (answer.status_code, answer.json()["missing"]) == (503, [name])


def test_a_database_without_tables_is_not_ready(api: Api, shop: Shop) -> None:
    with shop.sessions.transaction() as conn:
        conn.exec_driver_sql("DROP TABLE alembic_version")

    assert ready(api).json()["missing"] == ["schema"]
