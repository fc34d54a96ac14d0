"""The examples of README are run as they stand there."""

import asyncio
import re
from importlib import import_module
from pathlib import Path

import httpx
import pytest

from shop import Shop
from worker.settings import Settings

README = Path(__file__).parents[2] / "README.md"


def example_with(word: str) -> str:
    """The Python block of README that holds `word`."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (found,) = (block for block in blocks if word in block)
    return str(found)


def test_the_metered_fastapi_product_charges_what_its_handler_said(
    shop: Shop, config: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.meter("input_tokens", {"USD": "1"})
    source = example_with("MeterMiddleware")
    for placeholder, real in (
        ("redis://localhost:6379/0", config.redis_url.get_secret_value()),
        ("bus_…", shop.business_id),
    ):
        assert placeholder in source
        source = source.replace(placeholder, real)
    (tmp_path / "metered_product.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    product = import_module("metered_product")

    async def ask(*paths: str) -> list[int]:
        headers = {"x-customer-id": shop.customers[0]}
        transport = httpx.ASGITransport(product.app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://product", headers=headers
        ) as client:
            return [(await client.post(path)).status_code for path in paths]

    with product.meter:
        answers = asyncio.run(ask("/v1/chat", "/v1/nowhere"))
    shop.drain()

    assert answers == [200, 404]
    assert shop.charged() == 812
