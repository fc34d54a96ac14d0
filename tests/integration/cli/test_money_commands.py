"""Packages, purchases, lots and refunds on the command line."""

import pytest

from support.command import Gullak, Result
from support.tenant import Shop


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def of(shop: Shop) -> str:
    """The option that names the business."""
    return f"--business={shop.business_id}"


@pytest.fixture
def account(shop: Shop, of: str) -> tuple[str, str, str]:
    """The options that name a customer's wallet."""
    return "--currency=USD", f"--customer={shop.customers[0]}", of


def done(result: Result) -> Result:
    assert result.code == 0, result.err
    return result


def test_a_package_is_sold_until_it_is_archived(gullak: Gullak, of: str) -> None:
    package = gullak.made(
        *("package", "create", "--name=Starter", "--currency=USD", "--price=1000"),
        *("--credit=1100", "--valid-days=90", "--priority=20", of),
    )

    (listed,) = gullak("package", "list", "--json", of).json
    assert "1100 (11.00 USD)" in gullak("package", "list", of).out
    done(gullak("package", "archive", package, of))

    terms = {name: listed[f"{name}_minor"] for name in ("price", "credit")}
    assert terms == {"price": 1000, "credit": 1100}
    assert (listed["valid_days"], listed["priority"]) == (90, 20)
    assert gullak("package", "list", of).out == "none\n"
    assert [
        p["package_id"] for p in gullak("package", "list", "--archived", "--json", of).json
    ] == [package]
    assert gullak("package", "archive", "pkg_none", of).code == 1


def test_a_wallet_is_overdrawn_up_to_its_limit(
    gullak: Gullak, account: tuple[str, str, str], shop: Shop
) -> None:
    assert gullak("debit", *account, "--amount=50", "--reason=r").code == 1

    overdrawn = gullak("wallet", "overdraft", *account, "--limit=50")
    done(gullak("debit", *account, "--amount=50", "--reason=r"))

    assert "50 (0.50 USD)" in done(overdrawn).out
    shown = gullak("balance", shop.customers[0], account[-1], "--json").json
    (usd,) = [wallet for wallet in shown if wallet["currency"] == "USD"]
    assert (usd["balance_minor"], usd["available_minor"], usd["overdraft_limit_minor"]) == (
        -50, 0, 50,
    )  # fmt: skip
    assert shop.faults() == []


def test_a_balance_shows_what_is_frozen_and_what_can_be_spent(
    gullak: Gullak, account: tuple[str, str, str], shop: Shop, of: str
) -> None:
    purchase = gullak.made("purchase", "create", *account, "--price=1000")
    for command in (("pay", purchase), ("dispute", purchase, "--dispute=d-1", "--status=open")):
        done(gullak("purchase", *command, of))

    (usd, *_) = [
        wallet
        for wallet in gullak("balance", shop.customers[0], of, "--json").json
        if wallet["currency"] == "USD"
    ]

    assert (usd["balance_minor"], usd["frozen_minor"], usd["available_minor"]) == (1000, 1000, 0)


def test_a_purchase_is_paid_disputed_and_refunded(
    gullak: Gullak, account: tuple[str, str, str], shop: Shop, of: str
) -> None:
    purchase = gullak.made("purchase", "create", *account, "--price=1000", "--order=o-1")
    assert gullak("purchase", "list", "--status=pending", "--json", of).json != []

    states = [
        gullak("purchase", *command, of, "--json").json["purchase"]["status"]
        for command in (
            ("pay", purchase),
            ("dispute", purchase, "--dispute=d-1", "--status=open"),
            ("dispute", purchase, "--dispute=d-1", "--status=won"),
            ("refund", purchase, "--refund=r-1", "--amount=400"),
            ("refund", purchase, "--refund=r-2", "--amount=600"),
        )
    ]

    assert states == ["settled", "disputed", "settled", "partially_reversed", "reversed"]
    more = gullak("purchase", "refund", purchase, "--refund=r-3", "--amount=1", of)
    assert more.code == 1
    assert "amount: 0 of the 1000 that were paid are left to refund" in more.err
    shown = gullak("purchase", "show", purchase, of).out
    for part in ("shop o-1", "refund r-1", "dispute d-1", "400 (4.00 USD)", "won"):
        assert part in shown
    assert (shop.wallet().balance_minor, shop.faults()) == (0, [])


