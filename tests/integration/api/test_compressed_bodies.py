"""Every route accepts a compressed body like a plain one, and the limit holds when expanded."""

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Final

import httpx
import pytest
from starlette.exceptions import HTTPException

from api.body import expand
from support.edge import Api, description, running_api
from support.tenant import Shop
from worker.settings import Settings

BYTES_MAX: Final = 4096
METHODS: Final = ("post", "put", "patch")


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


PACKED: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": gzip.compress,
    "GZIP": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "identity": bytes,
    "": bytes,
}


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def api(module_api: Api) -> Api:
    return module_api


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    with api.client() as opened:
        yield opened


@pytest.fixture
def small(config: Settings, shop: Shop) -> Iterator[httpx.Client]:
    """An API that takes `BYTES_MAX` bytes at once."""
    with running_api(config.model_copy(update={"api_body_bytes_max": BYTES_MAX})) as url:
        bare = Api(url, shop.sessions, shop.business_id, "")
        with bare.client(bare.key_for()) as opened:
            yield opened


def bodies() -> list[tuple[str, str]]:
    """Every operation with a body, as the API describes it."""
    paths = description()["paths"]
    return [
        (method, path)
        for path, operations in sorted(paths.items())
        for method in METHODS
        if "requestBody" in operations.get(method, {})
    ]


def ingested(shop: Shop, event_id: str, *, size: int = 0) -> bytes:
    """Return a body with one event, padded with white space to `size` bytes."""
    event = {"event_id": event_id, "customer_id": shop.customers[0], "event_name": "e"}
    return json.dumps({"events": [event]}).encode().ljust(size)


def send(client: httpx.Client, body: bytes, coding: str) -> httpx.Response:
    headers = {b"Content-Type": b"application/json", b"Content-Encoding": coding.encode("latin-1")}
    return client.post("/events/ingest", content=body, headers=headers)


@pytest.mark.parametrize(("method", "path"), bodies())
def test_every_route_treats_a_compressed_body_like_a_plain_one(
    method: str, path: str, client: httpx.Client
) -> None:
    body = b'{"no_such_field": "\xe2\x82\xac"}'
    headers = {"Content-Type": "application/json"}
    target = path.replace("{provider}", "stripe").replace("{currency}", "USD")

    plain = client.request(method, target, content=body, headers=headers)
    packed = client.request(
        method,
        target,
        content=gzip.compress(body),
        headers={**headers, "Content-Encoding": "gzip"},
    )

    unlike = {"request_id": None}
    assert plain.status_code in {401, 422}
    assert packed.status_code == plain.status_code
    assert packed.json() | unlike == plain.json() | unlike


@pytest.mark.parametrize("coding", PACKED)
def test_events_are_accepted_in_every_supported_coding(
    coding: str, client: httpx.Client, shop: Shop
) -> None:
    before = shop.buffer.backlog().events

    answer = send(client, PACKED[coding](ingested(shop, f"gz-{coding}")), coding)

    assert (answer.status_code, answer.json()) == (200, {"ingested_count": 1})
    assert shop.buffer.backlog().events == before + 1


def test_a_compressed_event_is_stored_in_plain_form(client: httpx.Client) -> None:
    body = gzip.compress(json.dumps({"email": "ann@example.com", "name": "Ann €"}).encode())

    made = client.post(
        "/customers",
        content=body,
        headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
    )

    assert made.json()["name"] == "Ann €"
    assert client.get(f"/customers/{made.json()['customer_id']}").json() == made.json()


def test_several_gzip_members_are_one_body(client: httpx.Client, shop: Shop) -> None:
    body = ingested(shop, "gz-members")

    answer = send(client, gzip.compress(body[:40]) + gzip.compress(body[40:]), "gzip")

    assert answer.json() == {"ingested_count": 1}


@pytest.mark.parametrize(
    "coding", ["br", "zstd", "gzip, gzip", "identity, gzip", "compress", "g\xefzip", "x" * 1000]
)
def test_an_unsupported_coding_is_refused_and_the_supported_ones_are_named(
    coding: str, client: httpx.Client, shop: Shop
) -> None:
    before = shop.buffer.backlog().events

    answer = send(client, ingested(shop, "gz-other"), coding)

    assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert answer.headers["Accept-Encoding"] == "gzip, deflate, identity"
    assert "gzip, deflate, identity" in answer.json()["message"]
    assert len(answer.json()["message"]) < 200
    assert shop.buffer.backlog().events == before


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("damage", ["plain", "cut", "changed", "longer", "members"])
def test_a_body_in_another_coding_than_its_header_names_is_refused(
    damage: str, coding: str, client: httpx.Client, shop: Shop
) -> None:
    before = shop.buffer.backlog().events
    plain = ingested(shop, "gz-damaged")
    whole = PACKED[coding](plain)
    damaged = {
        "plain": plain,
        "cut": whole[:-1],
        "changed": whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:],
        "longer": whole + b"more",
        "members": whole + PACKED[coding](b"") * 200,
    }

    answer = send(client, damaged[damage], coding)

    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST_BODY")
    assert answer.json()["details"] == [
        {"field": "body", "reason": f"is not whole {coding}, as its header says"}
    ]
    assert shop.buffer.backlog().events == before


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize(("size", "status"), [(BYTES_MAX, 200), (BYTES_MAX + 1, 413)])
def test_the_size_limit_holds_for_the_expanded_body(
    size: int, status: int, coding: str, small: httpx.Client, shop: Shop
) -> None:
    body = PACKED[coding](ingested(shop, f"gz-{size}", size=size))

    answer = send(small, body, coding)

    assert len(body) < BYTES_MAX
    assert answer.status_code == status


def test_a_compressed_body_is_not_read_beyond_the_limit(small: httpx.Client, shop: Shop) -> None:
    body = gzip.compress(ingested(shop, "gz-long"), compresslevel=0).ljust(BYTES_MAX + 1, b"\0")

    declared = send(small, body, "gzip")
    headers = {"Content-Encoding": "gzip"}
    undeclared = small.post("/events/ingest", content=iter([body]), headers=headers)

    assert [declared.status_code, undeclared.status_code] == [413, 413]


def test_a_zip_bomb_is_refused_without_being_expanded() -> None:
    bomb = gzip.compress(bytes(200_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(HTTPException) as refused:
            expand(gzip.compress(b" ") + bomb, "gzip", 1_000_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert refused.value.status_code == 413
    assert peak < 10_000_000


def test_a_request_without_permission_is_refused_before_its_body_is_read(
    module_api_url: str,
) -> None:
    answer = httpx.post(
        f"{module_api_url}/events/ingest",
        content=b"not gzip",
        headers={"Content-Encoding": "gzip", "Authorization": "Bearer no"},
    )

    assert answer.status_code == 401
