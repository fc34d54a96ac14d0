"""The one error tree: a class per cause, the data as attributes, the docstring as the message.

`code` is the wire code of the HTTP contract; `reason` of a `RefusedEventError` is what a dead
letter carries. Only `db.is_data_fault` decides whose fault an error of the database is.
"""

from dataclasses import dataclass
from typing import ClassVar

from metering.clock import spoken


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One refused field: `field` is a dotted path (`events[3].metadata.tokens`), `reason` prose."""

    field: str
    reason: str


class GullakError(Exception):
    """Something went wrong in Gullak."""

    code: ClassVar[str] = "INTERNAL_SERVER_ERROR"
    # The field of the request at fault, where one class of error has always the same.
    field: str = ""

    def __init__(self, message: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or type(self).__name__).strip()
        super().__init__(self.message)


class InvalidInputError(GullakError):
    """The input was refused; nothing was written."""

    code = "INVALID_REQUEST_BODY"

    def __init__(self, *problems: FieldProblem) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{p.field}: {p.reason}" for p in problems))


class RepeatedEventIdError(InvalidInputError):
    """An event id comes twice in one request; nothing was taken."""

    code = "DUPLICATE_EVENT_ID"


class InvalidQueryError(InvalidInputError):
    """A query parameter is invalid, unknown or given twice; nothing was done."""

    code = "INVALID_QUERY_PARAMS"


class UnsupportedCurrencyError(InvalidInputError):
    """The currency is not configured."""

    code = "UNSUPPORTED_CURRENCY"

    def __init__(self, currency: str, supported: tuple[str, ...], field: str = "currency") -> None:
        choice = ", ".join(supported)
        super().__init__(FieldProblem(field, f"{currency!r} is not one of {choice}"))


class NotFoundError(GullakError):
    """The object does not exist."""

    code = "NOT_FOUND"

    def __init__(self, kind: str, object_id: str) -> None:
        self.kind = kind
        self.object_id = object_id
        super().__init__(f"no {kind} {object_id!r}")


class EventNotSeenError(NotFoundError):
    """The event is not settled, and only a part of the buffer was searched."""

    def __init__(self, event_id: str) -> None:
        super().__init__("event", event_id)
        self.message += (
            " among the settled events and the newest buffered ones; the buffer holds more than was"
            " searched, so ask again later"
        )


class UnreadableSecretError(GullakError):
    """A stored secret cannot be opened: GULLAK_SECRET_KEYS holds no key that it was sealed with."""

    code = "UNAVAILABLE"


class UnauthorizedError(GullakError):
    """The API key is missing, unknown or revoked."""

    code = "UNAUTHORIZED"


class ForbiddenError(GullakError):
    """The API key lacks a permission; nothing was done."""

    code = "FORBIDDEN"

    def __init__(self, permission: str) -> None:
        self.permission = permission
        super().__init__(f"the API key lacks the permission {permission!r}")


class BadSignatureError(GullakError):
    """The webhook's signature is missing, wrong, stale or from the future; nothing was stored."""

    code = "UNAUTHORIZED"


class AmbiguousAccountError(InvalidQueryError):
    """Several accounts of the provider are connected; nothing was stored."""

    def __init__(self, provider: str) -> None:
        reason = f"must name one of the {provider} accounts, as pac_…"
        super().__init__(FieldProblem("account", reason))


class UnreadableEventError(GullakError):
    """The provider's event lacks what an event of its type must hold."""

    def __init__(self, reason: str, event_type: str | None = None) -> None:
        self.event_type = event_type
        super().__init__(reason)


class InsufficientFundsError(GullakError):
    """The debit is larger than what the wallet may spend; nothing was written."""

    code = "INSUFFICIENT_WALLET_FUNDS"
    field = "amount"

    def __init__(self, wallet_id: str, balance_minor: int, amount_minor: int) -> None:
        self.wallet_id = wallet_id
        self.balance_minor = balance_minor
        self.amount_minor = amount_minor
        super().__init__(f"balance {balance_minor} does not cover a debit of {amount_minor}")


class NotRefundableError(InvalidInputError):
    """The entry is not a debit that can be refunded; nothing was written."""

    def __init__(self, what: str) -> None:
        super().__init__(FieldProblem("entry_id", f"is {what}: there is nothing to refund"))


class RefundExceedsDebitError(InvalidInputError):
    """The refund exceeds what is left of the debit; nothing was written."""

    def __init__(self, debited_minor: int, left_minor: int) -> None:
        reason = f"{left_minor} of the {debited_minor} that were debited are left to refund"
        super().__init__(FieldProblem("amount", reason))


class RefundExceedsPaymentError(InvalidInputError):
    """The refund exceeds what is left of the payment; nothing was written."""

    def __init__(self, paid_minor: int, left_minor: int) -> None:
        reason = f"{left_minor} of the {paid_minor} that were paid are left to refund"
        super().__init__(FieldProblem("amount", reason))


class UnpaidPurchaseError(InvalidInputError):
    """No payment has settled the purchase, so none can be refunded or disputed."""

    def __init__(self) -> None:
        reason = "is of a purchase that no payment has settled"
        super().__init__(FieldProblem("purchase_id", reason))


class LotRangeError(GullakError):
    """A lot would hold less than nothing, or more than was ever in it; nothing was written."""

    def __init__(self, lot_id: str, left_minor: int, moved_minor: int) -> None:
        super().__init__(f"{lot_id} has {left_minor} left and cannot be moved by {moved_minor}")


