"""Checkouts, top-up rules and charges on the command line."""

from typing import Any

import pytest

from support.checkout_driver import AT_ONCE, Till, unavailable
from support.command import Gullak
from support.tenant import Shop


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    """One database for all tests here: each has a business of its own."""
    return module_database_url


@pytest.fixture
def gullak(charging_gullak: Gullak) -> Gullak:
    return charging_gullak


def of(till: Till) -> tuple[str, ...]:
    return "--business", till.shop.business_id


def account(till: Till) -> tuple[str, ...]:
    return (*of(till), "--customer", till.shop.customers[0], "--currency=USD")


def check_out(gullak: Gullak, till: Till, method: str = "ok") -> Any:
    method_option = f"--payment-method={method}"
    return gullak(
        *("checkout", "create", *account(till), "--amount=1000", "--key=k1"),
        *(method_option, "--json"),
    ).json


def test_a_checkout_is_made_shown_and_listed(gullak: Gullak, shop: Shop, till: Till) -> None:
    shop.enter(300)

    made = check_out(gullak, till)

    assert (made["status"], made["credit_minor"], made["payment_minor"]) == ("completed", 300, 700)
    assert gullak("checkout", "show", made["checkout_id"], *of(till), "--json").json == made
    listed = gullak("checkout", "list", "--customer", shop.customers[0], *of(till))
    assert "300 (3.00 USD)" in listed.out
    assert "700 (7.00 USD)" in listed.out
    assert check_out(gullak, till) == made


def test_a_rule_lives_its_life(gullak: Gullak, till: Till) -> None:
    rule = (
        *("top-up", "set", *account(till), "--threshold=100", "--package", till.package()),
        *("--payment-method=declined", "--day-cap=1000", "--month-cap=5000", "--declines-max=1"),
    )
    assert gullak(*rule).code == 0
    till.sweep()
    shown = gullak("top-up", "show", *account(till), "--json").json

    assert (shown["declines"], shown["disabled_reason"]) == (1, "too_many_declines")
    assert gullak("top-up", "enable", *account(till)).code == 0
    (listed,) = gullak("top-up", "list", *of(till), "--json").json
    assert listed["disabled_at"] is None
    assert gullak("top-up", "delete", *account(till)).code == 0
    assert gullak("top-up", "show", *account(till)).err.startswith("gullak: no top-up rule")


def test_a_rule_that_could_not_work_is_one_line(gullak: Gullak, till: Till) -> None:
    result = gullak(
        *("top-up", "set", *account(till), "--threshold=100", "--package", till.package()),
        *("--payment-method=ok", "--day-cap=1", "--month-cap=1"),
    )

    assert (result.code, result.err) == (
        1,
        "gullak: day_cap: is below the price of one package, 500\n",
    )


def test_what_nobody_knows_the_end_of_is_listed_and_looked_up(
    gullak: Gullak, shop: Shop, till: Till
) -> None:
    checkout = check_out(gullak, till, "hangs")
    charge = checkout["charge_id"]
    till.age(charge, AT_ONCE.ask_for_s + 1)
    till.sweep()

    (parked,) = gullak("charge", "list", "--parked", *of(till), "--json").json
    assert (parked["charge_id"], parked["is_parked"]) == (charge, True)
    assert "new, parked" in gullak("charge", "list", *of(till)).out
    assert gullak("charge", "look-up", charge, *of(till)).out == f"{charge}: succeeded\n"
    assert gullak("charge", "list", "--parked", *of(till), "--json").json == []
    assert till.checkout(checkout["checkout_id"]).status == "completed"
    assert shop.faults() == []


def test_what_was_not_charged_is_let_fail(gullak: Gullak, shop: Shop, till: Till) -> None:
    shop.enter(300)
    till.provider.before = unavailable
    charge = check_out(gullak, till)["charge_id"]
    till.age(charge, AT_ONCE.ask_for_s + 1)
    till.sweep()
    till.provider.before = lambda _call: None

    looked = gullak("charge", "look-up", charge, *of(till)).out
    failed = gullak("charge", "fail", charge, "--reason=not in their list", *of(till))

    assert "the provider knows of no such charge" in looked
    assert failed.code == 0
    assert shop.wallet().balance_minor == 300
    assert gullak("charge", "fail", charge, "--reason=x", *of(till)).err == (
        "gullak: charge: has ended: failed\n"
    )
