"""A command that names a thing that does not exist changes nothing, says so, and exits 1."""

import pytest

from support.command import Gullak, commands
from support.tenant import Shop, event

WALLET = ("--customer=cus_no", "--currency=USD")
# Every command that acts on a thing, by its words, with options that name one that does not exist.
NAMING: dict[tuple[str, ...], tuple[str, ...]] = {
    ("credit",): (*WALLET, "--amount=1", "--reason=x"),
    ("debit",): (*WALLET, "--amount=1", "--reason=x"),
    ("refund",): ("ent_no", "--reason=x"),
    ("replay",): ("--event-id=evt_no",),
    ("refused", "dismiss"): ("99999", "--reason=x"),
    ("keys", "revoke"): ("key_no",),
    ("customer", "erase"): ("cus_no",),
    ("wallet", "overdraft"): (*WALLET, "--limit=1"),
    ("meter", "archive"): ("mtr_no",),
    ("price", "create"): ("--meter=mtr_no", "--currency=USD", "--per-unit=1"),
    ("price", "end"): ("prc_no",),
    ("rule", "set"): (*WALLET, "--threshold=1"),
    ("rule", "delete"): ("lcr_no",),
    ("endpoint", "disable"): ("ep_no",),
    ("endpoint", "enable"): ("ep_no",),
    ("endpoint", "delete"): ("ep_no",),
    ("endpoint", "test"): ("ep_no",),
    ("endpoint", "rotate-secret"): ("ep_no",),
    ("package", "archive"): ("pkg_no",),
    ("purchase", "record"): (*WALLET, "--paid=1", "--order=o"),
    ("purchase", "create"): ("--customer=cus_no", "--package=pkg_no"),
    ("purchase", "page"): ("pur_no",),
    ("purchase", "pay"): ("pur_no",),
    ("purchase", "refund"): ("pur_no", "--refund=r"),
    ("purchase", "dispute"): ("pur_no", "--dispute=d", "--status=open"),
    ("providers", "disconnect"): ("pac_no",),
    ("providers", "replay"): ("--payment=pi_no",),
    ("checkout", "create"): (*WALLET, "--amount=1", "--key=k"),
    ("top-up", "set"): (
        *(*WALLET, "--threshold=1", "--package=pkg_no", "--payment-method=pm"),
        *("--day-cap=1", "--month-cap=1"),
    ),
    ("top-up", "delete"): WALLET,
    ("top-up", "enable"): WALLET,
    ("charge", "look-up"): ("chg_no",),
    ("charge", "fail"): ("chg_no", "--reason=x"),
    ("webhook", "replay"): ("--event=whe_no",),
    ("verify", "accept"): ("flt_no", "--reason=x"),
}
# These act on nothing that was there before.
OTHERS = {
    *(("migrate",), ("up",), ("demo",), ("env",), ("status",), ("verify",), ("events",)),
    *(("balance",), ("history",), ("lots",), ("explain",), ("refused",), ("webhook", "dead")),
    *(("providers", "connect"), ("providers", "events"), ("business", "policy")),
    *(("secrets", "new-key"), ("secrets", "rotate"), ("import",)),
}
READING = {"list", "show", "create"}


def test_every_command_that_acts_on_something_is_tried() -> None:
    known = {words for words, command in commands() if not is_group(command)} - OTHERS

    assert {words for words in known if words[-1] not in READING} <= NAMING.keys()
    assert NAMING.keys() <= known


def is_group(command: object) -> bool:
    return hasattr(command, "commands") and not getattr(command, "invoke_without_command", False)


@pytest.mark.parametrize("words", NAMING, ids=" ".join)
def test_an_unknown_thing_is_one_line_and_exits_1(
    words: tuple[str, ...], gullak: Gullak, shop: Shop
) -> None:
    business = () if words[0] == "verify" else (f"--business={shop.business_id}",)

    result = gullak(*words, *NAMING[words], *business)

    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("gullak: ")
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        ("refused", "dismiss", "--reason=x", "--event-id=evt_no"),
        ("webhook", "replay", "--endpoint=ep_no"),
        ("providers", "replay", "--event=12345"),
    ],
    ids=" ".join,
)
def test_another_way_to_name_an_unknown_thing_is_refused_too(
    options: tuple[str, ...], gullak: Gullak, shop: Shop
) -> None:
    result = gullak(*options, f"--business={shop.business_id}")

    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("gullak: no ")


def test_of_several_refused_events_all_are_dismissed_or_none(gullak: Gullak, shop: Shop) -> None:
    shop.send(event("cus_unknown"))
    shop.drain()
    number = str(gullak("refused", "--json").json[0]["refusal_id"])

    failed = gullak("refused", "dismiss", number, "99999", "--reason=x")
    waiting = gullak("refused", "--json").json
    done = gullak("refused", "dismiss", number, "--reason=x", "--json").json

    assert (failed.code, failed.err) == (1, "gullak: no refused event '99999'\n")
    assert len(waiting) == 1
    assert done == {"dismissed": 1}


def test_a_key_of_a_filter_that_is_given_twice_is_refused_by_name(
    gullak: Gullak, shop: Shop
) -> None:
    meter = ("meter", "create", "--name=n", "--event-name=e", "--unit=u")

    result = gullak(*meter, "--filter", '{"conjunction": "and", "conjunction": "or"}')

    assert (result.code, result.err) == (1, "gullak: filter.conjunction: is given twice\n")
    assert shop.rows("SELECT 1 FROM meters") == []


def test_the_name_of_an_option_is_told_without_what_checks_it(gullak: Gullak, shop: Shop) -> None:
    result = gullak("customer", "create", "--email=a@example.com", "--name=\0")

    assert "must not hold a NUL character" in result.err
    assert "[" not in result.err
    assert shop.rows("SELECT count(*) FROM customers") == [(1,)]
