"""The fast path returns the same events as `check_events`, or none."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metering.accept.event import AcceptLimits
from metering.accept.fast_path import parse_fast
from metering.accept.validate import check_events
from metering.buffer.chunk import BufferedEvent
from metering.errors import InvalidInputError
from metering.json_keys import repeated_key

NOW = datetime.now(UTC)
TODAY = f"{NOW:%Y-%m-%d}"
ON_THE_WIRE = f"{TODAY}T12:34:56.123456Z"
LIMITS = AcceptLimits()
SUMMED = {"llm": frozenset({"tokens"})}
PLAIN = {"event_id": "e", "customer_id": "c", "event_name": "llm", "timestamp": NOW.isoformat()}


def fast(body: bytes) -> list[BufferedEvent] | None:
    columns = parse_fast(body, LIMITS, SUMMED, NOW)
    return columns and list(map(BufferedEvent, *columns))


def slow(body: bytes) -> list[BufferedEvent]:
    return check_events(orjson.loads(body)["events"], LIMITS, SUMMED)


def of(**fields: object) -> bytes:
    return orjson.dumps({"events": [{**PLAIN, **fields}]})


names = st.one_of(
    st.sampled_from(["e", "evt-1", " lead", "trail ", "", " ", "ü", "a\tb", "x" * 255, "x" * 256]),
    st.text(max_size=5),
    st.integers(-5, 5),
    st.none(),
)
times = st.one_of(
    st.datetimes(
        NOW.replace(tzinfo=None) - timedelta(days=40), NOW.replace(tzinfo=None) + timedelta(hours=1)
    ).map(lambda moment: moment.isoformat() + "Z"),
    st.sampled_from(
        [
            f"{TODAY}T00:00:00Z",
            f"{TODAY}T00:00:00.123456Z",
            f"{TODAY}T00:00:00.123456789Z",
            f"{TODAY}T00:00:00.1234567-00:00",
            f"{TODAY}T05:30:00+05:30",
            f"{TODAY}t00:00:00z",
            f"{TODAY} 00:00:00Z",
            f"{TODAY}T00:00Z",
            "2026-02-29T12:00:00Z",
            f"{TODAY}T24:00:00Z",
            f"{TODAY}T00:00:60Z",
            f"{TODAY}T00:00:00+99:00",
            "0001-01-01T00:00:00+23:59",
            f"{TODAY}T00:00:00",
            "",
        ]
    ),
    st.builds(
        lambda at, other: ON_THE_WIRE[:at] + other + ON_THE_WIRE[at + 1 :],
        st.integers(0, 26),
        st.sampled_from("0129-+:.,TZW \n٣") | st.characters(),
    ),
    st.integers(-5, 5),
    st.none(),
)
values = st.one_of(
    st.integers(-(2**65), 2**65).filter(lambda n: -(2**63) <= n < 2**64),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(max_size=5),
    st.sampled_from(["x" * 500, "x" * 501, "a\0b", 2**63 - 1, 2**63, -(2**63), 9.3e18, 1e308]),
    st.none(),
    st.lists(st.integers(-5, 5), max_size=1),
)
keys = st.one_of(st.sampled_from(["tokens", "model", "", " ", "k" * 100, "k" * 101]), st.text())
metadata = st.one_of(st.dictionaries(keys, values, max_size=4), st.none(), st.just([]))
events = st.fixed_dictionaries(
    {"event_id": names, "customer_id": names, "event_name": st.sampled_from(["llm", "search"])},
    optional={"timestamp": times, "metadata": metadata, "more": st.just(1)},
)


def without_clock(events: list[BufferedEvent]) -> list[BufferedEvent]:
    """Blank the times that came from the clock: the two paths read it separately."""
    return [event if event.time_given else event._replace(event_at="") for event in events]


@given(st.lists(events, min_size=1, max_size=3))
@example([{**PLAIN, "metadata": {"tokens": 3, "model": "large", "cached": True, "s": 0.5}}])
def test_the_fast_path_returns_the_events_of_the_slow_path(given_events: list[Any]) -> None:
    body = orjson.dumps({"events": given_events})

    taken = fast(body)

    if taken is not None:
        assert without_clock(taken) == without_clock(slow(body))


@given(st.lists(events, min_size=1, max_size=3))
def test_the_fast_path_takes_no_event_that_the_slow_path_refuses(given_events: list[Any]) -> None:
    body = orjson.dumps({"events": given_events})
    try:
        slow(body)
    except InvalidInputError:
        assert fast(body) is None


USUAL = {
    "text, integer, double, bool": of(metadata={"m": "größe", "n": -5, "d": 0.25, "b": False}),
    "no metadata": of(),
    "summed": of(metadata={"tokens": 10**6}),
    "no timestamp": orjson.dumps({"events": [{k: PLAIN[k] for k in list(PLAIN)[:3]}]}),
    "an offset": of(timestamp=f"{TODAY}T05:30:00+05:30"),
    "lower case and a space": of(timestamp=f"{TODAY} 00:00:00z"),
    "nanoseconds": of(timestamp=f"{TODAY}T00:00:00.123456789Z"),
    "empty metadata": of(metadata={}),
    "colons in texts": of(
        event_id="req:1", metadata={"a:b": ":", "url": "https://a.b:80/\u00e9\n"}
    ),
    "an offset beside none": orjson.dumps(
        {
            "events": [
                {**PLAIN, "timestamp": f"{TODAY}T05:30:00+05:30"},
                {k: PLAIN[k] for k in list(PLAIN)[:3]} | {"event_id": "f"},
            ]
        }
    ),
    "spaces around colons": of(metadata={"tokens": 5})
    .replace(b":", b" : ")
    .replace(orjson.dumps(NOW.isoformat()).replace(b":", b" : "), orjson.dumps(NOW.isoformat())),
}


@pytest.mark.parametrize("name", USUAL)
def test_the_fast_path_takes_usual_events(name: str) -> None:
    taken = fast(USUAL[name])

    assert taken is not None
    assert without_clock(taken) == without_clock(slow(USUAL[name]))


LEFT: dict[str, bytes] = {
    "not JSON": b"{",
    "not an object": b"[]",
    "a field of the body": b'{"events": [], "more": 1}',
    "no events": b'{"events": []}',
    "too many events": orjson.dumps(
        {"events": [{**PLAIN, "event_id": str(n)} for n in range(1001)]}
    ),
    "an id twice": orjson.dumps({"events": [PLAIN, PLAIN]}),
    "too old": of(timestamp="2025-01-01T00:00:00Z"),
    "too far ahead": of(timestamp=(NOW + timedelta(minutes=6)).isoformat()),
    "a sum that is negative": of(metadata={"tokens": -1}),
    "a sum with decimals": of(metadata={"tokens": 0.5}),
    "a sum that is a bool": of(metadata={"tokens": True}),
    "NaN": of().replace(b'"llm"', b'"llm","metadata":{"a":NaN}'),
    "a lone surrogate": of().replace(b'"llm"', b'"llm","metadata":{"a":"\\ud800"}'),
    "an escaped colon": of().replace(b'"llm"', b'"llm","metadata":{"a":"\\u003a"}'),
    "a field of an event twice": of().replace(b'"llm"', b'"llm","event_name":"llm"'),
    "a time twice": of().replace(b'"llm"', f'"llm","timestamp":"{ON_THE_WIRE}"'.encode()),
    "metadata twice": of().replace(b'"llm"', b'"llm","metadata":{},"metadata":{"tokens":1}'),
    "a property twice": of().replace(b'"llm"', b'"llm","metadata":{"tokens":5,"tokens" :500}'),
    "a property twice, a colon escaped": of().replace(
        b'"llm"', b'"llm","metadata":{"a":"\\u003A","tokens":5,"tokens":500}'
    ),
    "events twice": of()[:-1] + b"," + of()[1:],
    "invalid UTF-8": of().replace(b'"llm"', b'"\xff"'),
}


repeating = st.one_of(st.text(':"\\ ab', max_size=4), st.sampled_from(["tokens", "a", "b"]))


@given(st.lists(st.tuples(repeating, st.one_of(st.integers(0, 5), repeating)), max_size=4))
def test_the_fast_path_takes_no_metadata_that_gives_a_key_twice(
    pairs: list[tuple[str, int | str]],
) -> None:
    text = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in pairs)
    body = of().replace(b'"llm"', f'"llm","metadata":{{{text}}}'.encode())
    has_one_twice = len(dict(pairs)) < len(pairs)

    assert (repeated_key(body) is not None) == has_one_twice
    assert not (has_one_twice and fast(body))


@pytest.mark.parametrize("name", LEFT)
def test_the_fast_path_leaves_all_other_requests(name: str) -> None:
    assert fast(LEFT[name]) is None
