"""A local gateway of a test's own, as a process: to be killed and started again; and charges."""

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
from worker.demo.simulator.role import GatewaySecrets, gateway_role, gateway_url
from worker.local.port import free_port

START_TIMEOUT_S = 20


def new_charge(payment_method: str | None = None, **changes: Any) -> ChargeRequest:
    """A charge of 12.34 USD that nobody asked for before."""
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


class OwnGateway:
    """Runs in `folder`; `url` and its payments stay the same over a restart."""

    def __init__(self, folder: Path, **options: Any) -> None:
        port = free_port()
        self.url, self.keys = gateway_url(port), GatewaySecrets.new()
        self._role = gateway_role(folder, port, self.keys, **options)
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
        """The adapter under test; `timeout_ms` and the account's columns can be given."""
        timeout = {"timeout_ms": changes.pop("timeout_ms")} if "timeout_ms" in changes else {}
        given = {"api_key": self.keys.api_key, "base_url": self.url, **changes}
        return gateway_of(new_account("local", **given), **timeout)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Ask the gateway itself, past the adapter."""
        headers = {"Authorization": f"Bearer {self.keys.api_key}"}
        answer = httpx.request(method, self.url + path, json=body, headers=headers, timeout=30)
        assert answer.is_success, answer.text
        return answer.json()

    def payments_of(self, charge: ChargeRequest) -> list[Any]:
        """All payments that were ever made for a charge."""
        made = self.ask("GET", "/payments")["items"]
        return [each for each in made if each["metadata"]["gullak_charge_id"] == charge.charge_id]


@contextmanager
def running_gateway(folder: Path, **options: Any) -> Iterator[OwnGateway]:
    """Start a gateway in `folder`, and kill it at the end."""
    gateway = OwnGateway(folder, **options)
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.kill()
