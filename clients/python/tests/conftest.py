"""A fake sidecar behind real gRPC, on a Unix socket and on TCP at once."""

from __future__ import annotations

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc, usage_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class FakeSidecar(quota_pb2_grpc.QuotaServiceServicer):
    """Answers as its test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.deadlines: list[float] = []
        self.answers: dict[str, Any] = {}
        self.failure: Callable[[Any], None] | None = None
        self.release_now = threading.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="tk")
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool)
        quota_pb2_grpc.add_QuotaServiceServicer_to_server(self, self._server)
        self.path = str(Path(self._folder.name) / "s.sock")
        self._server.add_insecure_port(f"unix:{self.path}")
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        """Leave."""
        self.release_now.set()
        self._server.stop(None).wait()
        self._pool.shutdown()
        self._folder.cleanup()

    def _answer(self, method: str, request: Any, context: Any, default: Any) -> Any:
        self.seen.append(request)
        self.deadlines.append(context.time_remaining())
        if self.failure is not None:
            self.failure(context)
        return self.answers.get(method, default)

    def CheckQuota(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Admit."""
        decision = decision_pb2.Decision(allowed=True, reason=decision_pb2.DECISION_REASON_ALLOWED)
        answer = quota_pb2.CheckQuotaResponse(decision=decision)
        if request.mode == quota_pb2.CHECK_MODE_RESERVE:
            answer.reservation.token = f"token of {request.request_id}"
            answer.reservation.expires_at.FromSeconds(1_700_000_000)
        return self._answer("CheckQuota", request, context, answer)

    def SettleReservation(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Settle."""
        settled = quota_pb2.SettleReservationResponse(refunded=request.quantities, record_id="r/1")
        return self._answer("SettleReservation", request, context, settled)

    def ReleaseReservation(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Release."""
        return self._answer("ReleaseReservation", request, context, quota_pb2.ReleaseReservationResponse())

    def RecordUsage(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Record."""
        results = [
            usage_pb2.RecordResult(outcome=usage_pb2.RECORD_OUTCOME_RECORDED, id=record.id)
            for record in request.records
        ]
        return self._answer("RecordUsage", request, context, usage_pb2.RecordUsageResponse(results=results))

    def GetQuota(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answer nothing but the tenant."""
        return self._answer("GetQuota", request, context, quota_pb2.GetQuotaResponse(tenant=request.tenant))

    def StreamQuota(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        """Answer checks in pairs, the later one first; tenant `bad` gets an error, `hang` nothing, `end` ends it."""
        held = None
        for request in request_iterator:
            tenant = request.check.tenant
            if tenant == "end":
                return
            if tenant == "hang":
                continue
            answer = quota_pb2.StreamQuotaResponse(tag=request.tag)
            if tenant == "bad":
                answer.error.code, answer.error.message = grpc.StatusCode.INVALID_ARGUMENT.value[0], "no"
                answer.error.reason, answer.error.field = "FIELD_INVALID", "tenant"
            else:
                answer.answer.decision.allowed = tenant != "poor"
                answer.answer.decision.subject = tenant
            if held is None and tenant.startswith("pair"):
                held = answer
                continue
            yield answer
            if held is not None:
                yield held
                held = None


def failing(code: grpc.StatusCode, reason: str = "", *, retry_s: int = 0, **metadata: str) -> Callable[[Any], None]:
    """Make a failure with details."""

    def fail(context: Any) -> None:
        status = status_pb2.Status(code=code.value[0], message=f"{reason} it is")
        if reason:
            status.details.append(any_pb2.Any())
            status.details[-1].Pack(error_details_pb2.ErrorInfo(reason=reason, domain="tollkeeper", metadata=metadata))
        if retry_s:
            status.details.append(any_pb2.Any())
            status.details[-1].Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=retry_s)))
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, status.message)

    return fail


@pytest.fixture
def sidecar() -> Iterator[FakeSidecar]:
    """Give a fake sidecar."""
    sidecar = FakeSidecar()
    yield sidecar
    sidecar.stop()
