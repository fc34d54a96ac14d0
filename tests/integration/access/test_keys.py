import pytest
from sqlalchemy import Connection, text

from metering.access.keys import (
    PERMISSIONS,
    ApiKey,
    NewKey,
    Permission,
    Principal,
    authenticate,
    create_key,
    list_keys,
    note_use,
    revoke_key,
)
from metering.errors import InvalidInputError, NotFoundError, UnauthorizedError
from metering.ids import BusinessId, KeyId
from support.command import Gullak
from support.tenant import Shop
from worker.settings import Settings

PREFIX_CHARS = len("gk_") + 12


@pytest.fixture
def gullak(
    config: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Gullak:
    return Gullak.on(config, monkeypatch, capsys)


def make(shop: Shop, *scopes: Permission, name: str = "server") -> NewKey:
    with shop.sessions.transaction() as conn:
        return create_key(conn, shop.business_id, name, scopes or PERMISSIONS)


def authenticated(shop: Shop, key: str) -> Principal:
    with shop.sessions.transaction() as conn:
        return authenticate(conn, key)


def listed(shop: Shop) -> list[ApiKey]:
    with shop.sessions.transaction() as conn:
        return list_keys(conn, shop.business_id)


def revoke(shop: Shop, key_id: KeyId) -> None:
    with shop.sessions.transaction() as conn:
        revoke_key(conn, shop.business_id, key_id)


def use(shop: Shop, key: str) -> None:
    with shop.sessions.transaction() as conn:
        note_use(conn, authenticate(conn, key))


def other(shop: Shop) -> Shop:
    return Shop.open(shop.sessions, shop.buffer, name="Other")


def become_edge(conn: Connection) -> None:
    conn.execute(text("SELECT set_config('role', 'gullak_api', true)"))


def keys_seen(conn: Connection) -> int:
    return int(conn.execute(text("SELECT count(*) FROM api_keys")).scalar_one())


# --- making a key ---------------------------------------------------------------------------------


def test_a_created_key_has_its_business_and_permissions(shop: Shop) -> None:
    made = make(shop, "read", "ingest")

    principal = authenticated(shop, made.key)

    assert principal == Principal(made.key_id, shop.business_id, frozenset({"ingest", "read"}))


def test_only_the_hash_of_a_secret_is_stored(shop: Shop) -> None:
    made = make(shop)
    secret = made.key[PREFIX_CHARS + 1 :]

    ((row, secret_hash),) = shop.rows("SELECT api_keys::text, secret_hash FROM api_keys")

    assert len(secret) == 43
    assert secret not in str(row)
    assert isinstance(secret_hash, bytes)
    assert secret.encode() not in secret_hash
    assert secret not in repr(made)


@pytest.mark.parametrize("name", ["", " \t", "n" * 256, "a\0b"])
def test_an_unprintable_name_is_refused(shop: Shop, name: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        make(shop, name=name)

    assert [problem.field for problem in refused.value.problems] == ["name"]
    assert listed(shop) == []


@pytest.mark.parametrize("scopes", [(), ("admin",), ("read", "READ")])
def test_an_empty_or_unknown_permission_is_refused(
    shop: Shop, scopes: tuple[Permission, ...]
) -> None:
    with shop.sessions.transaction() as conn, pytest.raises(InvalidInputError) as refused:
        create_key(conn, shop.business_id, "server", scopes)

    assert [problem.field for problem in refused.value.problems] == ["scopes"]
    assert listed(shop) == []


def test_an_unknown_business_gets_no_key(shop: Shop) -> None:
    with shop.sessions.transaction() as conn, pytest.raises(NotFoundError):
        create_key(conn, BusinessId("bus_no"), "server", PERMISSIONS)

    assert shop.rows("SELECT count(*) FROM api_keys") == [(0,)]


# --- what is refused ------------------------------------------------------------------------------


def test_the_right_prefix_with_another_secret_is_refused(shop: Shop) -> None:
    one, two = make(shop).key, make(shop).key

    with pytest.raises(UnauthorizedError):
        authenticated(shop, one[:PREFIX_CHARS] + two[PREFIX_CHARS:])


def test_an_unknown_key_is_refused(shop: Shop) -> None:
    with pytest.raises(UnauthorizedError):
        authenticated(shop, f"gk_{'a' * 12}_{'A' * 43}")


def test_a_revoked_key_is_refused_and_other_keys_still_work(shop: Shop) -> None:
    revoked, kept = make(shop), make(shop)

    revoke(shop, revoked.key_id)

    with pytest.raises(UnauthorizedError):
        authenticated(shop, revoked.key)
    assert authenticated(shop, kept.key).key_id == kept.key_id


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "{prefix}",
        "{prefix}_",
        "{key}x",
        "{key}\n",
        " {key}",
        "{key}\0",
        "{prefix}_" + "\0" * 43,
        "{prefix}_" + "é" * 43,
        "{prefix}_" + "\udcff" * 43,
        "{prefix}_" + "٣" * 43,
        "{prefix}_" + "A" * 10_000_000,
        "A" * 10_000_000,
    ],
    ids=lambda garbage: repr(garbage[:12]),
)
def test_a_malformed_key_is_refused(shop: Shop, garbage: str) -> None:
    key = make(shop).key
    brought = garbage.replace("{key}", key).replace("{prefix}", key[:PREFIX_CHARS])

    with pytest.raises(UnauthorizedError):
        authenticated(shop, brought)


# --- listing, revoking and use --------------------------------------------------------------------


