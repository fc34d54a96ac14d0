"""Usage events: a refusal names field and reason; an accepted event survives Redis unchanged."""

import math
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from metering.accept import AcceptLimits, UsageEvent, record_usage
from metering.accept.validate import PROBLEMS_MAX, check_event, check_events
from metering.buffer.chunk import BufferedEvent, encode_chunk
from metering.errors import FieldProblem, InvalidInputError
from metering.ids import BusinessId
from metering.money import QUANTITY_MAX
from support.buffer_probe import decode_chunk

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
LIMITS = AcceptLimits()
BUSINESS = BusinessId("bus_1")
INT64_MAX = 2**63 - 1


class Tier(StrEnum):
    GOLD = "gold"


class Seconds(float):
    """A subclass of float, as in numpy."""


def raw_event(**changes: object) -> dict[str, object]:
    event: dict[str, object] = {
        "event_id": "evt_1",
        "customer_id": "cus_1",
        "event_name": "chat.completion",
        "timestamp": NOW,
        "metadata": {"tokens": 12, "model": "large"},
    }
    return event | changes


def problems_of(*events: Mapping[str, object], **options: object) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInputError) as refused:
        check_events(events, LIMITS, now=NOW, **options)  # type: ignore[arg-type]
    return [(problem.field, problem.reason) for problem in refused.value.problems]


BAD_NAMES = [
    ("", "is blank"),
    (" \u3000 ", "is blank"),
    ("\n", "is blank"),
    ("x" * 256, "is longer than 255 characters"),
    ("a\0b", "holds a control character or a lone surrogate"),
    ("a\tb", "holds a control character or a lone surrogate"),
    ("a\nb", "holds a control character or a lone surrogate"),
    ("a\x7fb", "holds a control character or a lone surrogate"),
    ("a\x85b", "holds a control character or a lone surrogate"),
    ("a\ud800b", "holds a control character or a lone surrogate"),
    (5, "is of type int, not a text"),
    (None, "is null, not a text"),
    (b"evt", "is of type bytes, not a text"),
]


@pytest.mark.parametrize("field", ["event_id", "customer_id", "event_name"])
@pytest.mark.parametrize(("value", "reason"), BAD_NAMES)
def test_a_bad_name_is_refused_with_field_and_reason(
    field: str, value: object, reason: str
) -> None:
    assert problems_of(raw_event(**{field: value})) == [(f"events[0].{field}", reason)]


@pytest.mark.parametrize("name", ["x", "x" * 255, "गुल्लक " * 36, "a b", "a\u200db", Tier.GOLD])
def test_a_name_up_to_the_limit_is_unchanged(name: str) -> None:
    (taken,) = check_events([raw_event(event_name=name, event_id=name)], LIMITS, now=NOW)

    assert (taken.event_name, taken.event_id) == (name, name)
    assert type(taken.event_id) is str


BAD_TIMESTAMPS = [
    (NOW.replace(tzinfo=None), "has no time zone"),
    ("2026-01-31T09:30:00", "is not RFC 3339 with a time zone, such as 2026-01-31T09:30:00Z"),
    ("2026-01-31", "is not RFC 3339 with a time zone, such as 2026-01-31T09:30:00Z"),
    ("1769851800", "is not RFC 3339 with a time zone, such as 2026-01-31T09:30:00Z"),
    ("٢٠٢٦-01-31T09:30:00Z", "is not RFC 3339 with a time zone, such as 2026-01-31T09:30:00Z"),
    ("2026-02-30T09:30:00Z", "is not a time that exists"),
    ("2026-01-31T09:30:60Z", "is not a time that exists"),
    ("0001-01-01T00:00:00+10:00", "is out of range"),
    (1769851800, "is of type int, not an RFC 3339 text or a datetime"),
    (True, "is of type bool, not an RFC 3339 text or a datetime"),
    (NOW - timedelta(days=35, microseconds=1), "is too old: more than 35 days ago"),
    (
        NOW + timedelta(seconds=300, microseconds=1),
        "is too far ahead: more than 5 minutes from now",
    ),
]


