"""One usage record out of JSON, whichever way it came in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from tollkeeper_ledger.web.cloud_events import record_of
from tollkeeper_ledger.web.transcode.messages import RequestError

if TYPE_CHECKING:
    from google.protobuf.message import Message


def read_record(item: Any, record: Message, *, is_event: bool) -> None:
    """Fill a usage record from parsed JSON: the contract's, or a CloudEvent.

    Raises RequestError with the field, and leaves the record empty, where it is none.
    """
    try:
        json_format.ParseDict(record_of(item) if is_event else item, record)
    except RequestError:
        record.Clear()
        raise
    except (json_format.ParseError, AttributeError, TypeError, ValueError) as error:
        record.Clear()
        raise RequestError(f"is no record: {error}") from error
