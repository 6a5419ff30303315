"""Reading recordings."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_cli.errors import CommandError, FoundProblemsError, UsageError
from tollkeeper_cli.replay.formats import (
    Format,
    ReadOptions,
    TenantField,
    _parse_combined,
    _parse_json,
    read_requests,
    stop_at_malformed,
)
from tollkeeper_cli.replay.model import UNITS_MAX, MalformedLine, MalformedLineError, ReplayRequest

if TYPE_CHECKING:
    from pathlib import Path

AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AT_US = 1_700_158_623_000_000  # 2023-11-16 18:17:03 UTC


def read(
    path: Path, text: str | bytes, form: Format, options: ReadOptions | None = None
) -> tuple[list[ReplayRequest], list[str]]:
    """Write a file, read it, and return its requests and what was said of other lines."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    malformed: list[MalformedLine] = []
    requests = list(read_requests(path, form, options or ReadOptions(tenant="code"), on_malformed=malformed.append))
    return requests, [str(line) for line in malformed]


def test_azure_line_reserves_the_cap_and_settles_what_was_generated(tmp_path: Path) -> None:
    """The reservation never knows the trace's generated figure; times keep their microseconds."""
    text = AZURE_HEADER + "2023-11-16 18:17:03.9799607,4808,10"
    requests, malformed = read(tmp_path / "t.csv", text, Format.AZURE_LLM)
    assert malformed == []
    assert requests[0].at_us == AT_US + 979_960
    assert requests[0].reserve == {"requests": 1, "context_tokens": 4_808, "generated_tokens": 2_048}
    assert requests[0].settle == {"requests": 1, "context_tokens": 4_808, "generated_tokens": 10}
    assert requests[0].duration_us == 200_000
    assert requests[0].request_id == "replay/t.csv/2"


def test_gzip_is_found_by_its_content(tmp_path: Path) -> None:
    """A packed file is read whatever its name is, and gives what the plain one gives."""
    text = AZURE_HEADER + "2023-11-16 18:17:03,1,2\r\n2023-11-16 18:17:04,3,4\r\n"
    plain, _ = read(tmp_path / "t", text, Format.AZURE_LLM)
    packed, _ = read(tmp_path / "t", gzip.compress(text.encode()), Format.AZURE_LLM)
    assert len(plain) == 2
    assert packed == plain


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("2023-11-16 18:17:03,1", "2 columns, expected 3"),
        ("2023-11-16T18:17:03,1,2", "TIMESTAMP"),
        ("2023-13-16 18:17:03,1,2", "TIMESTAMP"),
        ("2023-11-16 18:17:03,-1,2", "ContextTokens is '-1', expected a whole number"),
        ("2023-11-16 18:17:03,1.5,2", "ContextTokens"),
        ("2023-11-16 18:17:03,٣,2", "ContextTokens"),
        (f"2023-11-16 18:17:03,{UNITS_MAX + 1},2", f"it must be 0 to {UNITS_MAX}"),
        ("2023-11-16 18:17:03," + "9" * 5_000 + ",2", "it must be 0 to"),
        (b"\xff\xfe", "not UTF-8"),
        ("x" * (2 << 20), "longer than"),
    ],
)
def test_malformed_lines_are_skipped_with_their_number(tmp_path: Path, line: str | bytes, problem: str) -> None:
    """A bad line is named by number and reason; the lines around it are read."""
    raw = line.encode() if isinstance(line, str) else line
    good = b"2023-11-16 18:17:05,7,8\n"
    requests, malformed = read(tmp_path / "t.csv", AZURE_HEADER.encode() + good + raw + b"\n" + good, Format.AZURE_LLM)
    assert [request.number for request in requests] == [2, 4]
    assert len(malformed) == 1
    assert malformed[0].startswith("t.csv:3: ")
    assert problem in malformed[0]


def test_strict_stops_at_the_first_bad_line(tmp_path: Path) -> None:
    """Nothing behind a bad line is read."""
    path = tmp_path / "t.csv"
    path.write_text(AZURE_HEADER + "nonsense\n2023-11-16 18:17:05,7,8\n")
    reading = read_requests(path, Format.AZURE_LLM, ReadOptions(tenant="code"), on_malformed=stop_at_malformed)
    with pytest.raises(FoundProblemsError, match=r"t\.csv:2: 1 columns"):
        next(reading)