@pytest.mark.parametrize(("value", "reason"), BAD_TIMESTAMPS)
def test_a_bad_timestamp_is_refused_with_its_reason(value: object, reason: str) -> None:
    assert problems_of(raw_event(timestamp=value)) == [("events[0].timestamp", reason)]


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        (NOW, "2026-01-31T09:30:00.000000Z"),
        (NOW.astimezone(timezone(timedelta(hours=5, minutes=30))), "2026-01-31T09:30:00.000000Z"),
        ("2026-01-31T15:00:00+05:30", "2026-01-31T09:30:00.000000Z"),
        ("2026-01-31t09:30:00.5z", "2026-01-31T09:30:00.500000Z"),
        ("2026-01-31 09:30:00.123456789-00:00", "2026-01-31T09:30:00.123456Z"),
        (NOW - timedelta(days=35), "2025-12-27T09:30:00.000000Z"),
        (NOW + timedelta(seconds=300), "2026-01-31T09:35:00.000000Z"),
    ],
)
def test_a_timestamp_within_the_limits_is_kept_in_utc(value: object, wire: str) -> None:
    (taken,) = check_events([raw_event(timestamp=value)], LIMITS, now=NOW)

    assert taken.event_at == wire


def test_absent_or_null_time_and_metadata_have_defaults() -> None:
    """The vendor's SDK sends an unset optional field as null."""
    bare = {name: f"{name}_1" for name in ("event_id", "customer_id", "event_name")}
    no_time_at_all = AcceptLimits(age_max_s=60, ahead_max_s=0)

    for event in (bare, bare | {"timestamp": None, "metadata": None}):
        (taken,) = check_events([event], no_time_at_all)

        assert taken.metadata == {}


BAD_METADATA = [
    ([], "metadata", "is of type list, not an object of properties"),
    ("{}", "metadata", "is of type str, not an object of properties"),
    ({f"k{n}": n for n in range(51)}, "metadata", "has 51 properties; at most 50 are taken"),
    ({"": 1}, "metadata", "has a key that is blank: ''"),
    ({5: 1}, "metadata", "has a key of type int, not a text"),
    ({"a\0{x}": 1}, "metadata", "has a key that holds a control character or a lone surrogate"),
    ({"k" * 101: 1}, "metadata", "has a key that is longer than 100 characters"),
    ({"a": {"b": 1}}, "metadata.a", "is nested; metadata is flat"),
    ({"a": [1]}, "metadata.a", "is nested; metadata is flat"),
    ({"a": None}, "metadata.a", "is null; text, integer, double and bool are taken"),
    ({"a": b"x"}, "metadata.a", "is of type bytes; text, integer, double and bool are taken"),
    ({"a": "x" * 501}, "metadata.a", "is longer than 500 characters"),
    ({"a": "x\0"}, "metadata.a", "holds a NUL character, which Postgres cannot keep"),
    ({"a": "\udfff"}, "metadata.a", "holds a lone surrogate, which is not Unicode text"),
    ({"a": INT64_MAX + 1}, "metadata.a", "is beyond a 64-bit integer"),
    ({"a": -INT64_MAX - 2}, "metadata.a", "is beyond a 64-bit integer"),
    ({"a": math.nan}, "metadata.a", "is not a finite number"),
    ({"a": math.inf}, "metadata.a", "is not a finite number"),
    ({"a": -math.inf}, "metadata.a", "is not a finite number"),
    ({"a": 1e308}, "metadata.a", "is absurd: beyond 2^63"),
    ({"a": -(2.0**63)}, "metadata.a", "is absurd: beyond 2^63"),
]


@pytest.mark.parametrize(("metadata", "field", "reason"), BAD_METADATA)
def test_bad_metadata_is_refused_with_property_and_reason(
    metadata: object, field: str, reason: str
) -> None:
    ((named, why),) = problems_of(raw_event(metadata=metadata))

    assert named == f"events[0].{field}"
    assert why.startswith(reason)
    assert why.isprintable()


