"""gRPC statuses as HTTP answers: `{"error": {code, status, message, details}}`. Source: AIP-193."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status

if TYPE_CHECKING:
    from collections.abc import Mapping

_HTTP_CODES: Mapping[grpc.StatusCode, int] = MappingProxyType(
    {
        grpc.StatusCode.CANCELLED: 499,
        grpc.StatusCode.INVALID_ARGUMENT: 400,
        grpc.StatusCode.FAILED_PRECONDITION: 400,
        grpc.StatusCode.OUT_OF_RANGE: 400,
        grpc.StatusCode.UNAUTHENTICATED: 401,
        grpc.StatusCode.PERMISSION_DENIED: 403,
        grpc.StatusCode.NOT_FOUND: 404,
        grpc.StatusCode.ABORTED: 409,
        grpc.StatusCode.ALREADY_EXISTS: 409,
        grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
        grpc.StatusCode.UNIMPLEMENTED: 501,
        grpc.StatusCode.UNAVAILABLE: 503,
        grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    }
)
_INTERNAL = 500
_DETAILS = (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest)

Answer = tuple[int, dict[str, Any], dict[str, str]]
"""HTTP code, body, headers."""


def answer_of(error: grpc.RpcError) -> Answer:
    """Give the HTTP answer of a failed call, with the details that it came with and `Retry-After` in whole seconds."""
    code: grpc.StatusCode = error.code()
    details, headers = [], {}
    for packed in _packed(error):
        for kind in _DETAILS:
            if packed.Is(kind.DESCRIPTOR):
                detail = kind()
                packed.Unpack(detail)
                details.append({"@type": packed.type_url, **json_format.MessageToDict(detail)})
                if isinstance(detail, error_details_pb2.RetryInfo):
                    headers["Retry-After"] = str(max(1, -(-detail.retry_delay.ToMilliseconds() // 1000)))
    return _HTTP_CODES.get(code, _INTERNAL), body_of(code.name, error.details() or "", details), headers


def body_of(status: str, message: str, details: list[dict[str, Any]]) -> dict[str, Any]:
    """Give an error's body."""
    code = _HTTP_CODES.get(grpc.StatusCode[status], _INTERNAL)
    return {"error": {"code": code, "status": status, "message": message, "details": details}}


def refusal(message: str, *, field: str = "") -> Answer:
    """Give the answer to a request that never became a call."""
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "FIELD_INVALID",
        "domain": "tollkeeper",
        "metadata": {"field": field} if field else {},
    }
    return 400, body_of("INVALID_ARGUMENT", message, [info]), {}


def _packed(error: grpc.RpcError) -> list[Any]:
    try:
        status: Any = rpc_status.from_call(error)
    except ValueError:  # the details contradict the status line
        return []
    return [] if status is None else list(status.details)