@pytest.mark.parametrize(
    "content", [b"a,b\n1,2\n", gzip.compress(AZURE_HEADER.encode() * 9, mtime=0)[:-9], b"\x1f\x8bnot gzip at all"]
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    """A wrong header, a cut-off archive and a fake one are usage errors, not malformed lines."""
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        list(read_requests(path, Format.AZURE_LLM, ReadOptions(tenant="code"), on_malformed=lambda _line: None))


def test_azure_needs_a_tenant(tmp_path: Path) -> None:
    """A format without tenants doesn't guess one."""
    with pytest.raises(UsageError, match="--tenant"):
        read(tmp_path / "t.csv", AZURE_HEADER, Format.AZURE_LLM, ReadOptions())


def test_users_are_the_same_at_every_reading(tmp_path: Path) -> None:
    """The seed alone decides the users; another seed gives others."""
    text = AZURE_HEADER + "2023-11-16 18:17:03,1,2\n" * 300
    first, _ = read(tmp_path / "t.csv", text, Format.AZURE_LLM)
    second, _ = read(tmp_path / "t.csv", text, Format.AZURE_LLM)
    other, _ = read(tmp_path / "t.csv", text, Format.AZURE_LLM, ReadOptions(tenant="code", seed="other"))
    assert first == second
    assert [one.attributes for one in first] != [one.attributes for one in other]


LINE = '203.0.113.9 - alice [16/Nov/2023:19:17:03 +0100] "GET /acme/x?y=1 HTTP/1.1" 200 512 "-" "curl \\"8\\""'


@pytest.mark.parametrize(
    ("field", "tenant"), [(TenantField.HOST, "203.0.113.9"), (TenantField.USER, "alice"), (TenantField.PATH, "acme")]
)
def test_combined_line(tmp_path: Path, field: TenantField, tenant: str) -> None:
    """One request and its bytes, at UTC, of the tenant in the chosen field."""
    requests, malformed = read(tmp_path / "log", LINE, Format.COMBINED, ReadOptions(tenant_field=field))
    assert malformed == []
    assert (requests[0].tenant, requests[0].at_us) == (tenant, AT_US)
    assert requests[0].reserve == requests[0].settle == {"requests": 1, "bytes": 512}


@pytest.mark.parametrize(
    "line",
    [
        LINE.replace("512", "-5"),
        LINE.replace("200", "OK"),
        LINE.replace("16/Nov", "36/Nov"),
        LINE.replace("alice", "al/ice"),
        LINE[:60],
        "",
    ],
)
def test_combined_refuses(line: str) -> None:
    """A line that says something else is not read as if it said nothing."""
    with pytest.raises(MalformedLineError):
        _parse_combined(line, 1, "replay", ReadOptions(tenant_field=TenantField.USER))


def test_combined_without_bytes_and_referrer() -> None:
    """The common format and `-` for no bytes are read."""
    line = '::1 - - [16/Nov/2023:18:17:03 +0000] "GET / HTTP/1.1" 304 -'
    request = _parse_combined(line, 1, "replay", ReadOptions())
    assert (request.tenant, request.settle) == ("::1", {"requests": 1, "bytes": 0})


def test_json_line() -> None:
    """Every field arrives; settle is the reserve where it is missing."""
    value = {
        "time": "2023-11-16T19:17:03.000007+01:00",
        "tenant": "t",
        "reserve": {"a": 5},
        "duration_ms": 3,
        "attributes": {"user": "u"},
        "id": "mine",
    }
    request = _parse_json(json.dumps(value), 1, "replay", ReadOptions())
    assert (request.at_us, request.duration_us, request.request_id) == (AT_US + 7, 3_000, "mine")
    assert request.settle == request.reserve == {"a": 5}


@pytest.mark.parametrize(
    "change",
    [
        {"reserve": {}},
        {"reserve": {"a": True}},
        {"reserve": {"a": -1}},
        {"reserve": {"a": 1.0}},
        {"reserve": {"a": UNITS_MAX + 1}},
        {"reserve": {str(number): 1 for number in range(17)}},
        {"tenant": "a b"},
        {"tenant": ""},
        {"tenant": 7},
        {"time": "2023-11-16T19:17:03"},
        {"time": 5},
        {"id": ""},
        {"attributes": {"user": 7}},
        {"attributes": {"user": "x" * 129}},
        {"settel": {"a": 1}},
    ],
)
def test_json_refuses(change: dict[str, object]) -> None:
    """Out of range, of another type, misspelt: refused, never dropped or read as a default."""
    value = {"time": "2023-11-16T19:17:03Z", "tenant": "t", "reserve": {"a": 5}} | change
    with pytest.raises(MalformedLineError):
        _parse_json(json.dumps(value), 1, "replay", ReadOptions())


@pytest.mark.parametrize("line", ["[" * 100_000, "null", "7", '{"time": NaN}', "{"])
def test_json_of_another_shape_is_refused(line: str) -> None:
    """Deep nesting and bare values are malformed lines, not crashes."""
    with pytest.raises(MalformedLineError):
        _parse_json(line, 1, "replay", ReadOptions())


@given(st.sampled_from(Format), st.binary(max_size=300))
def test_any_bytes_give_requests_or_complaints(
    tmp_path_factory: pytest.TempPathFactory, form: Format, raw: bytes
) -> None:
    """No input crashes a reader: each line is a request, a complaint or a refused file."""
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(raw)
    complaints: list[MalformedLine] = []
    try:
        requests = list(read_requests(path, form, ReadOptions(tenant="t"), on_malformed=complaints.append))
    except CommandError:
        return
    assert len(requests) + len(complaints) <= len(raw.split(b"\n"))
