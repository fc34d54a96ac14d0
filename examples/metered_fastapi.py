"""A chat API metered by Gullak: each answer is charged, a customer without credit gets 402."""

# eval "$(.venv/bin/gullak env)"
# .venv/bin/python -m uvicorn --app-dir examples --port 9001 metered_fastapi:app

import os
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, Header, HTTPException

from metering.accept import Meter, MeterMiddleware, RequestFacts, Usage, usage

CURRENCY = "USD"

meter = Meter(os.environ["REDIS_URL"], business_id=os.environ["GULLAK_BUSINESS"])
gullak = httpx.Client(
    base_url=os.environ["GULLAK_URL"],
    headers={"Authorization": f"Bearer {os.environ['GULLAK_KEY']}"},
    timeout=1,
)


def rule(request: RequestFacts) -> Usage | None:
    """Return the usage of a finished request; None if it costs nothing."""
    if request.path != "/v1/chat" or request.status != 200:
        return None
    customer_id = request.headers["x-customer-id"]
    return Usage(event_name="chat", customer_id=customer_id, metadata=request.added)


def paying_customer(x_customer_id: Annotated[str, Header()]) -> str:
    """Return the customer of a request, or refuse the request if there is no credit left."""
    wallets = gullak.get(f"/customers/{x_customer_id}/wallets").raise_for_status().json()["items"]
    if not any(w["currency"] == CURRENCY and w["available_balance"] > 0 for w in wallets):
        raise HTTPException(402, "no credit left")
    return x_customer_id


app = FastAPI()
app.add_middleware(MeterMiddleware, meter=meter, rule=rule)


@app.post("/v1/chat")
def chat(customer_id: Annotated[str, Depends(paying_customer)]) -> dict[str, str]:
    """Answer one message. A handler that streams calls `usage.add` as often as it likes."""
    usage.note("model", "large")
    usage.add("input_tokens", 812)
    usage.add("output_tokens", 95)
    return {"answer": f"Hello, {customer_id}."}