def test_metadata_values_keep_their_type_and_their_limits() -> None:
    given_values: dict[str, object] = {
        "k" * 100: "x" * 500,
        "largest": INT64_MAX,
        "smallest": -INT64_MAX - 1,
        "bool": True,
        "one": 1,
        "double": 1.0,
        "digits": "5",
        "text": "line\n\ttab गुल्लक 😀",
    }
    given_values |= {f"k{n}": n for n in range(42)}
    (taken,) = check_events([raw_event(metadata=given_values)], LIMITS, now=NOW)

    assert taken.metadata == given_values
    assert [type(value) for value in taken.metadata.values()] == [
        type(value) for value in given_values.values()
    ]


def test_a_subclass_of_a_builtin_becomes_the_builtin() -> None:
    metadata = MappingProxyType({"tier": Tier.GOLD, "latency_s": Seconds(0.25)})
    (taken,) = check_events([MappingProxyType(raw_event(metadata=metadata))], LIMITS, now=NOW)

    assert taken.metadata == {"tier": "gold", "latency_s": 0.25}
    assert {type(value) for value in taken.metadata.values()} == {str, float}
    assert decode_chunk(encode_chunk(BUSINESS, [taken])) == [taken]


def test_missing_fields_unknown_fields_and_non_objects_are_named() -> None:
    event = raw_event(currency="USD", **{"a\0b": 1})
    del event["customer_id"]

    assert problems_of(event) == [
        ("events[0].customer_id", "is missing"),
        ("events[0].currency", "is not a field of a usage event"),
        ("events[0].'a\\x00b'", "is not a field of a usage event"),
    ]
    assert problems_of([1]) == [("events[0]", "is not an object")]  # type: ignore[arg-type]


def test_every_bad_event_of_a_request_is_named() -> None:
    """Structure, age, repeated id and quantity are reported together."""
    found = problems_of(
        raw_event(),
        raw_event(event_id="evt_2", event_name=""),
        raw_event(event_id="evt_3", timestamp=NOW - timedelta(days=36)),
        raw_event(),
        raw_event(event_id="evt_5", metadata={"tokens": -1}),
        summed={"chat.completion": frozenset({"tokens"})},
    )

    assert found == [
        ("events[1].event_name", "is blank"),
        ("events[2].timestamp", "is too old: more than 35 days ago"),
        ("events[3].event_id", "is the same as that of events[0]"),
        ("events[4].metadata.tokens", "is summed by a meter, but is negative"),
    ]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-1, "is negative"),
        (-0.5, "is negative"),
        ("many", "is not a number"),
        ("-3", "is negative"),
        (True, "is not a number"),
        (int(QUANTITY_MAX) + 1, "is above 1000000000000"),
        (1e12 + 1, "is above 1000000000000"),
        ("1e13", "is above 1000000000000"),
    ],
)
def test_a_summed_property_must_be_a_quantity(value: object, reason: str) -> None:
    ((field, why),) = problems_of(
        raw_event(metadata={"tokens": value}), summed={"chat.completion": frozenset({"tokens"})}
    )

    assert (field, why) == ("events[0].metadata.tokens", f"is summed by a meter, but {reason}")


@pytest.mark.parametrize(
    "value", [0, int(QUANTITY_MAX), 0.25, 0.1 + 0.2, "0.000000000001", "12", -0.0]
)
def test_quantities_and_absent_properties_pass(value: object) -> None:
    summed = {"chat.completion": frozenset({"tokens", "absent"}), "other": frozenset({"model"})}

    assert check_events([raw_event(metadata={"tokens": value, "model": "x"})], LIMITS, summed, NOW)


def test_a_request_has_one_to_a_thousand_events() -> None:
    events = [raw_event(event_id=f"evt_{n}") for n in range(1001)]

    assert len(check_events(events[:1000], LIMITS, now=NOW)) == 1000
    for none_or_too_many in ([], events):
        reason = f"has {len(none_or_too_many)} events; 1 to 1000 are taken at once"
        assert problems_of(*none_or_too_many) == [("events", reason)]


def test_the_number_of_reported_problems_is_bounded() -> None:
    found = problems_of(*(raw_event(event_name="") for _ in range(1000)))

    assert len(found) == PROBLEMS_MAX + 1
    assert found[-1] == ("events", "has more problems than these 100")


