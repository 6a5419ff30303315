"""Usage records out of Kafka messages. Pure.

A message is one record: JSON as `POST /v1/usage` takes it, or a CloudEvent, structured (header `content-type`) or
binary (headers `ce_...`; source: the CloudEvents Kafka protocol binding). Who leaves id and event time out gets both
from the message's place and timestamp, which are the same each time it is read.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from tollkeeper.quota.v1 import usage_pb2

from tollkeeper_ledger.web.cloud_events import STRUCTURED
from tollkeeper_ledger.web.records import read_record
from tollkeeper_ledger.web.transcode.messages import RequestError, parsed_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VALUE_BYTES_MAX = 65_536
_EVENT_PREFIX = "ce_"
_ID_PREFIX = "k/"


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it was read."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    """When it was made or appended, in milliseconds since the Unix epoch; -1 = unknown."""
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]

    @property
    def place(self) -> str:
        """Name where it stands, for people."""
        return f"{self.topic}/{self.partition}/{self.offset}"


def record_of(message: Message) -> usage_pb2.UsageRecord:
    """Give the record of a message. Raises RequestError with the field where it is none."""
    if not message.value:
        raise RequestError("the message has no value")
    if len(message.value) > VALUE_BYTES_MAX:
        raise RequestError(f"the value has more than {VALUE_BYTES_MAX:,} bytes")
    headers = _texts(message.headers)
    parsed = parsed_json(message.value)
    event = _event_of(headers, parsed)
    record = usage_pb2.UsageRecord()
    read_record(parsed if event is None else event, record, is_event=event is not None)
    if not record.id and not record.HasField("event_time"):
        if message.timestamp_ms < 0:
            raise RequestError("neither the record nor its message says a time", field="event_time")
        record.id = id_of(message)
        record.event_time.FromMilliseconds(message.timestamp_ms)
    return record


def id_of(message: Message) -> str:
    """Give the id of a record that has none of its own.

    The timestamp is part of it, so that a topic that was made anew does not repeat the ids of the one before.
    """
    topic = message.topic.encode()
    numbers = (message.partition, message.offset, message.timestamp_ms)
    place = b"".join(number.to_bytes(8, "little", signed=True) for number in numbers)
    digest = sha256(len(topic).to_bytes(4, "little") + topic + place).digest()
    return _ID_PREFIX + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _event_of(headers: Mapping[str, str], parsed: Any) -> dict[str, Any] | None:
    """Give the CloudEvent that a message is, None where it is a plain record."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() == STRUCTURED:
        if not isinstance(parsed, dict):
            raise RequestError("an event must be a JSON object")
        return parsed
    if f"{_EVENT_PREFIX}specversion" in headers:
        named = {
            name.removeprefix(_EVENT_PREFIX): value for name, value in headers.items() if name.startswith(_EVENT_PREFIX)
        }
        return {**named, "data": parsed}
    return None


def _texts(headers: Sequence[tuple[str, bytes]]) -> dict[str, str]:
    try:
        return {name.lower(): value.decode() for name, value in headers}
    except (UnicodeDecodeError, AttributeError):
        raise RequestError("a header isn't UTF-8", field="headers") from None
