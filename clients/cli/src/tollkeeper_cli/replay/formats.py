"""Read recordings: the Azure LLM trace, web-server access logs, and JSON lines; plain or gzip."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, BinaryIO

from tollkeeper_cli.errors import FoundProblemsError, UsageError
from tollkeeper_cli.replay.model import MICROSECONDS, UNITS_MAX, MalformedLine, MalformedLineError, ReplayRequest
from tollkeeper_cli.replay.users import ZipfUsers

if TYPE_CHECKING:
    from pathlib import Path

OUTPUT_CAP_TOKENS = 2_048
MS_PER_TOKEN = 20
USER_COUNT = 200

_LINE_BYTES_MAX = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_TENANT = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ATTRIBUTE_BYTES_MAX = 128
_QUANTITIES_MAX = 16
_SOURCE_LENGTH_MAX = 60
_AZURE_COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
_AZURE_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.(\d{1,7}))?")
_COMBINED = re.compile(
    r"(?P<host>\S+) \S+ (?P<user>\S+) \[(?P<time>[^\]]+)\] "
    r'"(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{3}) (?P<bytes>\d+|-)'
    r'(?: "(?:[^"\\]|\\.)*" "(?:[^"\\]|\\.)*")?\s*'
)


class Format(StrEnum):
    """A recording's format."""

    AZURE_LLM = "azure-llm"
    COMBINED = "combined"
    JSONL = "jsonl"


class TenantField(StrEnum):
    """The field of an access log that names the tenant."""

    HOST = "host"
    USER = "user"
    PATH = "path"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How to read a recording."""

    tenant: str = ""
    """The tenant of every request, where the format has none."""
    tenant_field: TenantField = TenantField.HOST
    """Access logs without a fixed tenant: where to find it."""
    seed: str = "tollkeeper"
    """Seeds the users that the Azure trace doesn't have."""
    users: int = USER_COUNT
    id_prefix: str = "replay"
    """First part of every request id."""


_Parse = Callable[[str, int], ReplayRequest]


def read_requests(
    path: Path, form: Format, options: ReadOptions, *, on_malformed: Callable[[MalformedLine], None]
) -> Iterator[ReplayRequest]:
    """Yield the requests of a file in its order; hand lines that can't be read to `on_malformed` and go on.

    Raises UsageError when the file itself can't be read, or is not of the format.
    """
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == _GZIP_MAGIC
            plain.seek(0)
            stream: BinaryIO = gzip.GzipFile(fileobj=plain) if packed else plain  # type: ignore[assignment]
            yield from _read_lines(stream, path.name, form, options, on_malformed)
    except (OSError, EOFError) as error:
        raise UsageError(f"{path}: {error}") from error


def stop_at_malformed(line: MalformedLine) -> None:
    """Refuse the file at its first line that can't be read."""
    raise FoundProblemsError(str(line))


def _read_lines(
    stream: BinaryIO,
    source: str,
    form: Format,
    options: ReadOptions,
    on_malformed: Callable[[MalformedLine], None],
) -> Iterator[ReplayRequest]:
    """Split the stream into lines of bounded length and parse each."""
    parse = _parser(form, source, options)
    number = 0
    while raw := stream.readline(_LINE_BYTES_MAX + 1):
        number += 1
        try:
            text = _decode(stream, raw, number)
            if form is Format.AZURE_LLM and number == 1:
                _require_azure_header(text, source)
            elif text.strip():
                yield parse(text, number)
        except MalformedLineError as error:
            on_malformed(MalformedLine(source, number, str(error)))


def _decode(stream: BinaryIO, raw: bytes, number: int) -> str:
    """Turn a line's bytes into text; a line that is too long is read to its end and refused."""
    if len(raw) > _LINE_BYTES_MAX:
        while raw and not raw.endswith(b"\n"):
            raw = stream.readline(_LINE_BYTES_MAX)
        raise MalformedLineError(f"the line is longer than {_LINE_BYTES_MAX} bytes")
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise MalformedLineError(f"not UTF-8: byte {error.start + 1} of the line") from error


