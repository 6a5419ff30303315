"""The ASGI part: match, call, answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from google.protobuf.message import Message
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tollkeeper_ledger.web.body import BodyError
from tollkeeper_ledger.web.transcode.bindings import bindings_of
from tollkeeper_ledger.web.transcode.errors import answer_of, body_of, refusal
from tollkeeper_ledger.web.transcode.messages import RequestError, json_of, request_of, response_class

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from google.protobuf.descriptor import ServiceDescriptor
    from starlette.requests import Request

    from tollkeeper_ledger.web.body import Bodies
    from tollkeeper_ledger.web.transcode.bindings import Binding
    from tollkeeper_ledger.web.transcode.errors import Answer

    Metadata = tuple[tuple[str, str], ...]

BODY_BYTES_MAX = 1024 * 1024
_CALL_SECONDS_MAX = 60.0
_STREAM_SECONDS_MAX = 600.0
_PASSED_ON = ("authorization", "tollkeeper-actor", "traceparent", "tracestate")
JSON = "application/json"
_SAFE = ("GET", "DELETE")
"""Verbs without a body, which no form sends or which change nothing."""


class Transcoder:
    """Answer HTTP requests by calls on a channel. Concurrent; a caller who goes away cancels the call."""

    def __init__(self, channel: grpc.aio.Channel, services: Sequence[ServiceDescriptor], bodies: Bodies) -> None:
        self._channel = channel
        self._bodies = bodies
        self.bindings = bindings_of(services)

    @property
    def route(self) -> Route:
        """Give the route of everything; put others before it."""
        return Route("/{path:path}", self.answer, methods=["GET", "PUT", "POST", "DELETE", "PATCH"])

    async def answer(self, request: Request) -> Response:
        """Answer one request: 404 for an unknown path, 405 with `Allow` for an unknown verb on a known one."""
        raw_path = request.scope.get("raw_path", request.url.path.encode()).decode("ascii", errors="replace")
        raw_path = raw_path.partition("?")[0]
        allowed: list[str] = []
        for binding in self.bindings:
            try:
                path = binding.template.match(raw_path)
            except UnicodeDecodeError:
                return _response(refusal("the path isn't UTF-8"))
            if path is not None and binding.verb == request.method:
                return await self._call(binding, path, request)
            if path is not None:
                allowed.append(binding.verb)
        if allowed:
            answer = refused(405, "UNIMPLEMENTED", f"{request.method} is not served here")
            answer.headers["Allow"] = ", ".join(sorted(set(allowed)))
            return answer
        return refused(404, "NOT_FOUND", "there is nothing at this path; see /openapi.json")

    async def _call(self, binding: Binding, path: Mapping[str, str], request: Request) -> Response:
        if request.method not in _SAFE and media_type_of(request) != JSON:
            # Also keeps other sites' forms out: a browser asks before it sends this type, and is not allowed.
            return refused(415, "INVALID_ARGUMENT", f"send it with Content-Type: {JSON}")
        try:
            body = await self._bodies.read(request, BODY_BYTES_MAX)
            message = request_of(binding, path=path, query=request.query_params.multi_items(), body=body)
            metadata = metadata_of(request)
        except BodyError as error:
            return refused(error.code, error.status, str(error))
        except RequestError as error:
            return _response(refusal(str(error), field=error.field))
        return await self.call(binding, message, metadata)

    async def call(self, binding: Binding, message: Message, metadata: Metadata) -> Response:
        """Make the call and give its answer as HTTP."""
        if binding.method.server_streaming:
            return await self._stream(binding, message, metadata)
        try:
            return JSONResponse(json_of(await self.made(binding, message, metadata)))
        except grpc.RpcError as error:
            return _response(answer_of(error))

    async def made(self, binding: Binding, message: Message, metadata: Metadata) -> Message:
        """Make a call that has one answer, and give it. Raises grpc.RpcError."""
        call = self._channel.unary_unary(
            binding.full_method,
            request_serializer=_serialized,
            response_deserializer=response_class(binding.method).FromString,
        )
        return await call(message, timeout=_CALL_SECONDS_MAX, metadata=metadata)

    async def _stream(self, binding: Binding, message: Message, metadata: Metadata) -> Response:
        """Answer with one JSON object per line; an error after the first line is the last line."""
        call = self._channel.unary_stream(
            binding.full_method,
            request_serializer=_serialized,
            response_deserializer=response_class(binding.method).FromString,
        )(message, timeout=_STREAM_SECONDS_MAX, metadata=metadata)
        try:
            first = await call.read()
        except grpc.RpcError as error:
            return _response(answer_of(error))

        async def lines() -> AsyncIterator[bytes]:
            answer = first
            try:
                while isinstance(answer, Message):
                    yield _line(json_of(answer))
                    answer = await call.read()
            except grpc.RpcError as error:
                yield _line(answer_of(error)[1])
            finally:
                call.cancel()

        return StreamingResponse(lines(), media_type="application/x-ndjson")


def media_type_of(request: Request) -> str:
    """Give the media type of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def metadata_of(request: Request) -> Metadata:
    """Give what of the headers goes on with the call. Raises RequestError for what can't."""
    found = tuple((name, request.headers[name]) for name in _PASSED_ON if name in request.headers)
    for name, value in found:
        if not (value.isascii() and value.isprintable()):
            raise RequestError(f"the header {name} must be printable ASCII", field=name)
    return found


def refused(code: int, status: str, message: str) -> Response:
    """Give the answer to a request that never became a call, by HTTP code."""
    return JSONResponse(body_of(status, message, []), code)


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _response(answer: Answer) -> Response:
    code, body, headers = answer
    return JSONResponse(body, code, headers)