def test_the_list_shows_prefixes_newest_first_and_no_secret(shop: Shop) -> None:
    old, new = make(shop, "read", name="old"), make(shop, "write", "ingest", name="new")

    keys = listed(shop)

    assert [(key.key_id, key.name) for key in keys] == [(new.key_id, "new"), (old.key_id, "old")]
    assert [key.prefix for key in keys] == [new.key[:PREFIX_CHARS], old.key[:PREFIX_CHARS]]
    assert [key.scopes for key in keys] == [("ingest", "write"), ("read",)]
    assert old.key[PREFIX_CHARS:] not in repr(keys)


def test_a_second_revocation_keeps_the_time_of_the_first(shop: Shop) -> None:
    made = make(shop)
    revoke(shop, made.key_id)
    before = listed(shop)

    revoke(shop, made.key_id)

    assert before[0].revoked_at is not None
    assert listed(shop) == before


def test_another_business_can_neither_see_nor_revoke_a_key(shop: Shop) -> None:
    made, stranger = make(shop), other(shop)

    with pytest.raises(NotFoundError):
        revoke(stranger, made.key_id)

    assert listed(stranger) == []
    assert authenticated(shop, made.key).key_id == made.key_id


def test_a_use_is_noted_once_a_minute(shop: Shop) -> None:
    made = make(shop)
    never = listed(shop)[0].last_used_at
    use(shop, made.key)
    first = listed(shop)[0].last_used_at

    use(shop, made.key)
    second = listed(shop)[0].last_used_at

    assert never is None
    assert first is not None
    assert second == first


def test_a_use_is_noted_again_after_a_minute(shop: Shop) -> None:
    made = make(shop)
    with shop.sessions.transaction() as conn:
        conn.execute(text("UPDATE api_keys SET last_used_at = now() - interval '61 s'"))

    use(shop, made.key)

    ((is_new,),) = shop.rows("SELECT last_used_at > now() - interval '30 s' FROM api_keys")
    assert is_new


def test_a_use_does_not_wait_for_a_concurrent_use(shop: Shop) -> None:
    made = make(shop)
    principal = authenticated(shop, made.key)

    with shop.sessions.transaction() as first, shop.sessions.transaction() as second:
        note_use(first, principal)
        second.execute(text("SET LOCAL lock_timeout = '100ms'"))
        note_use(second, principal)

    assert listed(shop)[0].last_used_at is not None


# --- the role of the edge -------------------------------------------------------------------------


def test_the_role_of_the_edge_finds_a_key_before_it_names_a_business_but_sees_no_row(
    shop: Shop,
) -> None:
    made = make(shop)

    with shop.sessions.transaction() as conn:
        become_edge(conn)
        principal, seen = authenticate(conn, made.key), keys_seen(conn)

    assert (principal.key_id, principal.business_id) == (made.key_id, shop.business_id)
    assert seen == 0


def test_the_role_of_the_edge_sees_only_keys_of_its_business_and_notes_their_use(
    shop: Shop,
) -> None:
    made = make(shop)
    make(other(shop))

    with shop.sessions.transaction() as conn:
        become_edge(conn)
        principal = authenticate(conn, made.key)
        conn.execute(
            text("SELECT set_config('gullak.business_id', :id, true)"), {"id": shop.business_id}
        )
        note_use(conn, principal)
        seen = keys_seen(conn)

    assert seen == 1
    assert listed(shop)[0].last_used_at is not None


# --- commands -------------------------------------------------------------------------------------


def test_the_command_prints_a_working_key_once(gullak: Gullak, shop: Shop) -> None:
    made = gullak("keys", "create", "--name=server")
    shown = gullak("keys", "list")

    key = made.out.strip()
    assert authenticated(shop, key).permissions == frozenset(PERMISSIONS)
    assert "not shown again" in made.err
    assert key not in made.err
    assert key[:PREFIX_CHARS] in shown.out
    assert key[PREFIX_CHARS:] not in shown.out


def test_the_command_makes_a_key_with_the_given_permissions(gullak: Gullak, shop: Shop) -> None:
    scopes = ("--scope=read", "--scope=ingest", "--business", shop.business_id)
    key = gullak.made("keys", "create", "--name=server", *scopes)

    (row,) = gullak("keys", "list", "--json").json

    assert row["scopes"] == ["ingest", "read"]
    assert (row["name"], row["prefix"]) == ("server", key[:PREFIX_CHARS])
    assert (row["last_used_at"], row["revoked_at"]) == (None, None)
    assert "secret_hash" not in row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--name= ",), "name: must have 1 to 255 characters"),
        (("--name=x", "--scope=admin"), "scopes: must be one or more of"),
        (("--name=x", "--business=bus_no"), "no business 'bus_no'"),
    ],
)
def test_a_bad_key_is_refused_by_field_and_not_made(
    gullak: Gullak, shop: Shop, options: tuple[str, ...], message: str
) -> None:
    result = gullak("keys", "create", *options)

    assert result.code != 0
    assert result.out == ""
    assert message in result.err
    assert listed(shop) == []


def test_the_command_revokes_a_key_permanently(gullak: Gullak, shop: Shop) -> None:
    made = make(shop)

    first, again = (gullak("keys", "revoke", made.key_id) for _ in range(2))
    unknown = gullak("keys", "revoke", "key_no")

    assert (first.code, again.code, unknown.code) == (0, 0, 1)
    assert "no API key 'key_no'" in unknown.err
    with pytest.raises(UnauthorizedError):
        authenticated(shop, made.key)
