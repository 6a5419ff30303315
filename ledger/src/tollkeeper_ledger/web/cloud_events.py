"""CloudEvents 1.0 as usage records. Source: the CloudEvents specification and its HTTP protocol binding.

| event | record |
|---|---|
| `id` and `source` | id: `ce/` and a hash of both, so that an event sent again is the same record |
| `subject`, or the extension `tenant` | tenant |
| `time` | event time; an event without one is refused |
| `data.quantities` | quantities: a list as in the contract, or an object of meter and units |
| `data.attributes` | attributes |

`type` is anything.
"""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tollkeeper_ledger.web.transcode.messages import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

STRUCTURED = "application/cloudevents+json"
BATCHED = "application/cloudevents-batch+json"
_VERSION = "1.0"
_PREFIX = "ce-"
_REQUIRED = ("id", "source", "type", "time")


def event_of_headers(headers: Mapping[str, str], data: Any) -> dict[str, Any]:
    """Give the event of a request in binary mode: attributes in headers, the body is the data."""
    named = {name.removeprefix(_PREFIX): unquote(value) for name, value in headers.items() if name.startswith(_PREFIX)}
    return {**named, "data": data}


def is_binary(headers: Mapping[str, str]) -> bool:
    """Whether a request is an event in binary mode."""
    return f"{_PREFIX}specversion" in headers


def record_of(event: Any) -> dict[str, Any]:
    """Give the usage record of an event, as the contract's JSON. Raises RequestError with the field."""
    if not isinstance(event, dict):
        raise RequestError("an event must be a JSON object")
    if event.get("specversion") != _VERSION:
        raise RequestError(f"specversion must be {_VERSION}", field="specversion")
    for name in _REQUIRED:
        if not isinstance(event.get(name), str) or not event[name]:
            raise RequestError(f"{name} must be a text that isn't empty", field=name)
    data = _data(event)
    return {
        "id": event_id(event["source"], event["id"]),
        "tenant": _tenant(event),
        "event_time": event["time"],
        "quantities": _quantities(data.get("quantities")),
        "attributes": data.get("attributes", {}),
    }


def event_id(source: str, name: str) -> str:
    """Give the record's id: the same for the same source and id, another for every other pair."""
    raw = source.encode()
    digest = sha256(len(raw).to_bytes(4, "little") + raw + name.encode()).digest()
    return "ce/" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _tenant(event: Mapping[str, Any]) -> Any:
    named = {event[name] for name in ("tenant", "subject") if isinstance(event.get(name), str)}
    if len(named) != 1:
        raise RequestError("subject, or the extension tenant, must name one tenant", field="subject")
    return named.pop()


def _data(event: Mapping[str, Any]) -> Mapping[str, Any]:
    data = event.get("data")
    if data is None and isinstance(event.get("data_base64"), str):
        try:
            data = json.loads(base64.b64decode(event["data_base64"], validate=True))
        except (ValueError, RecursionError):
            raise RequestError("data_base64 isn't JSON", field="data_base64") from None
    if not isinstance(data, dict) or not data.keys() <= {"quantities", "attributes"}:
        raise RequestError("data must be an object of quantities and, where there are any, attributes", field="data")
    return data


def _quantities(quantities: Any) -> list[Any]:
    if isinstance(quantities, dict):
        return [{"meter": meter, "units": units} for meter, units in quantities.items()]
    if not isinstance(quantities, list):
        raise RequestError("data.quantities must be a list or an object of meter and units", field="data.quantities")
    return quantities