def test_a_purchase_of_a_package_has_the_price_of_the_package(
    gullak: Gullak, account: tuple[str, str, str], of: str
) -> None:
    package = gullak.made("package", "create", "--name=S", "--currency=USD", "--price=900", of)

    made = gullak("purchase", "create", *account[1:], f"--package={package}", "--json").json

    assert (made["price_minor"], made["package_id"]) == (900, package)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("purchase", "refund", "{purchase}", "--refund=r"), "purchase_id: "),
        (("purchase", "pay", "pur_none"), "no purchase 'pur_none'"),
        (("purchase", "pay", "{purchase}", "--amount=0"), "amount: "),
        (("refund", "ent_none", "--reason=x"), "no ledger entry 'ent_none'"),
        (("refund", "{credit}", "--reason=x"), "entry_id: is a credit"),
        (("refund", "{debit}", "--reason=x", "--amount=31"), "amount: 30 of the 30"),
        (("explain", "ent_none"), "no ledger entry 'ent_none'"),
        (("lots", "cus_none"), "no customer 'cus_none'"),
    ],
)
def test_a_refusal_is_one_line_and_exits_1(
    gullak: Gullak,
    account: tuple[str, str, str],
    shop: Shop,
    command: tuple[str, ...],
    message: str,
) -> None:
    ids = {
        "purchase": gullak.made("purchase", "create", *account, "--price=1000"),
        "credit": shop.enter(100).entry_id,
        "debit": shop.enter(30, debit=True).entry_id,
    }

    result = gullak(*(part.format(**ids) for part in command), account[2])

    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert message in result.err
    assert shop.wallet().version == 2


def test_a_credit_has_an_expiry_a_source_and_a_priority(
    gullak: Gullak, account: tuple[str, str, str], shop: Shop, of: str
) -> None:
    terms = ("--expires-at=2099-12-31T18:29:59Z", "--source=promotional", "--priority=3")
    done(gullak("credit", *account, "--amount=500", "--reason=gift", *terms))

    (lot,) = gullak("lots", shop.customers[0], "--json", of).json

    assert (lot["expires_at"], lot["source"], lot["priority"]) == (
        "2099-12-31T18:29:59.000000Z",
        "promotional",
        3,
    )
    bad = gullak("credit", *account, "--amount=1", "--reason=x", "--expires-at=2020-01-01")
    assert (bad.code, "expires_at: " in bad.err) == (1, True)


def test_lots_are_shown_with_what_is_left(gullak: Gullak, shop: Shop, of: str) -> None:
    shop.enter(100)
    shop.enter(70, debit=True)
    shop.enter(5, currency="INR")

    shown = gullak("lots", shop.customers[0], "--currency=USD", of).out

    assert "30 (0.30 USD)" in shown
    assert "INR" not in shown


def test_lots_that_are_used_up_can_be_left_out(gullak: Gullak, shop: Shop, of: str) -> None:
    shop.enter(100)
    shop.enter(100, debit=True)

    assert gullak("lots", shop.customers[0], "--only-left", of).out == "none\n"


def test_an_entry_is_explained_by_reason_batch_and_lots(
    gullak: Gullak, shop: Shop, of: str
) -> None:
    shop.meter("tokens", {"USD": "0.5"})
    shop.enter(30, reason="welcome")
    shop.charge(101)
    usage, credit = shop.entries()

    explained = gullak("explain", usage.entry_id, "--json", of).json

    assert (explained["batch_id"], explained["event_count"], explained["exact_cost"]) == (
        usage.batch_id,
        1,
        "50.5",
    )
    assert [lot["amount_minor"] for lot in explained["lots"]] == [30]
    assert explained["unpaid_minor"] == 20
    shown = gullak("explain", usage.entry_id, of).out
    assert "usage debit" in shown
    assert "20 (0.20 USD)" in shown
    assert "welcome" in gullak("explain", credit.entry_id, of).out


def test_a_debit_is_refunded_once_per_key(gullak: Gullak, shop: Shop, of: str) -> None:
    shop.enter(100)
    debit = shop.enter(60, debit=True).entry_id
    command = ("refund", debit, "--reason=timed out", "--amount=20", "--key=k", "--json", of)

    first, second = gullak(*command).json, gullak(*command).json

    assert (first["replayed"], second["replayed"]) == (False, True)
    assert (second["entry_id"], second["balance_minor"]) == (first["entry_id"], 60)
    assert "40 (0.40 USD)" in gullak("refund", debit, "--reason=all", of).out


def test_the_policy_of_a_business_is_set_and_shown(gullak: Gullak, of: str) -> None:
    policies = [
        gullak("business", "policy", *wanted, of, "--json").json["reversal_policy"]
        for wanted in ((), ("stop_at_zero",), ())
    ]

    assert policies == ["debt", "stop_at_zero", "stop_at_zero"]
    assert gullak("business", "policy", "forgive", of).code == 2