def _parser(form: Format, source: str, options: ReadOptions) -> _Parse:
    """Return the parser of one line."""
    prefix = f"{options.id_prefix}/{source[:_SOURCE_LENGTH_MAX]}"
    if form is Format.AZURE_LLM:
        return _azure_parser(prefix, options)
    if form is Format.COMBINED:
        return lambda text, number: _parse_combined(text, number, prefix, options)
    return lambda text, number: _parse_json(text, number, prefix, options)


def _require_azure_header(text: str, source: str) -> None:
    """Refuse a file that isn't an Azure LLM trace."""
    if text.split(",") != _AZURE_COLUMNS:
        raise UsageError(f"{source}: the first line must be {','.join(_AZURE_COLUMNS)!r}, it is {text[:80]!r}")


def _azure_parser(prefix: str, options: ReadOptions) -> _Parse:
    """Return a parser that gives each request a user and reserves the output cap, whatever was generated."""
    if not options.tenant:
        raise UsageError("the format azure-llm names no tenant: give --tenant")
    tenant = _tenant(options.tenant)
    users = ZipfUsers(seed=f"{options.seed}/{tenant}", count=options.users)

    def parse(text: str, number: int) -> ReplayRequest:
        columns = next(csv.reader(io.StringIO(text)), [])
        if len(columns) != len(_AZURE_COLUMNS):
            raise MalformedLineError(f"{len(columns)} columns, expected {len(_AZURE_COLUMNS)}")
        at_us = _azure_time(columns[0])
        context, generated = (_units(name, value) for name, value in zip(_AZURE_COLUMNS[1:], columns[1:], strict=True))
        return ReplayRequest(
            number=number,
            request_id=f"{prefix}/{number}",
            tenant=tenant,
            at_us=at_us,
            duration_us=generated * MS_PER_TOKEN * 1_000,
            reserve={"requests": 1, "context_tokens": context, "generated_tokens": OUTPUT_CAP_TOKENS},
            settle={"requests": 1, "context_tokens": context, "generated_tokens": generated},
            attributes={"user": users.draw()},
        )

    return parse


def _azure_time(text: str) -> int:
    """Read a time with up to 7 fractional digits; what is below a microsecond is cut off."""
    found = _AZURE_TIME.fullmatch(text)
    if found is None:
        raise MalformedLineError(f"TIMESTAMP is {text!r}, expected YYYY-MM-DD HH:MM:SS.fffffff")
    try:
        whole = datetime.fromisoformat(found.group(1)).replace(tzinfo=UTC)
    except ValueError as error:
        raise MalformedLineError(f"TIMESTAMP is {text!r}: {error}") from error
    fraction = (found.group(2) or "").ljust(6, "0")[:6]
    return int(whole.timestamp()) * MICROSECONDS + int(fraction)


def _parse_combined(text: str, number: int, prefix: str, options: ReadOptions) -> ReplayRequest:
    """Read one line of an access log, common or combined: one request and its bytes."""
    found = _COMBINED.fullmatch(text)
    if found is None:
        raise MalformedLineError('not an access log line: HOST IDENT USER [TIME] "REQUEST" STATUS BYTES ...')
    try:
        at = datetime.strptime(found["time"], "%d/%b/%Y:%H:%M:%S %z")
    except ValueError as error:
        raise MalformedLineError(f"time is {found['time']!r}, expected DD/Mon/YYYY:HH:MM:SS +ZZZZ") from error
    sent = _units("bytes", "0" if found["bytes"] == "-" else found["bytes"])
    units = {"requests": 1, "bytes": sent}
    return ReplayRequest(
        number=number,
        request_id=f"{prefix}/{number}",
        tenant=_tenant(options.tenant or _combined_tenant(found, options.tenant_field)),
        at_us=int(at.timestamp()) * MICROSECONDS,
        duration_us=0,
        reserve=units,
        settle=units,
        attributes=_attributes({"user": found["host"] if found["user"] == "-" else found["user"]}),
    )


