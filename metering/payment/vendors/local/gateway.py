"""The local gateway, which stands in for a provider in tests and the demo: `worker.demo.simulator`.

JSON over HTTP. `POST /payments` with the charge's id as `Idempotency-Key` makes one payment for a
key, for ever; `GET /payments?idempotency_key=` finds it, `POST /payments/{id}/cancel` stops it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from metering.errors import GatewayUnavailableError
from metering.fields import Filled255
from metering.payment.facts import CHARGE_KEY
from metering.payment.vendors.gateway import (
    CANCELED,
    UNREADABLE,
    ChargeAnswer,
    ChargeRequest,
    ChargeStatus,
    PageUrl,
    error_of,
)

NAME: Final = "local"


class Payment(BaseModel):
    """What is read of a payment."""

    payment_id: Filled255
    status: ChargeStatus
    url: PageUrl | None = None
    failure: str | None = None


class PaymentList(BaseModel):
    """The payments of a key: one or none."""

    items: list[Payment]


class Problem(BaseModel):
    """Why a request was refused."""

    code: str


class LocalGateway:
    """An account of the local gateway at `base_url`."""

    def __init__(self, http: httpx.Client, *, api_key: str, base_url: str) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"}

    def start(self, charge: ChargeRequest, *, is_repeated: bool) -> ChargeAnswer:  # noqa: ARG002
        """Make a payment, or return the one of this charge. See `PaymentGateway`."""
        with _heard():
            said = self._ask("POST", "/payments", key=charge.charge_id, body=_body(charge))
            return _answer(_good(said))

    def look_up(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer | None:
        """Return what became of a charge. See `PaymentGateway`."""
        with _heard():
            if payment_id is None:
                return self._find(charge)
            said = self._ask("GET", _path_of(payment_id))
            return None if said.status_code == httpx.codes.NOT_FOUND else _answer(_good(said))

    def cancel(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer:
        """Stop a pending payment. See `PaymentGateway`."""
        found = self.look_up(charge, payment_id)
        if found is None or found.payment_id is None:
            return ChargeAnswer("failed", payment_id, failure=CANCELED)
        with _heard():
            return _answer(_good(self._ask("POST", f"{_path_of(found.payment_id)}/cancel")))

    def _find(self, charge: ChargeRequest) -> ChargeAnswer | None:
        query = f"idempotency_key={quote(charge.charge_id, safe='')}"
        said = _good(self._ask("GET", f"/payments?{query}"))
        items = PaymentList.model_validate_json(said.content).items
        return _answer_of(items[0]) if items else None

    def _ask(
        self, method: str, path: str, *, key: str | None = None, body: object = None
    ) -> httpx.Response:
        headers = {**self._headers, **({} if key is None else {"Idempotency-Key": key})}
        return self._http.request(method, self._base_url + path, headers=headers, json=body)


def _body(charge: ChargeRequest) -> dict[str, object]:
    return {
        "amount": charge.amount_minor,
        "currency": charge.currency,
        "customer": {
            "customer_id": charge.customer_id,
            "email": charge.email,
            "name": charge.name,
        },
        "payment_method": charge.payment_method,
        "description": charge.description,
        "return_url": charge.return_url,
        "metadata": {CHARGE_KEY: charge.charge_id},
    }


def _path_of(payment_id: str) -> str:
    return f"/payments/{quote(payment_id, safe='')}"


def _good(said: httpx.Response) -> httpx.Response:
    """Return an answer that is one, or raise what another one means."""
    if said.is_success:
        return said
    try:
        code = Problem.model_validate_json(said.content).code
    except ValidationError:
        code = ""
    raise error_of(NAME, said.status_code, code)


def _answer(said: httpx.Response) -> ChargeAnswer:
    return _answer_of(Payment.model_validate_json(said.content))


def _answer_of(payment: Payment) -> ChargeAnswer:
    return ChargeAnswer(payment.status, payment.payment_id, payment.url, payment.failure)


@contextmanager
def _heard() -> Iterator[None]:
    """Turn what is wrong with the connection or the answer into our errors."""
    try:
        yield
    except httpx.TransportError as error:
        raise GatewayUnavailableError(NAME, str(error)) from None
    except ValidationError:
        raise GatewayUnavailableError(NAME, UNREADABLE) from None