class BalanceOutOfRangeError(GullakError):
    """The balance would leave the range of a 64-bit integer; nothing was written."""

    code = "INVALID_REQUEST_BODY"
    field = "amount"

    def __init__(self, wallet_id: str) -> None:
        self.wallet_id = wallet_id
        super().__init__(f"the balance of {wallet_id} would leave the range of a 64-bit integer")


class IdempotencyConflictError(GullakError):
    """The idempotency key was used before, with other content; nothing was written."""

    code = "IDEMPOTENCY_CONFLICT"

    def __init__(self, idempotency_key: str, field: str = "idempotency_key") -> None:
        self.field = field
        super().__init__(f"idempotency key {idempotency_key!r} was used before with other content")


class TooManyRequestsError(GullakError):
    """The API key made as many requests as it may; nothing was done."""

    code = "TOO_MANY_REQUESTS"

    def __init__(
        self, retry_after_s: int, why: str = "this API key is over its rate limit"
    ) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"{why}; try again in {spoken(retry_after_s)}")


class TooManyFailedKeysError(TooManyRequestsError):
    """The address tried too many unknown API keys; this one was not checked."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s, "too many unknown API keys came from this address")


class LedgerUnavailableError(GullakError):
    """Postgres does not answer; nothing was done."""

    code = "UNAVAILABLE"

    def __init__(self, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("the ledger does not answer; try again")


class BufferFullError(TooManyRequestsError):
    """The buffer is above its high-water mark; nothing was taken."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s, "the usage buffer is full")


class BufferUnavailableError(GullakError):
    """Redis did not take the events; the caller keeps them and tries again."""

    code = "UNAVAILABLE"

    def __init__(self, cause: str, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"the usage buffer did not answer: {cause}")


class ApiUnavailableError(GullakError):
    """The API of Gullak did not take the events; the meter keeps them and tries again."""

    def __init__(self, cause: str, retry_after_s: float = 0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"the API did not take the events: {cause}")


class DurabilityError(GullakError):
    """Strict durability is configured, but Redis cannot promise that a write is on the disk."""

    code = "UNAVAILABLE"


class TooManyEndpointsError(InvalidInputError):
    """The business has as many webhook endpoints as it may have; nothing was written."""

    def __init__(self, endpoints_max: int) -> None:
        self.endpoints_max = endpoints_max
        super().__init__(FieldProblem("url", f"there are {endpoints_max} endpoints already"))


class UnresolvedHostError(GullakError):
    """The receiver's host name has no address."""


class RefusedAddressError(GullakError):
    """The receiver's host has an address that is not public."""


class GatewayUnavailableError(GullakError):
    """The outcome at the payment provider is unknown; ask again, with the same key."""

    code = "UNAVAILABLE"

    def __init__(self, provider: str, reason: str) -> None:
        self.provider = provider
        self.reason = reason
        super().__init__(f"{provider} did not tell the outcome: {reason}")


class GatewayRefusedError(GullakError):
    """The payment provider refuses the request; asking again changes nothing."""

    def __init__(self, provider: str, reason: str) -> None:
        self.provider = provider
        self.reason = reason
        super().__init__(f"{provider} refuses the request: {reason}")


class ConfigurationError(GullakError):
    """The configuration cannot work."""


class ShardMismatchError(ConfigurationError):
    """This process uses another number of shards than the buffer; nothing was buffered."""

    code = "UNAVAILABLE"

    def __init__(self, ours: int, theirs: int) -> None:
        self.ours = ours
        self.theirs = theirs
        super().__init__(
            f"the buffer holds events in {theirs} shards, this process is set to {ours}:"
            " give all processes the same number, or let the buffer run empty first"
        )


class NewerChunkError(GullakError):
    """A newer release wrote the head of a shard; it waits until this process is upgraded."""

    def __init__(self, shard: int, version: int, known: int) -> None:
        self.shard = shard
        self.version = version
        super().__init__(
            f"shard {shard} begins with a chunk of version {version}, this worker reads up to"
            f" {known}: it is left there until the workers are upgraded"
        )


class DataDirInUseError(ConfigurationError):
    """Another stack runs on this data directory."""

    def __init__(self, data_dir: str, pid: int | None) -> None:
        self.data_dir = data_dir
        self.pid = pid
        holder = f" (process {pid})" if pid else ""
        super().__init__(f"{data_dir} is in use by another gullak{holder}")


class RefusedEventError(GullakError):
    """A buffered event cannot be charged; it goes to the dead letters with this reason."""

    reason: ClassVar[str] = "refused"


class MalformedChunkError(RefusedEventError):
    """The buffered bytes are not a chunk of usage events."""

    reason = "malformed"


class UnknownCustomerError(RefusedEventError):
    """No customer of this business has this id."""

    reason = "unknown_customer"


class NoWalletError(RefusedEventError):
    """The customer has no wallet in the price's currency."""

    reason = "no_wallet"


class UnpricedEventError(RefusedEventError):
    """No meter or price says what the event costs; `meter_id` names the meter without a price."""

    def __init__(self, message: str, meter_id: str | None = None) -> None:
        self.meter_id = meter_id
        super().__init__(message)


class UnmeteredError(UnpricedEventError):
    """No meter measures the event."""

    reason = "unmetered"


class NoPriceError(UnpricedEventError):
    """A meter that the event adds to has no price at its time in a currency that applies."""

    reason = "no_price"


class BadQuantityError(RefusedEventError):
    """The property that the meter sums is not a quantity: a number from 0 to the ceiling."""

    reason = "bad_quantity"


class ConflictingEventError(RefusedEventError):
    """An event with this id was charged before, with other content."""

    reason = "conflict"


class UnpostableEventError(RefusedEventError):
    """The database refuses this event in every batch."""

    reason = "unpostable"
