"""Usage records out of Kafka messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tollkeeper_ledger.kafka.messages import VALUE_BYTES_MAX, Message, id_of, record_of
from tollkeeper_ledger.web.transcode.messages import RequestError

MADE_MS = 1_790_000_000_123
RECORD = {"tenant": "acme", "quantities": [{"meter": "requests", "units": 3}]}
EVENT = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/pods/7",
    "type": "usage",
    "subject": "acme",
    "time": "2026-11-21T10:00:00Z",
}


def message(value: Any, *, headers: tuple[tuple[str, bytes], ...] = (), **changes: Any) -> Message:
    """Give a message."""
    given: dict[str, Any] = {"topic": "usage", "partition": 2, "offset": 40, "timestamp_ms": MADE_MS, "key": None}
    told = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
    return Message(**{**given, **changes}, value=told, headers=headers)


def test_a_record_has_its_own_id_and_time() -> None:
    """What the record says of itself stands."""
    found = record_of(message({**RECORD, "id": "mine", "event_time": "2026-11-21T10:00:00.5Z"}))
    assert (found.id, found.tenant, found.event_time.ToMicroseconds() % 1_000_000) == ("mine", "acme", 500_000)
    assert [(one.meter, one.units) for one in found.quantities] == [("requests", 3)]


def test_without_them_both_come_from_the_message() -> None:
    """The same message gives the same id and time whenever it is read; every other place and time another id."""
    found = record_of(message(RECORD))
    assert found == record_of(message(RECORD))
    assert found.event_time.ToMilliseconds() == MADE_MS
    others = [{"topic": "usag"}, {"partition": 3}, {"offset": 41}, {"timestamp_ms": MADE_MS + 1}]
    assert len({found.id, *(id_of(message(RECORD, **change)) for change in others)}) == 5
    with pytest.raises(RequestError, match="time"):
        record_of(message(RECORD, timestamp_ms=-1))


def test_one_without_the_other_is_the_ledgers_to_refuse() -> None:
    """A chosen id needs a chosen time: nothing is made up beside it."""
    assert not record_of(message({**RECORD, "id": "mine"})).HasField("event_time")


def test_events_come_in_both_modes() -> None:
    """A CloudEvent is the same record whether it is in the value or in headers; the id is that of the HTTP way in."""
    data = {"quantities": {"requests": 3}}
    kind = ("content-type", b"application/cloudevents+json; charset=x")
    structured = message({**EVENT, "data": data}, headers=(kind,))
    headers = tuple((f"ce_{name}", value.encode()) for name, value in EVENT.items())
    assert record_of(structured) == record_of(message(data, headers=headers))
    assert record_of(structured).id.startswith("ce/")


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (None, ()),
        (b"", ()),
        (b"{", ()),
        (b"[1]", ()),
        (b"\xff", ()),
        (b"1" * (VALUE_BYTES_MAX + 1), ()),
        ({**RECORD, "unknown": 1}, ()),
        ({**RECORD, "quantities": 7}, ()),
        ([EVENT], (("content-type", b"application/cloudevents+json"),)),
        ({"quantities": {}}, (("ce_specversion", b"1.0"),)),
        (RECORD, (("x", b"\xff"),)),
    ],
)
def test_what_is_no_record_is_told(value: Any, headers: tuple[tuple[str, bytes], ...]) -> None:
    """Anything that is no record is an error of its own, never another one's."""
    with pytest.raises(RequestError):
        record_of(message(value, headers=headers))
