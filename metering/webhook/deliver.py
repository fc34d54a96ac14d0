"""Delivery: claim due calls, send them outside any transaction, record the outcomes.

A claim numbers the attempt and moves `due_at` past a lease. If a worker dies before it records an
attempt, the delivery is found again, with the same id and body. So each webhook arrives at least
once, and a receiver knows a repetition by its `webhook-id`. Only recorded attempts count against
the schedule.

A receiver that hangs delays only its own webhooks. An endpoint has a limited number of calls in
flight over all workers; a failing endpoint has one. A call longer than `PROMPT_S` gives its place
in the run to another. A run keeps claiming while it waits for answers. It claims for failing
endpoints only early, so that their timeouts do not outlive the run.
"""

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Final, Literal

import structlog
from sqlalchemy import Connection

from metering.checkpoint import Checkpoint, no_checkpoint
from metering.db import DATABASE_ERRORS, Transactions, is_server_fault, rows
from metering.errors import ConfigurationError
from metering.ids import BusinessId, EndpointId, WebhookEventId
from metering.vault import Vault, vault_of
from metering.webhook import statements
from metering.webhook.retry import ATTEMPTS_PER_ROUND, retry_delay_s
from metering.webhook.send import Answer, Call, Flight, HttpSender
from metering.webhook.sign import envelope, signed_headers

log = structlog.get_logger("gullak.webhook")

# How often a run that has calls in flight looks for more that is due.
WAVE_S: Final = 0.25
# A call in flight for longer than this no longer counts against `prompt_max`.
PROMPT_S: Final = 1.0
HTTP_GONE: Final = 410

