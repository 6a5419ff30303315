"""OTLP metrics as usage: `opentelemetry.proto.collector.metrics.v1.MetricsService`. Source: the OTLP specification."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

from tollkeeper_ledger.config import ConfigurationError
from tollkeeper_ledger.domain.metric_mapping import MappingError, parse_mapping
from tollkeeper_ledger.rpc.otlp_points import points_of
from tollkeeper_ledger.services.usage_input import COMMIT_RECORDS_MAX, Fate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tollkeeper_ledger.domain.metric_mapping import MetricRule
    from tollkeeper_ledger.services.usage_input import UsageInput

    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = "opentelemetry.proto.collector.metrics.v1.MetricsService"
_TOLD_CHARACTERS_MAX = 2_000


def read_rules(path: Path) -> dict[str, MetricRule]:
    """Read the mapping's file. Raises ConfigurationError."""
    try:
        return parse_mapping(path.read_text())
    except (OSError, UnicodeDecodeError, MappingError) as error:
        raise ConfigurationError(f"TOLLKEEPER_OTLP_MAPPING: {path}: {error}") from error


class MetricsService:
    """Take data points of mapped metrics in; answered when they are committed."""

    def __init__(self, usage: UsageInput, rules: Mapping[str, MetricRule]) -> None:
        self._usage = usage
        self._rules = rules

    def add_to(self, server: grpc.aio.Server) -> None:
        """Add the service to a server."""
        export: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self._export,
            request_deserializer=metrics_service_pb2.ExportMetricsServiceRequest.FromString,
            response_serializer=metrics_service_pb2.ExportMetricsServiceResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Export": export}),))

    async def _export(
        self, request: metrics_service_pb2.ExportMetricsServiceRequest, _context: Context
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        """Commit data points; those that are refused are counted, and the first ones named."""
        # In a thread, so that many points don't hold up heartbeats of this process.
        points = await asyncio.to_thread(points_of, request, self._rules)
        refused: list[str] = []
        for first in range(0, len(points), COMMIT_RECORDS_MAX):
            part = points[first : first + COMMIT_RECORDS_MAX]
            results = await self._usage.record([point.use for point in part])
            for point, result in zip(part, results, strict=True):
                if result.fate is Fate.CONFLICT:
                    refused.append(f"{point.metric}: another value of this series and time was recorded before")
                elif result.error is not None:
                    about = {name: result.error.metadata.get(name, "") for name in ("bound", "remedy")}
                    told = "; ".join(text for text in about.values() if text)
                    refused.append(f"{point.metric}: {result.error.reason}: {result.error.message} ({told})")
        answer = metrics_service_pb2.ExportMetricsServiceResponse()
        if refused:
            answer.partial_success.rejected_data_points = len(refused)
            answer.partial_success.error_message = "\n".join(dict.fromkeys(refused))[:_TOLD_CHARACTERS_MAX]
        return answer
