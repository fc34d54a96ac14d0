"""The application: every router, the middleware around them, and their error responses."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio.to_thread
from fastapi import FastAPI
from fastapi.routing import APIRoute

from api.context import open_context
from api.description import describe
from api.errors import ErrorBody, add_error_handlers
from api.middleware import RequestMiddleware
from api.routes import (
    business,
    checkouts,
    customers,
    events,
    health,
    ingest,
    ledger_entries,
    lots,
    meters,
    packages,
    pages,
    prices,
    providers,
    purchases,
    refused_events,
    rules,
    top_ups,
    wallets,
    webhooks,
)
from metering.payment.charges.store import Gateways
from worker.charging import open_gateway
from worker.settings import Settings

ROUTERS: Final = (
    customers,
    wallets,
    lots,
    ledger_entries,
    packages,
    purchases,
    business,
    events,
    refused_events,
    meters,
    prices,
    rules,
    checkouts,
    top_ups,
    webhooks,
    providers,
)
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in (
        (400, "The wallet does not cover the debit."),
        (401, "The API key is missing, unknown or revoked."),
        (403, "The key lacks the permission."),
        (404, "The business has no such object."),
        (409, "The idempotency key was used before with other content."),
        (413, "The body is too large, as sent or expanded."),
        (415, "The body is compressed, but neither by gzip nor by deflate."),
        (422, "A field or parameter is invalid; `details` names it."),
        (429, "Too many requests; see Retry-After."),
        (500, "An internal error."),
        (503, "A store does not answer; see Retry-After."),
    )
}


def create_app(config: Settings, gateways: Gateways = open_gateway) -> FastAPI:
    """Return the application. It opens its connections at startup."""
    app = FastAPI(
        title="Gullak",
        version="1",
        description="Prepaid credit for metered APIs: customers, wallets, ledger, usage events.",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.settings = config
    app.state.gateways = gateways
    app.add_middleware(RequestMiddleware, body_bytes_max=config.api_body_bytes_max)
    modules = (ingest, health, pages, *ROUTERS)
    add_error_handlers(app, [route for module in modules for route in module.router.routes])
    # First, because most requests are for it. The route limits its own body.
    app.include_router(ingest.router, responses=_ERRORS)
    app.include_router(health.router)
    app.include_router(pages.router)
    app.mount(pages.ASSETS, pages.assets)
    for module in ROUTERS:
        app.include_router(
            module.router, responses=_ERRORS, max_body_size=config.api_body_bytes_max
        )
    describe(app, tuple(config.currencies))
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    config: Settings = app.state.settings
    anyio.to_thread.current_default_thread_limiter().total_tokens = config.api_threads
    app.state.context = open_context(config, app.state.gateways)
    try:
        yield
    finally:
        app.state.context.close()
