"""Answer `POST /v1/metrics`: OTLP over HTTP, as protobuf or JSON. The call itself is the gRPC one."""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from grpc_status import rpc_status
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from starlette.responses import JSONResponse, Response

from tollkeeper_ledger.web.body import BodyError
from tollkeeper_ledger.web.transcode.app import JSON, media_type_of, metadata_of, refused
from tollkeeper_ledger.web.transcode.errors import answer_of
from tollkeeper_ledger.web.transcode.messages import RequestError

if TYPE_CHECKING:
    from starlette.requests import Request

    from tollkeeper_ledger.web.body import Bodies

PATH = "/v1/metrics"
PROTOBUF = "application/x-protobuf"
BODY_BYTES_MAX = 8 * 1024 * 1024
"""Also of what a compressed body becomes; less a margin it is what a gRPC message may be."""
_METHOD = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
_CALL_SECONDS_MAX = 60.0
_GZIP_WINDOW = 31


class MetricsEndpoint:
    """Take metrics in by calls of the collector's own service."""

    def __init__(self, channel: grpc.aio.Channel, bodies: Bodies) -> None:
        self._channel = channel
        self._bodies = bodies

    async def answer(self, request: Request) -> Response:
        """Answer one export when its points are committed."""
        kind = media_type_of(request)
        if kind not in (JSON, PROTOBUF):
            return refused(415, "INVALID_ARGUMENT", f"send {PROTOBUF} or {JSON}")
        try:
            body = await self._bodies.read(request, BODY_BYTES_MAX)
            metadata = metadata_of(request)
            encoding = request.headers.get("content-encoding", "")
            # In a thread, so that a large body doesn't hold up heartbeats of this process.
            message = await asyncio.to_thread(_read, body, kind, encoding)
        except BodyError as error:
            return refused(error.code, error.status, str(error))
        except RequestError as error:
            return refused(400, "INVALID_ARGUMENT", str(error))
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, Any] = self._channel.unary_unary(
            _METHOD, response_deserializer=metrics_service_pb2.ExportMetricsServiceResponse.FromString
        )
        try:
            done = await call(message, timeout=_CALL_SECONDS_MAX, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return _failed(error, kind)
        if kind == JSON:
            return JSONResponse(json_format.MessageToDict(done))
        return Response(done.SerializeToString(), media_type=PROTOBUF)


def _read(body: bytes, kind: str, encoding: str) -> bytes:
    """Give the request's wire bytes. Raises RequestError, BodyError."""
    plain = _plain(body, encoding)
    message = metrics_service_pb2.ExportMetricsServiceRequest()
    try:
        if kind == JSON:
            # OTLP: receivers ignore what they don't know.
            json_format.Parse(plain, message, ignore_unknown_fields=True)
            return message.SerializeToString()
        message.ParseFromString(plain)
    except (json_format.ParseError, DecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise RequestError(f"the body is no ExportMetricsServiceRequest: {error}") from None
    return plain


def _plain(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise RequestError(f"the content encoding {encoding[:40]!r} is not known; send gzip or none")
    unpacker = zlib.decompressobj(_GZIP_WINDOW)
    try:
        plain = unpacker.decompress(body, BODY_BYTES_MAX + 1)
    except zlib.error as error:
        raise RequestError(f"the body is not gzip: {error}") from None
    if len(plain) > BODY_BYTES_MAX:
        raise BodyError(413, "INVALID_ARGUMENT", f"the body unpacks to more than {BODY_BYTES_MAX:,} bytes")
    if not unpacker.eof:
        raise RequestError("the body is not gzip: it ends too early")
    return plain


def _failed(error: grpc.aio.AioRpcError, kind: str) -> Response:
    """Give a failed call's status in the form of the request, as OTLP wants it."""
    code, answer, headers = answer_of(error)
    if kind == JSON:
        return JSONResponse(answer, code, headers)
    status = rpc_status.from_call(error)
    if status is None:
        status = status_pb2.Status(code=error.code().value[0], message=error.details())
    return Response(status.SerializeToString(), code, headers, media_type=PROTOBUF)
