"""The demo's payment provider: the local gateway, a process of its own, and its own word."""

from pathlib import Path
from typing import Final, Literal

import httpx
from pydantic import BaseModel, SecretStr

from metering.ids import AccountId
from metering.payment.facts import CHARGE_KEY
from metering.payment.provider_account import NewAccount
from worker.demo.reconcile import Payment
from worker.demo.simulator.role import GatewaySecrets, gateway_role, gateway_url
from worker.local.port import free_port
from worker.local.supervisor import Supervisor

TIMEOUT_S: Final = 10.0


class _Said(BaseModel):
    """A payment as the gateway lists it."""

    payment_id: str
    status: Literal["pending", "succeeded", "failed"]
    amount: int
    currency: str
    metadata: dict[str, str]


class _List(BaseModel):
    """Every payment that was ever made."""

    items: list[_Said]


class Gateway:
    """Charges nobody; close it at the end. Its secrets are made anew for each run."""

    def __init__(self) -> None:
        self._port = free_port()
        self._url, self._keys = gateway_url(self._port), GatewaySecrets.new()
        self._supervisor = Supervisor()

    def account(self) -> NewAccount:
        """Return what a business connects it by."""
        return NewAccount(
            provider="local",
            name="local gateway",
            webhook_secret=SecretStr(self._keys.webhook_secret),
            api_key=SecretStr(self._keys.api_key),
            base_url=self._url,
        )

    def start(self, folder: Path, api_url: str, account_id: AccountId) -> None:
        """Start it, with files in a folder of this account; it tells the API of each payment.

        An earlier run on the same data has left its payments in a folder of its own.

        Raises:
            RoleNotReadyError: it did not start.

        """
        webhook_url = f"{api_url}/providers/local/webhooks?account={account_id}"
        role = gateway_role(
            folder / "gateways" / account_id, self._port, self._keys, webhook_url=webhook_url
        )
        self._supervisor.start([role])

    def close(self) -> None:
        """Stop the process."""
        self._supervisor.close()

    def payments(self) -> list[Payment]:
        """Ask it for every payment that it has made.

        Raises:
            httpx.HTTPError: it does not answer.

        """
        headers = {"Authorization": f"Bearer {self._keys.api_key}"}
        url = f"{self._url}/payments"
        answer = httpx.get(url, headers=headers, timeout=TIMEOUT_S, trust_env=False)
        listed = _List.model_validate_json(answer.raise_for_status().content)
        return [_payment(said) for said in listed.items]


def _payment(said: _Said) -> Payment:
    return Payment(
        payment_id=said.payment_id,
        charge_id=said.metadata[CHARGE_KEY],
        status=said.status,
        currency=said.currency,
        amount_minor=said.amount,
    )
