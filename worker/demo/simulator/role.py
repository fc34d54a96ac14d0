"""The payment simulator as a process of a stack.

D/simulator/payments.db    its payments and events
D/simulator/secrets.json   its keys; mode 0600, because anybody can read a command line
D/log/simulator.log        its log
"""

import json
import secrets
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

import httpx

from worker.local.files import write_private
from worker.local.port import HOST
from worker.local.supervisor import Role
from worker.settings import environment

PROBE_TIMEOUT_S: Final = 2
SECRET_BYTES: Final = 24


@dataclass(frozen=True, slots=True)
class SimulatorKeys:
    """The key of its API, and the secret that signs its webhooks."""

    api_key: str
    webhook_secret: str

    @classmethod
    def new(cls) -> Self:
        """Return keys that nobody knows yet."""
        key, secret = (secrets.token_hex(SECRET_BYTES) for _ in range(2))
        return cls(f"sk_test_{key}", f"whsec_{secret}")


def simulator_url(port: int) -> str:
    """Return the address of a simulator on this port."""
    return f"http://{HOST}:{port}"


def simulator_role(
    data_dir: Path,
    port: int,
    keys: SimulatorKeys,
    *,
    webhook_url: str | None = None,
    pending_s: float | None = None,
    tier: int = 0,
) -> Role:
    """Write the keys and return the role that runs the simulator.

    `webhook_url`: where it sends its events. `pending_s`: when a payment of `pm_pending` succeeds;
    None: never.
    """
    home = data_dir.resolve() / "simulator"
    write_private(home / "secrets.json", json.dumps(asdict(keys)))
    argv = [sys.executable, "-m", "worker.demo.simulator", "--port", str(port)]
    argv += ["--data", str(home / "payments.db"), "--secrets", str(home / "secrets.json")]
    argv += [] if webhook_url is None else ["--webhook-url", webhook_url]
    argv += [] if pending_s is None else ["--pending-s", str(pending_s)]
    return Role(
        name="simulator",
        argv=argv,
        env=environment(),
        tier=tier,
        is_ready=lambda _pid: _answers(port),
        log_file=data_dir / "log" / "simulator.log",
    )


def _answers(port: int) -> bool:
    try:
        url = f"{simulator_url(port)}/health"
        return httpx.get(url, timeout=PROBE_TIMEOUT_S, trust_env=False).is_success
    except httpx.HTTPError:
        return False