def _combined_tenant(found: re.Match[str], field: TenantField) -> str:
    """Take the tenant from the chosen field."""
    if field is not TenantField.PATH:
        return found[field.value]
    words = found["request"].split(" ")
    return words[1].partition("?")[0].strip("/").partition("/")[0] if len(words) > 1 else ""


def _parse_json(text: str, number: int, prefix: str, options: ReadOptions) -> ReplayRequest:
    """Read one JSON object: time, tenant, reserve, settle, duration_ms, attributes, id."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedLineError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise MalformedLineError("not a JSON object")
    known = {"time", "tenant", "reserve", "settle", "duration_ms", "attributes", "id"}
    if unknown := sorted(set(value) - known):
        raise MalformedLineError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    reserve = _quantities("reserve", value.get("reserve"))
    own_id = value.get("id", f"{prefix}/{number}")
    if not isinstance(own_id, str) or not 0 < len(own_id.encode()) <= _ATTRIBUTE_BYTES_MAX:
        raise MalformedLineError(f"id is {own_id!r}, expected 1 to {_ATTRIBUTE_BYTES_MAX} bytes of text")
    return ReplayRequest(
        number=number,
        request_id=own_id,
        tenant=_tenant(options.tenant or value.get("tenant", "")),
        at_us=_json_time(value.get("time")),
        duration_us=_units("duration_ms", value.get("duration_ms", 0)) * 1_000,
        reserve=reserve,
        settle=_quantities("settle", value["settle"]) if "settle" in value else reserve,
        attributes=_attributes(value.get("attributes", {})),
    )


def _json_time(value: Any) -> int:
    """Read an RFC 3339 time with its offset."""
    try:
        at = datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise MalformedLineError(f"time is {value!r}, expected RFC 3339 text") from error
    if at.tzinfo is None:
        raise MalformedLineError(f"time is {value!r}, an offset or Z is missing")
    return int(at.replace(microsecond=0).timestamp()) * MICROSECONDS + at.microsecond


def _quantities(field: str, value: Any) -> Mapping[str, int]:
    """Read units per meter."""
    if not isinstance(value, dict) or not 1 <= len(value) <= _QUANTITIES_MAX:
        raise MalformedLineError(f"{field} must be an object with 1 to {_QUANTITIES_MAX} meters")
    return {meter: _units(f"{field}.{meter}", units) for meter, units in value.items()}


def _attributes(value: Any) -> Mapping[str, str]:
    """Read attributes within the bounds of a check."""
    if not isinstance(value, dict) or len(value) > _QUANTITIES_MAX:
        raise MalformedLineError(f"attributes must be an object with up to {_QUANTITIES_MAX} names")
    for name, text in value.items():
        if not isinstance(text, str) or max(len(name.encode()), len(text.encode())) > _ATTRIBUTE_BYTES_MAX:
            raise MalformedLineError(f"attribute {name[:40]!r} must be text of up to {_ATTRIBUTE_BYTES_MAX} bytes")
    return value


def _units(field: str, value: Any) -> int:
    """Read a whole number within the bounds of units."""
    digits = isinstance(value, str) and value.isascii() and value.isdigit()
    if isinstance(value, bool) or not (digits or isinstance(value, int)):
        raise MalformedLineError(f"{field} is {value!r}, expected a whole number")
    if len(str(value)) > len(str(UNITS_MAX)) or not 0 <= int(value) <= UNITS_MAX:
        raise MalformedLineError(f"{field} is {str(value)[:40]}, it must be 0 to {UNITS_MAX}")
    return int(value)


def _tenant(value: Any) -> str:
    """Read a tenant's wire id."""
    if not isinstance(value, str) or not _TENANT.fullmatch(value):
        raise MalformedLineError(f"tenant is {str(value)[:40]!r}, expected 1 to 128 of A-Z a-z 0-9 . _ : -")
    return value
