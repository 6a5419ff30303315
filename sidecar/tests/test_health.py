"""Health and metrics as an orchestrator and Prometheus see them."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from tollkeeper_sidecar import metrics
from tollkeeper_sidecar.health import REQUEST_BYTES_MAX, HealthServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .conftest import FakePlane  # noqa: TID252 - test folders are not packages on the path

OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"
STATS = {
    "ready": True, "draining": False, "watch_up": True, "redis_alive": False, "checks": 7, "admitted": 5,
    "denied": {"QUOTA_EXHAUSTED": 1, "RATE_LIMITED": 1}, "errors": {}, "waiting": 0, "reservations_open": 2,
    "decisions": {"told": 9, "left_out": 1, "lost": 0},
    "limits": {"day": {"within": 10, "near": 2, "over": 0}},
    "records": 3, "log": {"fill_percent": 1, "unshipped_records": 4, "lag_ms": 1500, "full_in_ms": 90_500},
    "shipping": {"answers_lost": 2, "refused_seq": 0},
    "latency_us": {"count": 7, "p50": 2, "p99": 8, "buckets": [0, 1, 2, 3, 1]},
    "commands": {"outstanding": 1, "late_answers": 0},
}  # fmt: skip


@pytest.fixture
async def address(plane: FakePlane) -> AsyncIterator[str]:
    """Serve health on a free port."""
    plane.figures = dict(STATS)
    server = HealthServer(plane)
    yield await server.start("127.0.0.1:0")
    await server.stop()


async def get(address: str, request: bytes) -> tuple[int, str]:
    """Send raw bytes and answer status (0 = none) and body."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        raw = (await reader.read()).decode()
    except ConnectionResetError:
        raw = ""
    writer.close()
    head, _, body = raw.partition("\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


async def test_health_says_whether_it_serves(plane: FakePlane, address: str) -> None:
    """200 while it serves; 503 with the reason while it starts or drains."""
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    status, body = await get(address, request)
    assert (status, json.loads(body)["status"], json.loads(body)["stats"]["checks"]) == (200, "serving", 7)
    plane.figures["draining"] = True
    assert [(answer := await get(address, request))[0], json.loads(answer[1])["status"]] == [503, "draining"]
    plane.figures |= {"draining": False, "ready": False}
    assert [(answer := await get(address, request))[0], json.loads(answer[1])["status"]] == [503, "starting"]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", 200),
        (b"POST /health HTTP/1.1\r\n\r\n", 405),
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"\x00\xff\xfe\r\n\r\n", 400),
        (b"GET /" + b"a" * REQUEST_BYTES_MAX + b" HTTP/1.1\r\n\r\n", 0),
    ],
)
async def test_bad_requests_get_their_answer(address: str, request_bytes: bytes, status: int) -> None:
    """Whatever is sent, the answer is a status or a closed connection, and the next one is served."""
    assert (await get(address, request_bytes))[0] == status
    assert (await get(address, b"GET /health HTTP/1.1\r\n\r\n"))[0] == 200


async def test_too_many_connections_are_turned_away(address: str) -> None:
    """Connections that say nothing are bounded in number, and one that leaves makes room."""
    host, port = address.split(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(64)]
    assert (await get(address, b"GET /health HTTP/1.1\r\n\r\n"))[0] in {503, 0}
    for _, writer in silent:
        writer.close()
    async with asyncio.timeout(60):
        while (await get(address, b"GET /health HTTP/1.1\r\n\r\n"))[0] != 200:  # noqa: ASYNC110 - asks over the wire
            await asyncio.sleep(0.01)


def test_metrics_are_prometheus_text() -> None:
    """Each figure has HELP and TYPE; the histogram is cumulative; booleans are 0 and 1."""
    lines = metrics.render(STATS).splitlines()
    assert "tollkeeper_sidecar_ready 1" in lines
    assert "tollkeeper_sidecar_redis_alive 0" in lines
    assert "tollkeeper_sidecar_log_lag_seconds 1.5" in lines
    assert "tollkeeper_sidecar_log_full_in_seconds 90.5" in lines
    assert "tollkeeper_sidecar_ship_answers_lost_total 2" in lines
    assert 'tollkeeper_sidecar_denied_total{reason="QUOTA_EXHAUSTED"} 1' in lines
    assert 'tollkeeper_sidecar_limit_units_near_total{limit="day"} 2' in lines
    assert {
        "tollkeeper_sidecar_decisions_told_total 9",
        "tollkeeper_sidecar_decisions_left_out_total 1",
        "tollkeeper_sidecar_decisions_lost_total 0",
    } <= set(lines)
    buckets = [line for line in lines if "_bucket" in line]
    assert buckets == [
        'tollkeeper_sidecar_check_latency_seconds_bucket{le="1e-06"} 0',
        'tollkeeper_sidecar_check_latency_seconds_bucket{le="2e-06"} 1',
        'tollkeeper_sidecar_check_latency_seconds_bucket{le="4e-06"} 3',
        'tollkeeper_sidecar_check_latency_seconds_bucket{le="8e-06"} 6',
        'tollkeeper_sidecar_check_latency_seconds_bucket{le="+Inf"} 7',
    ]
    named = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    shown = {line.split("{")[0].split()[0] for line in lines if not line.startswith("#")}
    assert {name.removesuffix("_bucket").removesuffix("_count") for name in shown} <= named


def test_alarm_rules_name_metrics_that_are_there() -> None:
    """The rules that operators are told to copy read as YAML and ask only for metrics that a sidecar has; lag alarms.

    At 60 s it is an alarm, at 10 min a page.
    """
    told = OPERATING.read_text().partition("<!-- begin alarm rules -->\n```yaml\n")[2].partition("```")[0]
    rules = yaml.safe_load(told)["groups"][0]["rules"]
    asked = {name for rule in rules for name in re.findall(r"tollkeeper_sidecar_(\w+)", rule["expr"])}
    assert asked - {*metrics.GAUGES, *metrics.COUNTERS} == set()
    lag = {rule["labels"]["severity"]: rule["expr"] for rule in rules if "log_lag" in rule["expr"]}
    assert lag == {name: f"tollkeeper_sidecar_log_lag_seconds > {s}" for name, s in (("alarm", 60), ("page", 600))}
    # Figures of a data plane, by the names that it uses, fill every metric that the rules ask for.
    log = dict.fromkeys(("lag_ms", "full_in_ms", "fill_percent", "io_errors", "damaged"), 1)
    shipping = dict.fromkeys(("lost", "forked", "skipped", "quarantined", "conflicts", "refused_seq"), 1)
    shown = metrics.render({"log": log, "shipping": shipping, "uncovered_units": 1})
    assert {name for name in asked if f"tollkeeper_sidecar_{name} " in shown} == asked


def test_missing_figures_are_left_out() -> None:
    """A figure that nobody knows is absent, never 0."""
    assert metrics.render({"log": {"full_in_ms": None}}) == "\n"
    assert metrics.render({"ready": False}).splitlines()[-1] == "tollkeeper_sidecar_ready 0"


def test_labels_are_escaped() -> None:
    """A reason can't break out of its label."""
    assert r'{reason="a\"b\\c\nd"} 1' in metrics.render({"denied": {'a"b\\c\nd': 1}})
