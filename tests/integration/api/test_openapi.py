"""Every operation follows the OpenAPI description for any input."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from support.edge import Api, running_api
from support.tenant import Shop
from support.tiers import mostly_slow
from worker.settings import Settings

CONFIG = Path(__file__).with_name("openapi.toml")
EXAMPLES = 25
SEED = 7


@pytest.fixture
def unlimited(config: Settings, shop: Shop) -> Iterator[Api]:
    """An API without a rate limit, of a business with one of everything."""
    with running_api(config.model_copy(update={"api_rate_limit": "none"})) as url:
        bare = Api(url, shop.sessions, shop.business_id, "")
        yield replace(bare, key=bare.key_for())


@pytest.mark.parametrize(
    "phase", mostly_slow(["examples", "coverage", "fuzzing", "stateful"], "examples")
)
def test_every_response_matches_the_openapi_description(
    unlimited: Api, tmp_path: Path, phase: str
) -> None:
    ran = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run",
            f"{unlimited.url}/openapi.json",
            "--header", f"Authorization: Bearer {unlimited.key}",
            "--phases", phase,
            "--max-examples", str(EXAMPLES),
            "--seed", str(SEED),
            "--no-color",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stdout[-20_000:]