def test_an_instance_with_changed_metadata_is_validated_again() -> None:
    event = UsageEvent(event_id="e", customer_id="c", event_name="n", timestamp=NOW)
    assert check_events([event], LIMITS, now=NOW)
    event.metadata["nested"] = {}  # type: ignore[assignment]

    assert problems_of(event)[0][0] == "events[0].metadata.nested"  # type: ignore[arg-type]


def test_an_event_is_frozen_and_does_not_share_the_callers_metadata() -> None:
    metadata: dict[str, str | int | float | bool] = {"tokens": 1}
    event = UsageEvent(event_id="e", customer_id="c", event_name="n", metadata=metadata)
    metadata["tokens"] = 2

    assert event.metadata == {"tokens": 1}
    with pytest.raises(ValidationError, match="frozen"):
        event.event_id = "other"  # type: ignore[misc]


def test_a_single_event_is_refused_without_an_index() -> None:
    with pytest.raises(InvalidInputError) as refused:
        check_event(raw_event(metadata={"a": []}), LIMITS, {})

    assert refused.value.problems == (FieldProblem("metadata.a", "is nested; metadata is flat"),)


def test_the_json_schema_lists_required_fields() -> None:
    schema = UsageEvent.model_json_schema()

    assert schema["required"] == ["event_id", "customer_id", "event_name"]
    assert schema["additionalProperties"] is False


class FakeSink:
    """Keeps the events of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[BufferedEvent]]] = []

    def append(self, business_id: BusinessId, events: list[BufferedEvent]) -> None:
        self.calls.append((business_id, events))


def test_a_request_is_appended_whole_or_not_at_all() -> None:
    sink = FakeSink()
    events = [raw_event(), raw_event(event_id="evt_2")]
    accepted = record_usage(sink, BusinessId("bus_1"), events, now=NOW)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        record_usage(sink, BusinessId("bus_1"), [*events, raw_event(event_id="")], now=NOW)  # type: ignore[arg-type]

    assert accepted.ingested_count == 2
    assert [(name, len(held)) for name, held in sink.calls] == [("bus_1", 2)]


def test_the_producer_imports_no_orm_and_no_task_queue() -> None:
    """They would slow down the start of every API process."""
    script = (
        "import sys; from metering.accept import Meter; "
        "print({'sqlalchemy', 'celery', 'kombu', 'psycopg'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )

    assert done.stdout.strip() == "set()"


words = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=255).filter(
    lambda text: not text.isspace()
)
keys = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=100).filter(
    lambda text: not text.isspace()
)
values = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=500),
    st.integers(-INT64_MAX - 1, INT64_MAX),
    st.floats(-(2.0**63), 2.0**63, exclude_min=True, exclude_max=True),
    st.booleans(),
)
moments = st.timedeltas(timedelta(days=-34), timedelta(0)).map(lambda age: NOW + age)


@given(words, words, words, moments, st.dictionaries(keys, values, max_size=50))
def test_every_accepted_event_comes_out_of_its_chunk_unchanged(
    event_id: str,
    customer_id: str,
    name: str,
    moment: datetime,
    metadata: dict[str, str | float | bool],
) -> None:
    event = UsageEvent(
        event_id=event_id,
        customer_id=customer_id,
        event_name=name,
        timestamp=moment,
        metadata=metadata,
    )
    taken = check_events([event], LIMITS, now=NOW)
    (out,) = decode_chunk(encode_chunk(BUSINESS, taken))

    assert out == taken[0]
    assert out[:3] == (event_id, customer_id, name)
    assert datetime.fromisoformat(out.event_at) == moment
    assert {key: (type(value), value) for key, value in out.metadata.items()} == {
        key: (type(value), value) for key, value in metadata.items()
    }


@given(
    st.recursive(
        st.one_of(st.none(), values, st.binary(), st.floats(), st.integers(), st.text()),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )
)
def test_any_value_is_accepted_or_refused_without_another_error(anything: object) -> None:
    for field in ("event_id", "timestamp", "metadata"):
        taken: list[BufferedEvent] = []
        with suppress(InvalidInputError):
            taken = check_events([raw_event(**{field: anything})], LIMITS, now=NOW)

        assert decode_chunk(encode_chunk(BUSINESS, taken)) == taken
