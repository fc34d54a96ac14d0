"""Checkouts, top-up rules and charges on the command line."""

from typing import Any

import pytest

from support.checkout_driver import AT_ONCE, CheckoutDriver, unavailable
from support.command import Gullak
from support.tenant import Shop


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    """One database for all tests here: each has a business of its own."""
    return module_database_url


@pytest.fixture
def gullak(charging_gullak: Gullak) -> Gullak:
    return charging_gullak


def of(driver: CheckoutDriver) -> tuple[str, ...]:
    return "--business", driver.shop.business_id


def account(driver: CheckoutDriver) -> tuple[str, ...]:
    return (*of(driver), "--customer", driver.shop.customers[0], "--currency=USD")


def check_out(gullak: Gullak, driver: CheckoutDriver, method: str = "ok") -> Any:
    method_option = f"--payment-method={method}"
    return gullak(
        *("checkout", "create", *account(driver), "--amount=1000", "--key=k1"),
        *(method_option, "--json"),
    ).json


def test_a_checkout_is_made_shown_and_listed(
    gullak: Gullak, shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(300)

    made = check_out(gullak, driver)

    assert (made["status"], made["credit_minor"], made["payment_minor"]) == ("completed", 300, 700)
    assert gullak("checkout", "show", made["checkout_id"], *of(driver), "--json").json == made
    listed = gullak("checkout", "list", "--customer", shop.customers[0], *of(driver))
    assert "300 (3.00 USD)" in listed.out
    assert "700 (7.00 USD)" in listed.out
    assert check_out(gullak, driver) == made


def test_a_rule_is_set_shown_enabled_listed_and_deleted(
    gullak: Gullak, driver: CheckoutDriver
) -> None:
    rule = (
        *("top-up", "set", *account(driver), "--threshold=100", "--package", driver.package()),
        *("--payment-method=declined", "--day-cap=1000", "--month-cap=5000", "--declines-max=1"),
    )
    assert gullak(*rule).code == 0
    driver.sweep()
    shown = gullak("top-up", "show", *account(driver), "--json").json

    assert (shown["declines"], shown["disabled_reason"]) == (1, "too_many_declines")
    assert gullak("top-up", "enable", *account(driver)).code == 0
    (listed,) = gullak("top-up", "list", *of(driver), "--json").json
    assert listed["disabled_at"] is None
    assert gullak("top-up", "delete", *account(driver)).code == 0
    assert gullak("top-up", "show", *account(driver)).err.startswith("gullak: no top-up rule")


def test_a_bad_rule_is_refused_in_one_line(gullak: Gullak, driver: CheckoutDriver) -> None:
    result = gullak(
        *("top-up", "set", *account(driver), "--threshold=100", "--package", driver.package()),
        *("--payment-method=ok", "--day-cap=1", "--month-cap=1"),
    )

    assert (result.code, result.err) == (
        1,
        "gullak: day_cap: is below the price of one package, 500\n",
    )


def test_a_parked_charge_is_listed_and_looked_up(
    gullak: Gullak, shop: Shop, driver: CheckoutDriver
) -> None:
    checkout = check_out(gullak, driver, "hangs")
    charge = checkout["charge_id"]
    driver.age(charge, AT_ONCE.ask_for_s + 1)
    driver.sweep()

    (parked,) = gullak("charge", "list", "--parked", *of(driver), "--json").json
    assert (parked["charge_id"], parked["is_parked"]) == (charge, True)
    assert "new, parked" in gullak("charge", "list", *of(driver)).out
    assert gullak("charge", "look-up", charge, *of(driver)).out == f"{charge}: succeeded\n"
    assert gullak("charge", "list", "--parked", *of(driver), "--json").json == []
    assert driver.checkout(checkout["checkout_id"]).status == "completed"
    assert shop.faults() == []


def test_a_parked_charge_without_a_payment_is_failed(
    gullak: Gullak, shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(300)
    driver.provider.before = unavailable
    charge = check_out(gullak, driver)["charge_id"]
    driver.age(charge, AT_ONCE.ask_for_s + 1)
    driver.sweep()
    driver.provider.before = lambda _call: None

    looked = gullak("charge", "look-up", charge, *of(driver)).out
    failed = gullak("charge", "fail", charge, "--reason=not in their list", *of(driver))

    assert "the provider knows of no such charge" in looked
    assert failed.code == 0
    assert shop.wallet().balance_minor == 300
    assert gullak("charge", "fail", charge, "--reason=x", *of(driver)).err == (
        "gullak: charge: has ended: failed\n"
    )
