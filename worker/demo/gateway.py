"""The demo's payment provider: the simulator, connected as a Stripe account, and its own list."""

from pathlib import Path
from typing import Final

import httpx
from pydantic import BaseModel, SecretStr

from metering.ids import AccountId
from metering.payment.facts import CHARGE_KEY
from metering.payment.provider_account import NewAccount
from worker.demo.reconcile import Payment
from worker.demo.simulator.role import SimulatorKeys, simulator_role, simulator_url
from worker.local.port import free_port
from worker.local.supervisor import Supervisor

TIMEOUT_S: Final = 10.0
# The demo makes about ten payments; the simulator lists this many at once.
PAYMENTS_MAX: Final = 100


class _Intent(BaseModel):
    """A payment as the simulator lists it."""

    id: str
    status: str
    amount: int
    currency: str
    metadata: dict[str, str]


class _List(BaseModel):
    """The payments, the newest first."""

    data: list[_Intent]


class Gateway:
    """Charges nobody; close it at the end. Its keys are made anew for each run."""

    def __init__(self) -> None:
        self._port = free_port()
        self._url, self._keys = simulator_url(self._port), SimulatorKeys.new()
        self._supervisor = Supervisor()

    def account(self) -> NewAccount:
        """Return the account that a business connects."""
        return NewAccount(
            provider="stripe",
            name="payment simulator",
            webhook_secret=SecretStr(self._keys.webhook_secret),
            api_key=SecretStr(self._keys.api_key),
            base_url=self._url,
        )

    def start(self, folder: Path, api_url: str, account_id: AccountId) -> None:
        """Start it, with files in a folder of this account; it sends its events to the API.

        An earlier run on the same data has left its payments in a folder of its own.

        Raises:
            RoleNotReadyError: it did not start.

        """
        webhook_url = f"{api_url}/providers/stripe/webhooks?account={account_id}"
        role = simulator_role(
            folder / "simulators" / account_id, self._port, self._keys, webhook_url=webhook_url
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
        answer = httpx.get(
            f"{self._url}/v1/payment_intents",
            params={"limit": PAYMENTS_MAX},
            headers={"Authorization": f"Bearer {self._keys.api_key}"},
            timeout=TIMEOUT_S,
            trust_env=False,
        )
        listed = _List.model_validate_json(answer.raise_for_status().content)
        return [_payment(intent) for intent in reversed(listed.data)]


def _payment(intent: _Intent) -> Payment:
    return Payment(
        payment_id=intent.id,
        charge_id=intent.metadata[CHARGE_KEY],
        # All of the demo's payments are charged off-session, so none waits for its customer.
        status="succeeded" if intent.status == "succeeded" else "failed",
        currency=intent.currency.upper(),
        amount_minor=intent.amount,
    )
