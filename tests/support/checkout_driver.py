"""A payment provider in this process, and a driver for checkouts, charges and top-ups."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from threading import Lock
from typing import Literal

from sqlalchemy import text

from metering.checkpoint import Checkpoint, no_checkpoint
from metering.clock import utc_now
from metering.errors import GatewayRefusedError, GatewayUnavailableError
from metering.ids import AccountId, BusinessId, ChargeId, CheckoutId, PackageId, new_id
from metering.payment.apply import apply_payments
from metering.payment.charges.charge import ChargePolicy, run_charge
from metering.payment.charges.store import Charge, due_charges, get_charge
from metering.payment.checkouts.begin import Begun, NewCheckout, begin_checkout
from metering.payment.checkouts.checkout import Checkout, get_checkout
from metering.payment.facts import PaymentFact, note_payment
from metering.payment.top_ups.top_up import NewTopUp, TopUp, get_top_up, set_top_up, start_top_ups
from metering.payment.vendors.gateway import ChargeAnswer, ChargeRequest, GatewayAccount
from metering.purchase.packages import NewPackage, create_package
from metering.purchase.reversal_target import PaymentStatus
from support.tenant import CURRENCIES, Shop
from worker.session import Sessions

TTL_S = 3600
# Claims end at once, and the next attempt is due at once.
AT_ONCE = ChargePolicy(lease_s=0, keyed_lease_s=0, retry_s=0)


@dataclass
class Paid:
    """A payment at the provider."""

    payment_id: str
    charge: ChargeRequest
    status: Literal["pending", "succeeded", "failed"]
    failure: str | None = None
    # The amount that was paid, if it is not the requested one.
    took: int | None = None

    def answer(self) -> ChargeAnswer:
        url = (
            f"https://pay.example/{self.payment_id}" if self.charge.payment_method is None else None
        )
        return ChargeAnswer(self.status, self.payment_id, url, self.failure, self.took)


@dataclass
class Provider:
    """Keeps its payments by idempotency key, as providers do.

    The name of a saved payment method decides its behaviour: `ok`, `declined`, `pending`, `hangs`
    (it charges, and the first answer is lost), `refused`. Without one the customer pays on a page.
    """

    payments: dict[ChargeId, Paid] = field(default_factory=dict)
    calls: list[tuple[str, ChargeId]] = field(default_factory=list)
    # Called first; the caller gets its exception.
    before: Callable[[str], None] = lambda _call: None
    # The amount of every payment, if not the requested one: with a tax, or with a discount.
    takes: int | None = None
    _lock: Lock = field(default_factory=Lock)

    def __call__(self, account: GatewayAccount) -> "Provider":
        """Open the gateway of an account; it is this object."""
        assert account.provider == "stripe"
        return self

    # --- calls of the gateway ---------------------------------------------------------------

    def start(self, charge: ChargeRequest, *, is_repeated: bool) -> ChargeAnswer:
        with self._lock:
            self.calls.append(("repeat" if is_repeated else "start", charge.charge_id))
            self.before("start")
            if charge.payment_method == "refused":
                raise GatewayRefusedError("stripe", "no such payment method")
            paid = self.payments.get(charge.charge_id)
            if paid is None:
                self.payments[charge.charge_id] = paid = self._charge(charge)
                if charge.payment_method == "hangs":
                    raise GatewayUnavailableError("stripe", "its answer was lost")
            return paid.answer()

    def look_up(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer | None:
        with self._lock:
            self.calls.append(("look_up", charge.charge_id))
            self.before("look_up")
            paid = self.payments.get(charge.charge_id)
            assert payment_id in {None, paid and paid.payment_id}
            return None if paid is None else paid.answer()

    def cancel(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer:
        with self._lock:
            self.calls.append(("cancel", charge.charge_id))
            self.before("cancel")
            paid = self.payments.get(charge.charge_id)
            assert payment_id in {None, paid and paid.payment_id}
            if paid is None:
                return ChargeAnswer("failed", None, failure="cancelled")
            if paid.status == "pending":
                paid.status, paid.failure = "failed", "cancelled"
            return paid.answer()

    def _charge(self, charge: ChargeRequest) -> Paid:
        paid = Paid(new_id("pay"), charge, "succeeded", took=self.takes)
        if charge.payment_method in {None, "pending"}:
            paid.status = "pending"
        if charge.payment_method == "declined":
            paid.status, paid.failure = "failed", "card_declined"
        return paid

    # --- acts of the customer ---------------------------------------------------------------

    def end(self, charge_id: ChargeId, status: Literal["succeeded", "failed"]) -> Paid:
        with self._lock:
            paid = self.payments[charge_id]
            paid.status, paid.failure = status, "card_declined" if status == "failed" else None
            return paid

    def charged(self) -> list[int]:
        """The amount of every payment that succeeded."""
        return [
            paid.charge.amount_minor
            for paid in self.payments.values()
            if paid.status == "succeeded"
        ]


def unavailable(_call: str) -> None:
    raise GatewayUnavailableError("stripe", "it is away")


def refuses(_call: str) -> None:
    raise GatewayRefusedError("stripe", "the API key was revoked")


@dataclass
class CheckoutDriver:
    """Does the worker's steps for a business that charges through one provider account."""

    shop: Shop
    provider: Provider = field(default_factory=Provider)
    account_id: AccountId = field(default=AccountId(""))

    def __post_init__(self) -> None:
        if not self.account_id:
            self.account_id = connect(self.shop.sessions, self.shop.business_id)

    # --- checkouts --------------------------------------------------------------------------

    def new(self, amount: int = 1000, method: str | None = "ok", **more: object) -> NewCheckout:
        fields = {"amount": amount, "currency": "USD", "idempotency_key": "k1", **more}
        return NewCheckout.model_validate({"payment_method": method, **fields})

    def begin(
        self, new: NewCheckout, *, ttl_s: int = TTL_S, sessions: Sessions | None = None
    ) -> Begun:
        shop = self.shop
        with (sessions or shop.sessions).transaction() as conn:
            return begin_checkout(conn, shop.business_id, shop.customers[0], new, ttl_s=ttl_s)

    def check_out(self, amount: int = 1000, method: str | None = "ok", **more: object) -> Checkout:
        """Begin a checkout and request its payment, as the API does."""
        begun = self.begin(self.new(amount, method, **more))
        if begun.checkout.charge_id is not None:
            self.run(begun.checkout.charge_id)
        return self.checkout(begun.checkout.checkout_id)

    def checkout(self, checkout_id: CheckoutId) -> Checkout:
        with self.shop.sessions.transaction() as conn:
            return get_checkout(conn, self.shop.business_id, checkout_id)

    def expire(self, checkout_id: CheckoutId) -> None:
        """Let the time to live of a checkout end now."""
        self._change(
            "UPDATE checkouts SET expires_at = now() - interval '1 s' WHERE checkout_id = :id",
            checkout_id,
        )
        self._change("UPDATE charges SET due_at = now() WHERE checkout_id = :id", checkout_id)

    # --- charges ----------------------------------------------------------------------------

    def run(
        self,
        charge_id: ChargeId,
        *,
        policy: ChargePolicy = AT_ONCE,
        checkpoint: Checkpoint = no_checkpoint,
        sessions: Sessions | None = None,
    ) -> bool:
        transaction = (sessions or self.shop.sessions).transaction
        return run_charge(transaction, self.provider, charge_id, policy, checkpoint)

    def sweep(self, *, policy: ChargePolicy = AT_ONCE, sessions: Sessions | None = None) -> None:
        """Do the work of the sweeps for this business: start top-ups, run charges that are due."""
        self.start(sessions=sessions)
        with self.shop.sessions.transaction() as conn:
            due = due_charges(conn, 1000)
        for charge_id in due:
            if charge_id in self.charge_ids():
                self.run(charge_id, policy=policy, sessions=sessions)

    def charge_ids(self) -> list[ChargeId]:
        rows = self.shop.rows(
            f"SELECT charge_id FROM charges WHERE business_id = '{self.shop.business_id}'"
        )
        return [ChargeId(str(charge_id)) for (charge_id,) in rows]

    def charge(self, charge_id: ChargeId | None = None) -> Charge:
        """One charge; by default the newest."""
        with self.shop.sessions.transaction() as conn:
            return get_charge(conn, self.shop.business_id, charge_id or max(self.charge_ids()))

    def age(self, charge_id: ChargeId, seconds: int) -> None:
        """Make a charge older, and due."""
        self._change(
            "UPDATE charges SET due_at = now(),"
            f" created_at = created_at - interval '{seconds} s' WHERE charge_id = :id",
            charge_id,
        )

    def report(
        self,
        charge_id: ChargeId,
        status: PaymentStatus = "succeeded",
        *,
        payment_id: str | None = None,
        amount: int | None = None,
        currency: str = "USD",
        settles: bool = True,
    ) -> None:
        """Note a fact about the payment of a charge, and settle, as the inbox does."""
        charge, paid = self.charge(charge_id), self.provider.payments.get(charge_id)
        fact = PaymentFact(
            provider="stripe",
            payment_id=payment_id or (paid.payment_id if paid else f"pay_{charge_id}"),
            status=status,
            amount_minor=charge.amount_minor if amount is None else amount,
            currency=currency,
            occurred_at=utc_now(),
            charge_id=charge_id,
            failure="card_declined" if status == "failed" else None,
        )
        with self.shop.sessions.transaction() as conn:
            paid_for = note_payment(conn, self.shop.business_id, fact)
            if settles:
                apply_payments(conn, paid_for, AT_ONCE.decline_retry_s)

    # --- top-ups ----------------------------------------------------------------------------

    def package(self, price: int = 500, credit: int | None = None, **more: object) -> PackageId:
        new = NewPackage.model_validate(
            {"name": "p", "currency": "USD", "price": price, "credit": credit, **more}
        )
        with self.shop.sessions.transaction() as conn:
            return create_package(conn, self.shop.business_id, new, CURRENCIES).package_id

    def rule(
        self, threshold: int = 100, method: str = "ok", *, customer: int = 0, **more: object
    ) -> TopUp:
        """Set the rule of a customer's wallet in USD; by default it buys 500 for 500."""
        fields = {"package_id": more.pop("package_id", None) or self.package(), **more}
        caps = {"day_cap": 10_000, "month_cap": 100_000}
        new = NewTopUp.model_validate(
            {"threshold": threshold, "payment_method": method, **caps, **fields}
        )
        shop = self.shop
        with shop.sessions.transaction() as conn:
            return set_top_up(conn, shop.business_id, shop.customers[customer], "USD", new)

    def top_up_rule(self, customer: int = 0) -> TopUp:
        shop = self.shop
        with shop.sessions.transaction() as conn:
            return get_top_up(conn, shop.business_id, shop.customers[customer], "USD")

    def start(
        self, at: datetime | None = None, *, sessions: Sessions | None = None
    ) -> list[ChargeId]:
        """Start the top-ups of all businesses; return the charges of this one."""
        with (sessions or self.shop.sessions).transaction() as conn:
            started = start_top_ups(conn, 1000, at)
        mine = self.charge_ids()
        return [charge_id for charge_id in started if charge_id in mine]

    def end_back_off(self) -> None:
        """End the back-off of the rules."""
        self._change(
            "UPDATE top_up_rules SET retry_at = now() WHERE business_id = :id",
            self.shop.business_id,
        )

    def notices(self, type_: str = "topup.failed") -> list[dict[str, object]]:
        """The webhooks of a type, oldest first."""
        rows = self.shop.rows(
            f"SELECT data FROM webhook_events WHERE business_id = '{self.shop.business_id}'"
            f" AND type = '{type_}' ORDER BY webhook_event_id"
        )
        return [data for (data,) in rows if isinstance(data, dict)]

    def _change(self, statement: str, id_: str) -> None:
        with self.shop.sessions.transaction() as conn:
            conn.execute(text(statement), {"id": id_})


def connect(sessions: Sessions, business_id: BusinessId) -> AccountId:
    """Make an active provider account."""
    account_id = AccountId(new_id("pac"))
    with sessions.transaction() as conn:
        conn.execute(
            text(
                "INSERT INTO provider_accounts (account_id, business_id, provider, name)"
                " VALUES (:account_id, :business_id, 'stripe', 'Main')"
            ),
            {"account_id": account_id, "business_id": business_id},
        )
    return account_id
