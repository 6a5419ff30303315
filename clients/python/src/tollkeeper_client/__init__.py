"""Asks the Tollkeeper sidecar: check, reserve and settle, record.

>>> with Client() as client:                                        # doctest: +SKIP
...     decision = client.check("acme", {"requests": 1})
...     with client.reserve("acme", {"tokens": 2048}) as hold:
...         if hold.allowed:
...             hold.settle({"tokens": 731})
"""

from __future__ import annotations

from tollkeeper_client.client import AsyncClient, Client
from tollkeeper_client.errors import (
    ClientClosed,
    DeadlineExceeded,
    Denied,
    InvalidRequest,
    LedgerUnreachable,
    NotConsumedHere,
    NotFound,
    NotServed,
    PermissionDenied,
    RecordConflict,
    ReservationClosed,
    ReservationInvalid,
    SidecarError,
    SidecarFull,
    SidecarStarting,
    TollkeeperError,
    Unavailable,
)
from tollkeeper_client.hold import AsyncHold, Hold
from tollkeeper_client.ids import uuid7
from tollkeeper_client.results import (
    Acknowledgement,
    Decision,
    Detail,
    Enforcement,
    LimitKind,
    LimitState,
    Outcome,
    Quota,
    Reason,
    RecordResult,
    Release,
    Reserved,
    Settlement,
    UsageRecord,
)
from tollkeeper_client.stream import CheckStream

__all__ = [
    "Acknowledgement",
    "AsyncClient",
    "AsyncHold",
    "CheckStream",
    "Client",
    "ClientClosed",
    "DeadlineExceeded",
    "Decision",
    "Denied",
    "Detail",
    "Enforcement",
    "Hold",
    "InvalidRequest",
    "LedgerUnreachable",
    "LimitKind",
    "LimitState",
    "NotConsumedHere",
    "NotFound",
    "NotServed",
    "Outcome",
    "PermissionDenied",
    "Quota",
    "Reason",
    "RecordConflict",
    "RecordResult",
    "Release",
    "ReservationClosed",
    "ReservationInvalid",
    "Reserved",
    "Settlement",
    "SidecarError",
    "SidecarFull",
    "SidecarStarting",
    "TollkeeperError",
    "Unavailable",
    "UsageRecord",
    "uuid7",
]
