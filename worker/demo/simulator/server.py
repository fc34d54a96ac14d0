"""The local gateway's HTTP: a small JSON API, and a page on which a customer pays.

    POST /payments                         Idempotency-Key; the body is wire.NewPayment
    GET  /payments[?idempotency_key=]      every payment ever made, or that of a key
    GET  /payments/{id}
    POST /payments/{id}/succeed|fail|cancel
    POST /payments/{id}/refunds|disputes   {"amount"?}
    POST /disputes/{id}/challenged|won|lost|accepted|cancelled|expired
    GET  /webhooks · POST /webhooks/resend
    GET|POST /pay/{id}                     the page; without an API key, as a customer has none
    GET  /health

What a payment does is chosen by its payment method: `pm_ok` succeeds, `pm_declined` fails,
`pm_pending` waits, `pm_hang` is charged and then not answered the first time, `pm_500` is charged
and then answered 500 the first time. None: it waits for its page.
"""

from dataclasses import asdict
from hmac import compare_digest
from html import escape
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from metering.errors import GullakError, NotFoundError, UnauthorizedError
from worker.demo.simulator.notifier import Notifier
from worker.demo.simulator.store import Store
from worker.demo.simulator.wire import DisputeStep, NewPayment, NewReversal, Payment, shown

Json = dict[str, object]
IdempotencyKey = Annotated[str, Header(min_length=1, max_length=255)]
_PAGE: Final = (
    "<!doctype html><title>Local gateway</title><h1>{what}</h1><p>{amount} {currency} minor units"
    '<form method="post" action="{url}/yes"><button>Pay</button></form>'
    '<form method="post" action="{url}/no"><button>Decline</button></form>'
)
_ENDED: Final = "<!doctype html><title>Local gateway</title><p>This payment has {status}."
_STATUS: Final[dict[type[GullakError], int]] = {NotFoundError: 404, UnauthorizedError: 401}


def make_app(store: Store, notifier: Notifier, *, url: str, api_key: str) -> FastAPI:
    """Return the application. `url`: where it is reached; who lacks the `api_key` is refused."""

    def check(authorization: Annotated[str, Header()] = "") -> None:
        if not compare_digest(authorization.encode(), f"Bearer {api_key}".encode()):
            raise UnauthorizedError

    app = FastAPI(openapi_url=None)
    app.include_router(_api(store, notifier, url), dependencies=[Depends(check)])
    app.include_router(_pages(store, notifier, url))
    app.add_api_route("/health", _healthy)
    for kind in (GullakError, RequestValidationError):
        app.add_exception_handler(kind, _refuse)
    return app


def _healthy() -> Json:
    return {}


def _refuse(_request: Request, error: Exception) -> Response:
    """Answer what is wrong. All of it is final: nothing here is worth another try."""
    if isinstance(error, GullakError):
        body = {"code": error.code, "message": error.message}
        return JSONResponse(body, _STATUS.get(type(error), 422))
    return JSONResponse({"code": "INVALID_REQUEST", "message": str(error)}, 422)


def _url_of(url: str, payment: Payment) -> str:
    return f"{url}/pay/{payment.payment_id}"


def _api(store: Store, notifier: Notifier, url: str) -> APIRouter:
    router = _reversals(store, notifier)

    def seen(payment: Payment) -> Json:
        notifier.wake()
        return shown(payment, _url_of(url, payment))

    @router.post("/payments")
    async def make(request: Request, new: NewPayment, idempotency_key: IdempotencyKey) -> Response:
        payment, is_new = await run_in_threadpool(store.make, idempotency_key, new)
        body = seen(payment)
        if is_new and new.payment_method == "pm_hang":
            while (await request.receive())["type"] != "http.disconnect":
                pass
        if is_new and new.payment_method == "pm_500":
            return JSONResponse({"code": "INTERNAL_SERVER_ERROR"}, 500)
        return JSONResponse(body)

    @router.get("/payments")
    def list_all(idempotency_key: str | None = None) -> Json:
        return {"items": [seen(payment) for payment in store.payments(idempotency_key)]}

    @router.get("/payments/{payment_id}")
    def show(payment_id: str) -> Json:
        return seen(store.payment(payment_id))

    @router.post("/payments/{payment_id}/{how}")
    def end(payment_id: str, how: Literal["succeed", "fail", "cancel"]) -> Json:
        if how == "succeed":
            return seen(store.end(payment_id, "succeeded"))
        failure = "card_declined" if how == "fail" else "canceled"
        return seen(store.end(payment_id, "failed", failure))

    return router


def _reversals(store: Store, notifier: Notifier) -> APIRouter:
    router = APIRouter()

    @router.post("/payments/{payment_id}/refunds")
    def refund(payment_id: str, new: NewReversal) -> Json:
        made = store.refund(payment_id, new.amount)
        notifier.wake()
        return asdict(made)

    @router.post("/payments/{payment_id}/disputes")
    def dispute(payment_id: str, new: NewReversal) -> Json:
        made = store.dispute(payment_id, new.amount)
        notifier.wake()
        return asdict(made)

    @router.post("/disputes/{dispute_id}/{step}")
    def take_further(dispute_id: str, step: DisputeStep) -> Json:
        changed = store.take_further(dispute_id, step)
        notifier.wake()
        return asdict(changed)

    @router.get("/webhooks")
    def webhooks() -> Json:
        return {"items": store.webhooks()}

    @router.post("/webhooks/resend")
    def resend() -> Json:
        store.resend()
        notifier.wake()
        return {}

    return router


def _pages(store: Store, notifier: Notifier, url: str) -> APIRouter:
    router = APIRouter()

    @router.get("/pay/{payment_id}")
    def page(payment_id: str) -> Response:
        payment = store.payment(payment_id)
        asked = payment.asked
        if payment.status != "pending":
            return HTMLResponse(_ENDED.format(status=payment.status))
        text = _PAGE.format(
            what=escape(asked.description),
            amount=asked.amount,
            currency=asked.currency,
            url=_url_of(url, payment),
        )
        return HTMLResponse(text)

    @router.post("/pay/{payment_id}/{decision}")
    def decide(payment_id: str, decision: Literal["yes", "no"]) -> Response:
        if store.payment(payment_id).asked.payment_method is not None:
            raise NotFoundError("page", payment_id)
        if decision == "yes":
            payment = store.end(payment_id, "succeeded")
        else:
            payment = store.end(payment_id, "failed", "card_declined")
        notifier.wake()
        return RedirectResponse(payment.asked.return_url or _url_of(url, payment), 303)

    return router
