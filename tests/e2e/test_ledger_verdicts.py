"""What a caller hears who waits for the ledger: the ledger's verdict on each record, whoever recorded it first."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.quota.v1 import quota_pb2_grpc, usage_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from platform_support import Platform

TENANT = "code"
RECORDED = usage_pb2.RECORD_OUTCOME_RECORDED
DUPLICATE = usage_pb2.RECORD_OUTCOME_DUPLICATE
CONFLICT = usage_pb2.RECORD_OUTCOME_CONFLICT


def outcomes(target: str, records: Sequence[tuple[str, int]], at: Timestamp) -> list[int]:
    """Record (id, units) pairs in one call that waits for the ledger; give the outcome of each."""
    request = usage_pb2.RecordUsageRequest(
        records=[
            usage_pb2.UsageRecord(
                id=name, tenant=TENANT, event_time=at, quantities=[usage_pb2.Quantity(meter="tokens", units=units)]
            )
            for name, units in records
        ],
        acknowledgement=usage_pb2.ACKNOWLEDGEMENT_LEDGER,
    )
    with grpc.insecure_channel(target, options=[("grpc.default_authority", "localhost")]) as channel:
        answer = quota_pb2_grpc.QuotaServiceStub(channel).RecordUsage(request, timeout=120)
    return [result.outcome for result in answer.results]


def test_who_waits_for_the_ledger_hears_its_verdict(platform: Platform, more_sidecars: Sequence[str]) -> None:
    """Records that another sidecar recorded first are DUPLICATE or CONFLICT, never RECORDED, and so are repeats."""
    at = Timestamp(seconds=int(time.time()))
    same, other, fresh = (f"verdict-{name}-{uuid.uuid4()}" for name in ("same", "other", "fresh"))
    assert outcomes(platform.target, [(same, 1), (other, 1)], at) == [RECORDED, RECORDED]
    sent = [(same, 1), (other, 2), (fresh, 3)]
    assert outcomes(more_sidecars[0], sent, at) == [DUPLICATE, CONFLICT, RECORDED]
    assert outcomes(more_sidecars[0], sent, at) == [DUPLICATE, CONFLICT, DUPLICATE]
    # What this sidecar took for the record's content was refused: only the ledger knows which one stands.
    assert outcomes(more_sidecars[0], [(other, 1)], at) == [DUPLICATE]