Status = Literal["pending", "delivered", "dead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPolicy:
    """The limits of delivery. The first four are settings of the operator."""

    # Waits between attempts. After the last one the delivery is a dead letter.
    retry_s: tuple[int, ...]
    # For a whole call: name, connection, TLS, request and the head of the answer.
    timeout_s: float
    # An endpoint with this many failures in a row, over at least `disable_span_s`, is disabled.
    disable_after: int
    disable_span_s: int = 86_400
    # Calls in flight: of a run (sockets); those of a run that began within `PROMPT_S`; those of one
    # endpoint over all runs.
    in_flight_max: int = 500
    prompt_max: int = 100
    per_endpoint_max: int = 10
    # From this many failures in a row an endpoint gets one call at a time.
    failing_from: int = 3
    # A run claims for this long, and ends with its last call.
    claim_for_s: float = 25.0
    # Time beyond the timeout, to record the attempt and for a clock that is behind.
    lease_margin_s: float = 10.0

    def __post_init__(self) -> None:
        """Refuse a schedule that would reach the numbers of the next round."""
        if len(self.retry_s) >= ATTEMPTS_PER_ROUND:
            raise ConfigurationError(f"at most {ATTEMPTS_PER_ROUND - 1} retries can be scheduled")

    @property
    def lease_s(self) -> float:
        """How long a claim holds: longer than any call."""
        return self.timeout_s + self.lease_margin_s

    @property
    def claim_failing_for_s(self) -> float:
        """How long a run claims for failing endpoints."""
        return max(self.claim_for_s - self.timeout_s, self.claim_for_s / 4)

    def room(self) -> dict[str, object]:
        """Return the limits per endpoint, as parameters of the statements."""
        return {
            "lease_s": self.lease_s,
            "failing_from": self.failing_from,
            "per_endpoint_max": self.per_endpoint_max,
        }


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """The attempts of a run. `failed` ones will be repeated; `dead` ones will not."""

    delivered: int
    failed: int
    dead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A delivery that this run may attempt now; `data` is the JSON text of the outbox."""

    webhook_event_id: WebhookEventId
    endpoint_id: EndpointId
    attempt: int
    failing: bool
    business_id: BusinessId
    type: str
    occurred_at: datetime
    data: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    secret: str = field(repr=False)
    previous_secret: str | None = field(repr=False)

    @property
    def key(self) -> tuple[WebhookEventId, EndpointId]:
        """Return the key of the delivery."""
        return self.webhook_event_id, self.endpoint_id


@dataclass(frozen=True, slots=True)
class _Result:
    claimed: Claimed
    answer: Answer
    status: Status
    delay_s: float


def count_due(conn: Connection, policy: DeliveryPolicy, count_max: int) -> int:
    """Return how many deliveries could be claimed now, counting no further than `count_max`."""
    limits = {**policy.room(), "claim_limit": count_max}
    return int(conn.execute(statements.COUNT_DUE, limits).scalar_one())


def deliver_due(
    transactions: Transactions,
    sender: HttpSender,
    policy: DeliveryPolicy,
    checkpoint: Checkpoint = no_checkpoint,
) -> DeliveryReport:
    """Deliver until no call is due and none is in flight.

    It claims for `claim_for_s` at most, and ends one timeout later. Results are recorded as they
    arrive. While a server fault prevents that, it claims nothing, and at the end raises the fault.
    Safe to run twice and at once: one run claims a delivery.
    """
    tally: Counter[Status] = Counter()
    ended: list[tuple[Claimed, Answer]] = []
    started = time.monotonic()
    with Flight[Claimed](sender) as flight:
        while True:
            age_s = time.monotonic() - started
            # Results that are not recorded come first: a claim would only add to them.
            if age_s < policy.claim_for_s and not ended:
                _take_on(transactions, flight, policy, failing=age_s < policy.claim_failing_for_s)
                checkpoint("after_claim")
            if not (len(flight) or ended):
                return DeliveryReport(tally["delivered"], tally["pending"], tally["dead"])
            ended += flight.wait(WAVE_S)
            if ended:
                checkpoint("after_http")
                is_last = age_s >= policy.claim_for_s and not len(flight)
                results = _recorded(transactions, ended, policy, is_last=is_last)
                tally.update(result.status for result in results)
                ended = [] if results else ended


def _take_on(
    transactions: Transactions, flight: Flight[Claimed], policy: DeliveryPolicy, *, failing: bool
) -> None:
    """Claim as many deliveries as there are places, and start their calls."""
    places = min(
        policy.in_flight_max - len(flight), policy.prompt_max - flight.count_younger(PROMPT_S)
    )
    if places <= 0:
        return
    limits = {
        **policy.room(),
        "claim_limit": places,
        "failing_limit": _failing_places(flight, policy) if failing else 0,
    }
    try:
        with transactions() as conn:
            found = rows(Claimed, conn.execute(statements.CLAIM, limits))
            vault = vault_of(conn)
    except DATABASE_ERRORS:
        if not len(flight):
            raise
        return  # wait for the calls in flight, and record them
    for claimed in found:
        flight.start(claimed, partial(_opened_call_of, vault, claimed))


def _failing_places(flight: Flight[Claimed], policy: DeliveryPolicy) -> int:
    """Return how many more calls to failing endpoints fit. They have half of all places."""
    return max(0, policy.in_flight_max // 2 - sum(claimed.failing for claimed in flight.tickets()))


def _opened_call_of(vault: Vault, claimed: Claimed, attempted_at: datetime) -> Call:
    """Return the signed request. A secret that cannot be opened fails this attempt alone."""
    previous = claimed.previous_secret
    opened = replace(
        claimed,
        headers=vault.open_json(claimed.headers),
        secret=vault.open(claimed.secret),
        previous_secret=None if previous is None else vault.open(previous),
    )
    return call_of(opened, attempted_at)


def call_of(claimed: Claimed, attempted_at: datetime) -> Call:
    """Return the signed request of an attempt at `attempted_at`."""
    body = envelope(claimed.business_id, claimed.type, claimed.occurred_at, claimed.data)
    secrets = [claimed.secret, *([claimed.previous_secret] if claimed.previous_secret else [])]
    headers = signed_headers(
        claimed.webhook_event_id, attempted_at, body, secrets=secrets, extra=claimed.headers
    )
    return Call(claimed.url, headers, body)


def _recorded(
    transactions: Transactions,
    ended: Sequence[tuple[Claimed, Answer]],
    policy: DeliveryPolicy,
    *,
    is_last: bool,
) -> Sequence[_Result]:
    """Record how calls ended. Returns nothing, after a moment, if a server fault prevents it."""
    try:
        with transactions() as conn:
            tried = _count_tried(conn, ended)
            results = [_result(*each, tried.get(each[0].key, 0), policy) for each in ended]
            _record(conn, results, policy)
    except DATABASE_ERRORS as error:
        if is_last or not is_server_fault(error):
            raise
        time.sleep(WAVE_S)
        return ()
    return results


def _count_tried(
    conn: Connection, ended: Sequence[tuple[Claimed, Answer]]
) -> Mapping[tuple[WebhookEventId, EndpointId], int]:
    """Return how many earlier attempts of this round are recorded for each failed delivery."""
    failed = [claimed for claimed, answer in ended if not answer.is_success]
    if not failed:
        return {}
    values = {
        "webhook_event_ids": [claimed.webhook_event_id for claimed in failed],
        "endpoint_ids": [claimed.endpoint_id for claimed in failed],
        "attempts": [claimed.attempt for claimed in failed],
        "attempts_per_round": ATTEMPTS_PER_ROUND,
    }
    found = conn.execute(statements.TRIED_BEFORE, values)
    return {(row.webhook_event_id, row.endpoint_id): row.tried for row in found}


def _result(claimed: Claimed, answer: Answer, tried_before: int, policy: DeliveryPolicy) -> _Result:
    if answer.is_success:
        return _Result(claimed, answer, "delivered", 0.0)
    jitter = random.uniform(-1, 1)  # noqa: S311 - it spreads load and protects nothing
    delay_s = retry_delay_s(tried_before + 1, policy.retry_s, jitter, answer.retry_after_s)
    if delay_s is None:
        return _Result(claimed, answer, "dead", 0.0)
    return _Result(claimed, answer, "pending", delay_s)


def _record(conn: Connection, results: Sequence[_Result], policy: DeliveryPolicy) -> None:
    """Record attempts, the outcomes of their deliveries, and the failures of endpoints."""
    endpoint_ids = sorted({result.claimed.endpoint_id for result in results})
    conn.execute(statements.LOCK_ENDPOINTS, {"endpoint_ids": endpoint_ids})
    keys = {
        "webhook_event_ids": [result.claimed.webhook_event_id for result in results],
        "endpoint_ids": [result.claimed.endpoint_id for result in results],
        "attempts": [result.claimed.attempt for result in results],
    }
    attempts = {
        "attempted_at": [result.answer.attempted_at for result in results],
        "durations_ms": [result.answer.duration_ms for result in results],
        "status_codes": [result.answer.status_code for result in results],
        "errors": [result.answer.error for result in results],
    }
    conn.execute(statements.INSERT_ATTEMPTS, {**keys, **attempts})
    outcomes = {
        "statuses": [result.status for result in results],
        "delays_s": [result.delay_s for result in results],
    }
    conn.execute(statements.RECORD_OUTCOMES, {**keys, **outcomes})
    _judge(conn, endpoint_ids, results, policy)


def _judge(
    conn: Connection,
    endpoint_ids: Sequence[EndpointId],
    results: Sequence[_Result],
    policy: DeliveryPolicy,
) -> None:
    """Count the failures of endpoints, and log each one that is disabled by them."""
    delivered = Counter(r.claimed.endpoint_id for r in results if r.answer.is_success)
    failed = Counter(r.claimed.endpoint_id for r in results if not r.answer.is_success)
    gone = {r.claimed.endpoint_id for r in results if r.answer.status_code == HTTP_GONE}
    values = {
        "endpoint_ids": list(endpoint_ids),
        "delivered": [delivered[endpoint_id] for endpoint_id in endpoint_ids],
        "failed": [failed[endpoint_id] for endpoint_id in endpoint_ids],
        "gone": [endpoint_id in gone for endpoint_id in endpoint_ids],
        "disable_after": policy.disable_after,
        "disable_span_s": policy.disable_span_s,
    }
    for row in conn.execute(statements.JUDGE_ENDPOINTS, values):
        if row.stopped:
            log.warning(
                "endpoint.disabled",
                business_id=row.business_id,
                endpoint_id=row.endpoint_id,
                reason=row.disabled_reason,
            )
