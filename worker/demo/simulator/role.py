"""The local gateway as a process of a stack: its files, its secrets, its role.

D/gateway/payments.db    what it was asked, and what it tells
D/gateway/secrets.json   its keys (0600: they are not on a command line)
D/log/gateway.log        what it says
"""

import base64
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
class GatewaySecrets:
    """What its API is called with, and what its webhooks are signed with (`whsec_…`)."""

    api_key: str
    webhook_secret: str

    @classmethod
    def new(cls) -> Self:
        """Return secrets that nobody knows yet."""
        random = base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
        return cls(f"sk_local_{secrets.token_urlsafe(SECRET_BYTES)}", f"whsec_{random}")


def gateway_url(port: int) -> str:
    """Return where a gateway on this port is reached."""
    return f"http://{HOST}:{port}"


def gateway_role(
    data_dir: Path,
    port: int,
    keys: GatewaySecrets,
    *,
    webhook_url: str | None = None,
    pending_s: float | None = None,
    tier: int = 0,
) -> Role:
    """Write the secrets and return the role that runs the gateway.

    `webhook_url`: where it tells of payments; `pending_s`: when those of `pm_pending` succeed by
    themselves, None: never.
    """
    home = data_dir.resolve() / "gateway"
    write_private(home / "secrets.json", json.dumps(asdict(keys)))
    argv = [sys.executable, "-m", "worker.demo.simulator", "--port", str(port)]
    argv += ["--data", str(home / "payments.db"), "--secrets", str(home / "secrets.json")]
    argv += [] if webhook_url is None else ["--webhook-url", webhook_url]
    argv += [] if pending_s is None else ["--pending-s", str(pending_s)]
    return Role(
        name="gateway",
        argv=argv,
        env=environment(),
        tier=tier,
        is_ready=lambda _pid: _answers(port),
        log_file=data_dir / "log" / "gateway.log",
    )


def _answers(port: int) -> bool:
    try:
        url = f"{gateway_url(port)}/health"
        return httpx.get(url, timeout=PROBE_TIMEOUT_S, trust_env=False).is_success
    except httpx.HTTPError:
        return False
