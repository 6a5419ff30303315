"""Answer `POST /v1/usage`: one record, up to 1,000, or CloudEvents one by one or many at once.

All of them become one RecordUsage. What comes alone is answered by its HTTP code (200 recorded or a duplicate, 409 a
conflict, 400 refused); what comes as a list is 200 with a result for each.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from starlette.responses import JSONResponse, Response

from tollkeeper_ledger.web.body import BodyError
from tollkeeper_ledger.web.cloud_events import BATCHED, STRUCTURED, event_of_headers, is_binary
from tollkeeper_ledger.web.records import read_record
from tollkeeper_ledger.web.transcode.app import JSON, media_type_of, metadata_of, refused
from tollkeeper_ledger.web.transcode.errors import answer_of, body_of, refusal
from tollkeeper_ledger.web.transcode.messages import RequestError, json_of, parsed_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.message import Message
    from starlette.requests import Request

    from tollkeeper_ledger.web.body import Bodies
    from tollkeeper_ledger.web.transcode.app import Transcoder

PATH = "/v1/usage"
BODY_BYTES_MAX = 8 * 1024 * 1024
RECORDS_MAX = 1_000
_CODES = {"RECORD_OUTCOME_RECORDED": 200, "RECORD_OUTCOME_DUPLICATE": 200, "RECORD_OUTCOME_CONFLICT": 409}
_INVALID = 400


@dataclass(frozen=True, slots=True)
class Sent:
    """What one request brings."""

    items: Sequence[Any]
    is_list: bool
    is_event: bool
    acknowledgement: Any = 0
    """As it was asked for."""


class UsageEndpoint:
    """Take records in by calls of RecordUsage."""

    def __init__(self, transcoder: Transcoder, bodies: Bodies) -> None:
        self._transcoder = transcoder
        self._bodies = bodies
        self._binding = next(one for one in transcoder.bindings if one.template.text == PATH and one.verb == "POST")

    async def answer(self, request: Request) -> Response:
        """Answer one request when its records are committed."""
        kind = media_type_of(request)
        if kind not in (JSON, STRUCTURED, BATCHED):
            return refused(415, "INVALID_ARGUMENT", f"send {JSON}, {STRUCTURED} or {BATCHED}")
        try:
            body = await self._bodies.read(request, BODY_BYTES_MAX)
            metadata = metadata_of(request)
            # In a thread, so that a large body doesn't hold up heartbeats of this process.
            sent, message, problems = await asyncio.to_thread(self._read, kind, request.headers, body)
        except BodyError as error:
            return refused(error.code, error.status, str(error))
        except RequestError as error:
            code, answer, headers = refusal(str(error), field=error.field)
            return JSONResponse(answer, code, headers)
        try:
            done = await self._transcoder.made(self._binding, message, metadata)
        except grpc.RpcError as error:
            code, answer, headers = answer_of(error)
            return JSONResponse(answer, code, headers)
        results = json_of(done)["results"]
        for place, problem in problems.items():
            results[place] = _unread(place, problem)
        if sent.is_list:
            return JSONResponse({"results": results})
        return _alone(results[0])

    def _read(
        self, kind: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[Sent, Message, Mapping[int, RequestError]]:
        """Give the call's request, and what of the items is no record at all: those are sent as empty ones."""
        sent = sent_of(kind, headers, parsed_json(body))
        if not 1 <= len(sent.items) <= RECORDS_MAX:
            raise RequestError(f"1 to {RECORDS_MAX:,} records, not {len(sent.items):,}", field="records")
        request = GetMessageClass(self._binding.method.input_type)()
        try:
            json_format.ParseDict({"acknowledgement": sent.acknowledgement}, request)
        except json_format.ParseError as error:
            raise RequestError(str(error), field="acknowledgement") from None
        problems: dict[int, RequestError] = {}
        for place, item in enumerate(sent.items):
            try:
                read_record(item, request.records.add(), is_event=sent.is_event)  # type: ignore[attr-defined]
            except RequestError as error:
                problems[place] = error
        return sent, request, problems


def sent_of(kind: str, headers: Mapping[str, str], parsed: Any) -> Sent:
    """Say what a body of this media type holds. Raises RequestError."""
    if kind == BATCHED:
        if not isinstance(parsed, list):
            raise RequestError("a batch of events must be a JSON array")
        return Sent(parsed, is_list=True, is_event=True)
    if kind == STRUCTURED:
        return Sent([parsed], is_list=False, is_event=True)
    if is_binary(headers):
        return Sent([event_of_headers(headers, parsed)], is_list=False, is_event=True)
    if not isinstance(parsed, dict):
        raise RequestError('the body must be a JSON object: a record, or {"records": [...]}')
    if "records" not in parsed:
        return Sent([parsed], is_list=False, is_event=False)
    if not isinstance(parsed["records"], list) or not parsed.keys() <= {"records", "acknowledgement"}:
        raise RequestError("records must be a JSON array, beside acknowledgement at most", field="records")
    asked = parsed.get("acknowledgement", 0)
    return Sent(parsed["records"], is_list=True, is_event=False, acknowledgement=asked)


def _unread(place: int, problem: RequestError) -> dict[str, Any]:
    path = f"records[{place}]"
    return {
        "outcome": "RECORD_OUTCOME_INVALID",
        "id": "",
        "reason": "FIELD_INVALID",
        "field": f"{path}.{problem.field}" if problem.field else path,
        "message": f"{path}: {problem}",
    }


def _alone(result: dict[str, Any]) -> Response:
    """Give a single record's result; one that was not taken is an error, so that who only looks at codes knows."""
    code = _CODES.get(result["outcome"], _INVALID)
    if code == 200:  # noqa: PLR2004 - recorded
        return JSONResponse(result)
    metadata = {"field": result["field"].partition(".")[2], "id": result["id"]}
    detail = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": result["reason"] or "ALREADY_EXISTS",
        "domain": "tollkeeper",
        "metadata": {name: value for name, value in metadata.items() if value},
    }
    message = result["message"] or "another record has this id"
    status = "INVALID_ARGUMENT" if code == _INVALID else "ALREADY_EXISTS"
    return JSONResponse(body_of(status, message, [detail]), code)
