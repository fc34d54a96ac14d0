"""A payment simulator for one test, as a process that can be killed; and charges."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from metering.ids import ChargeId, Currency, CustomerId, new_id
from metering.payment.vendors.gateway import ChargeRequest, GatewayAccount, PaymentGateway
from metering.payment.vendors.registry import gateway_of
from metering.purchase.reversal_target import Provider
from worker.demo.simulator.role import SimulatorKeys, simulator_role, simulator_url
from worker.local.port import free_port

START_TIMEOUT_S = 20


def new_charge(payment_method: str | None = None, **changes: Any) -> ChargeRequest:
    """A charge of 12.34 USD that was not requested before."""
    values = {
        "charge_id": ChargeId(new_id("chg")),
        "amount_minor": 12_34,
        "currency": Currency("USD"),
        "customer_id": CustomerId("cus_1"),
        "email": "a@example.com",
        "name": "A",
        "payment_method": payment_method,
        "description": "1,000 credits",
        "return_url": "https://shop.example/done",
    }
    return ChargeRequest(**{**values, **changes})


def new_account(
    provider: Provider,
    api_key: str | None = "sk_test_secret",
    base_url: str | None = None,
    product_id: str | None = None,
) -> GatewayAccount:
    return GatewayAccount(provider, api_key, base_url, product_id)


class OwnSimulator:
    """Runs in `folder`; `url` and its payments stay the same over a restart."""

    def __init__(self, folder: Path, **options: Any) -> None:
        port = free_port()
        self.url, self.keys = simulator_url(port), SimulatorKeys.new()
        self._role = simulator_role(folder, port, self.keys, **options)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._role.argv, env=self._role.env)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._role.is_ready(self._process.pid):
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def adapter(self, **changes: Any) -> PaymentGateway:
        """The Stripe adapter; `timeout_ms` and the account's columns can be given."""
        timeout = {"timeout_ms": changes.pop("timeout_ms")} if "timeout_ms" in changes else {}
        given = {"api_key": self.keys.api_key, "base_url": self.url, **changes}
        return gateway_of(new_account("stripe", **given), **timeout)

    def ask(self, method: str, path: str, **form: Any) -> Any:
        """Call the API itself, past the adapter."""
        query, data = (form, None) if method == "GET" else (None, form)
        url = f"{self.url}/v1/{path}"
        answer = httpx.request(method, url, params=query, data=data, headers=self.headers)
        assert answer.is_success, answer.text
        return answer.json()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys.api_key}"}

    def payments(self) -> list[Any]:
        """All payments that were ever made, the oldest first."""
        listed = self.ask("GET", "payment_intents", limit=100)
        assert not listed["has_more"]
        return list(reversed(listed["data"]))

    def payments_of(self, charge: ChargeRequest) -> list[Any]:
        """All payments that were ever made for a charge."""
        ours = charge.charge_id
        return [each for each in self.payments() if each["metadata"]["gullak_charge_id"] == ours]


@contextmanager
def running_simulator(folder: Path, **options: Any) -> Iterator[OwnSimulator]:
    """Start a simulator in `folder`, and kill it at the end."""
    simulator = OwnSimulator(folder, **options)
    try:
        simulator.start()
        yield simulator
    finally:
        simulator.kill()
