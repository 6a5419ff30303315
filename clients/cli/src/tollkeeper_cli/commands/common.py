"""What commands share: options, tenants, pages, ids."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from tollkeeper_cli.connection import CALL_TIMEOUT_S, Targets
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Output, ReportOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Entry = TypeVar("Entry")
OutputOption = Annotated[Output, typer.Option("-o", "--output", help="Form of the listing.")]
ReportOption = Annotated[ReportOutput, typer.Option("-o", "--output", "--format", help="Form of the report.")]
FileOption = Annotated[Path | None, typer.Option("--file", help="Where to write Parquet.")]
TenantOption = Annotated[str, typer.Option("--tenant", envvar="TOLLKEEPER_TENANT", help="The tenant.")]

AttributesOption = Annotated[
    list[str] | None,
    typer.Option("-a", "--attribute", metavar="NAME=VALUE", help="What the call is about; may be given again."),
]
LimitOption = Annotated[int, typer.Option("--limit", "--entries", min=1, help="At most so many.")]
AllOption = Annotated[bool, typer.Option("--all", help="All, however many.")]
PageOption = Annotated[int, typer.Option("--limit", min=1, max=1_000, help="At most so many.")]
NoteOption = Annotated[str, typer.Option("--note", help="Why, for the audit log.")]

LIMIT_DEFAULT = 100
PAGE_SIZE = 1_000
_WORDS_OF_TIME = ("now", "period_end")
_LENGTHS_S = (
    ("year", 31_536_000), ("month", 2_592_000), ("week", 604_800), ("day", 86_400), ("hour", 3600), ("minute", 60),
    ("second", 1),
)  # fmt: skip


def targets_of(context: typer.Context) -> Targets:
    """Return the servers that the command line chose."""
    targets: Targets = context.obj
    return targets


def require_tenant(tenant: str) -> str:
    """Return the tenant, or say how to give one."""
    if not tenant:
        raise UsageError("which tenant? Give --tenant NAME or set TOLLKEEPER_TENANT")
    return tenant


def parquet_file(output: ReportOutput, file: Path | None) -> Path | None:
    """Return where Parquet is to be written, None for another form. Raises UsageError: a form without its file."""
    if output is ReportOutput.PARQUET and file is None:
        raise UsageError("where to? Give --file NAME with -o parquet")
    if output is not ReportOutput.PARQUET and file is not None:
        raise UsageError("--file is where Parquet goes: give -o parquet, or send the output elsewhere with >")
    return file


def new_request_id() -> str:
    """Make an idempotency id for one run of a command."""
    return f"cli/{uuid.uuid4()}"


def pages(call: Callable[..., Any], request: Any) -> Iterator[Any]:
    """Yield the answers of a listing, page after page."""
    request.page_size = PAGE_SIZE
    while True:
        answer = call(request, timeout=CALL_TIMEOUT_S)
        yield answer
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token


def up_to(rows: Iterable[Entry], limit: int, *, everything: bool) -> list[Entry]:
    """Take the first rows of a listing, or all; that there are more is said on standard error. Reads one too many."""
    left = iter(rows)
    found = list(left if everything else islice(left, limit))
    if not everything and next(left, None) is not None:
        typer.echo(f"there are more than these {limit}: give --limit N, or --all", err=True)
    return found


def say_if_cut(answer: Any, limit: int) -> None:
    """Say on standard error that a listing without pages has more entries than were asked for."""
    if answer.more:
        known = f": give --limit, up to {PAGE_SIZE}" if limit < PAGE_SIZE else ""
        typer.echo(f"there are more than these {limit}{known}", err=True)


def name_of(enum: Any, number: int, prefix: str) -> str:
    """Return an enum value's name for people; a number that this version does not know stays a number."""
    if number not in enum.values():
        return str(number)
    name: str = enum.Name(number)
    return name.removeprefix(prefix).lower()


def length_text(seconds: int) -> str:
    """Return a window's nominal length in its largest whole unit: `minute`, `5 minutes`, `month`."""
    for name, length_s in _LENGTHS_S:
        count, rest = divmod(seconds, length_s)
        if count and not rest:
            return name if count == 1 else f"{count} {name}s"
    return ""


def span_text(milliseconds: int) -> str:
    """Return how long something lasts, rounded up to seconds, in its two largest units: `1d 4h`, `59s`."""
    seconds = -(-milliseconds // 1000)
    parts = [
        (seconds // 86_400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")
    ]  # fmt: skip
    first = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count or unit == "s") or "0s"


def pairs(values: list[str], *, what: str) -> dict[str, str]:
    """Read NAME=VALUE words."""
    found: dict[str, str] = {}
    for word in values:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageError(f"{what} {word!r} is not of the form NAME=VALUE")
        if name in found:
            raise UsageError(f"{what} {name!r} stands twice")
        found[name] = value
    return found


def whole_number(text: str, *, what: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{what} is {text!r}, expected a whole number") from None


def moment(text: str, *, what: str) -> Timestamp:
    """Read RFC 3339 text; without an offset it is UTC."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{what} is {text!r}, expected a time such as 2023-11-16T18:15:00Z") from None
    stamp = Timestamp()
    stamp.FromDatetime((at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC))
    return stamp


def in_force(at: str) -> dict[str, Any]:
    """Give the fields by which a request says when it is in force: `now`, `period_end`, or a time to come."""
    return {"at": at} if at in _WORDS_OF_TIME else {"at_time": moment(at, what="--at")}
