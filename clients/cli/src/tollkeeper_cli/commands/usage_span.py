"""Options by which commands name a span of event times, and the time zone that it is of."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.ledger.v1 import reports_pb2, reports_pb2_grpc

from tollkeeper_cli.commands.common import moment
from tollkeeper_cli.connection import CALL_TIMEOUT_S
from tollkeeper_cli.errors import UsageError

if TYPE_CHECKING:
    import grpc

_FROM = "Event time from here, such as 2026-03-01 or 2026-03-01T12:00:00Z; without an offset in the time zone"
FromOption = Annotated[str, typer.Option("--from", help=f"{_FROM}.")]
ToOption = Annotated[str, typer.Option("--to", help="Event time to here, exclusive.")]
FromMinuteOption = Annotated[str, typer.Option("--from", help=f"{_FROM}; a whole minute.")]
ToMinuteOption = Annotated[str, typer.Option("--to", help="Event time to here, exclusive; a whole minute.")]
ZoneOption = Annotated[
    str,
    typer.Option(
        help="IANA time zone of hours, days, weeks and months, and of times without an offset. Default: that of the "
        "tenant's subscription, UTC without one."
    ),
]
TimesZoneOption = Annotated[
    str,
    typer.Option(
        "--time-zone",
        help="IANA time zone of times without an offset. Default: that of the tenant's subscription, UTC without one.",
    ),
]


def set_span(
    channel: grpc.Channel,
    request: reports_pb2.QueryUsageRequest | reports_pb2.ListUsageRecordsRequest,
    *,
    start: str,
    end: str,
    time_zone: str,
) -> None:
    """Say in a request of one tenant from when to when; asks the ledger for the tenant's zone where it is needed."""
    given = [(name, text) for name, text in (("from", start), ("to", end)) if text]
    zone = time_zone
    if not zone and any(_lacks_offset(text) for _, text in given):
        nothing = reports_pb2.QueryUsageRequest(tenant=request.tenant, to=Timestamp())
        answer = reports_pb2_grpc.ReportServiceStub(channel).QueryUsage(nothing, timeout=CALL_TIMEOUT_S)
        zone = answer.time_zone
    for name, text in given:
        getattr(request, name).CopyFrom(_instant(text, zone or "UTC", what=f"--{name}"))


def local_text(text: str, zone: str) -> str:
    """Return an RFC 3339 time as the clocks of a zone show it; as it is where this machine does not know the zone."""
    if zone == "UTC":
        return text
    try:
        return datetime.fromisoformat(text).astimezone(ZoneInfo(zone)).isoformat()
    except (ValueError, OSError, ZoneInfoNotFoundError):
        return text


def _lacks_offset(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is None
    except ValueError:
        return False


def _instant(text: str, zone: str, *, what: str) -> Timestamp:
    if not _lacks_offset(text):
        return moment(text, what=what)
    try:
        at = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise UsageError(f"time zone {zone!r} is not known here: give {what} with an offset") from None
    return moment(at.isoformat(), what=what)
