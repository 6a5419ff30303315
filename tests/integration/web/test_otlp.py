"""OTLP metrics become usage once: over HTTP and gRPC, by the collector's own messages and by a real SDK."""

from __future__ import annotations

import asyncio
import gzip
import json
import secrets
import time
from typing import TYPE_CHECKING, Any

import grpc.aio
import httpx
import pytest
from google.protobuf import json_format
from google.rpc import status_pb2
from http_support import findings, stored
from ledger_process import process
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from otlp_support import serving, text
from ports import free_port
from tollkeeper_ledger.app import running

if TYPE_CHECKING:
    from pathlib import Path

    from tollkeeper_ledger.config import Settings

PROTOBUF = {"content-type": "application/x-protobuf"}


def export(*points: dict[str, Any], metric: str = "calls", **shape: Any) -> dict[str, Any]:
    """Give a request in OTLP's JSON: one counter with these data points, of a resource of its own."""
    data = {"aggregationTemporality": 1, "isMonotonic": True, "dataPoints": list(points), **shape}
    resource = {"attributes": [{"key": "service.instance.id", "value": {"stringValue": secrets.token_hex(8)}}]}
    scope = {"metrics": [{"name": metric, "sum": data}, {"name": "not.usage", "gauge": {"dataPoints": list(points)}}]}
    return {"resourceMetrics": [{"resource": resource, "scopeMetrics": [scope]}]}


def point(**changed: Any) -> dict[str, Any]:
    """Give a data point of 3."""
    now = time.time_ns()
    attributes = [text("tenant.id", "acme"), text("http.route", "/a"), text("else", "x")]
    return {
        "startTimeUnixNano": str(now - 1),
        "timeUnixNano": str(now),
        "asInt": "3",
        "attributes": attributes,
        **changed,
    }


async def test_a_point_sent_again_in_any_form_is_one_record(ledger_settings: Settings, tmp_path: Path) -> None:
    """JSON, protobuf, gzip and gRPC, attributes in any order: recorded once, with its declared attribute."""
    one = export(point())
    message = json_format.ParseDict(one, metrics_service_pb2.ExportMetricsServiceRequest())
    turned = metrics_service_pb2.ExportMetricsServiceRequest.FromString(message.SerializeToString())
    attributes = turned.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0].attributes
    backwards = list(attributes)[::-1]
    del attributes[:]
    attributes.extend(backwards)
    async with serving(ledger_settings, tmp_path) as (ledger, http):
        before = await stored(http)
        assert (await http.post("/v1/metrics", json=one)).json() == {}
        raw = await http.post("/v1/metrics", content=message.SerializeToString(), headers=PROTOBUF)
        assert (raw.status_code, raw.content) == (200, b"")
        packed = gzip.compress(turned.SerializeToString())
        zipped = await http.post("/v1/metrics", content=packed, headers={**PROTOBUF, "content-encoding": "gzip"})
        assert (zipped.status_code, zipped.content) == (200, b"")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
            answer = await metrics_service_pb2_grpc.MetricsServiceStub(channel).Export(message)  # type: ignore[no-untyped-call]
            assert not answer.HasField("partial_success")
        after = await stored(http)
        (new,) = after.keys() - before.keys()
        assert after[new]["units"] == {"requests": 3}
        assert after[new]["attributes"] == {"path": "/a"}
        assert await findings(http) == []


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    (export(point(), aggregationTemporality=0), "AGGREGATION_TEMPORALITY_DELTA"),
    (export(point(startTimeUnixNano="0"), aggregationTemporality=2), "FIELD_REQUIRED"),
    (export(point(), isMonotonic=False), "is_monotonic"),
    (export(point(), metric="stored"), "is a sum"),
    (export(point(attributes=[])), "tenant.id"),
    (export(point(attributes=[text("tenant.id", "nobody")])), "TENANT_UNKNOWN"),
    (export(point(attributes=[text("tenant.id", "a b")])), "wire id"),
    (export(point(attributes=[{"key": "tenant.id", "value": {"doubleValue": 1.5}}])), "is no text"),
    (export(point(timeUnixNano="0")), "time_unix_nano"),
    (export(point(timeUnixNano="1")), "event_time"),
    (export(point(asInt="-1")), "0 to"),
    (export(point(asInt=str(2**53))), "0 to"),
    (export(point(asInt=str(2**53 - 1)), metric="sent"), "0 to"),
    (export({**point(), "asInt": None, "asDouble": 0.5}), "scale"),
    (export({**point(), "asInt": None, "asDouble": "NaN"}), "scale"),
    (export({**point(), "asInt": None}), "0 to"),
)


async def test_what_is_no_usage_is_counted_and_named(ledger_settings: Settings, tmp_path: Path) -> None:
    """Each refused point is counted and told why, the good one beside it is stored; other metrics are none."""
    async with serving(ledger_settings, tmp_path) as (_, http):
        for one, told in REFUSED:
            fine = export(point())
            before = len(await stored(http))
            both = {"resourceMetrics": [*one["resourceMetrics"], *fine["resourceMetrics"]]}
            answer = (await http.post("/v1/metrics", content=json.dumps(both), headers=JSON)).json()
            assert answer["partialSuccess"]["rejectedDataPoints"] == "1", (one, answer)
            assert told in answer["partialSuccess"]["errorMessage"]
            assert len(await stored(http)) == before + 1


JSON = {"content-type": "application/json"}


async def test_a_value_is_exact_in_the_meters_units(ledger_settings: Settings, tmp_path: Path) -> None:
    """A double times the scale, as it is written; a point without a value is none; another value is refused."""
    half = export({**point(), "asInt": None, "asDouble": 0.5}, metric="sent")
    nothing = export(point(flags=1))
    conflict = json.loads(json.dumps(half))
    conflict["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["sum"]["dataPoints"][0]["asDouble"] = 1.5
    async with serving(ledger_settings, tmp_path) as (_, http):
        before = await stored(http)
        for one in (half, nothing):
            assert (await http.post("/v1/metrics", json=one)).json() == {}
        told = (await http.post("/v1/metrics", json=conflict)).json()["partialSuccess"]
        assert (told["rejectedDataPoints"], "another value" in told["errorMessage"]) == ("1", True)
        after = await stored(http)
        assert [after[name]["units"] for name in after.keys() - before.keys()] == [{"bytes": 512}]


async def test_a_body_that_is_no_metrics_is_refused(ledger_settings: Settings, tmp_path: Path) -> None:
    """Malformed, of another kind, or larger once unpacked; without a mapping nothing is taken at all."""
    bomb = gzip.compress(b"\0" * (64 * 1024 * 1024))
    zipped = {**PROTOBUF, "content-encoding": "gzip"}
    async with serving(ledger_settings, tmp_path) as (_, http):
        for body, headers, code in (
            (b"\xff\xff\xff", PROTOBUF, 400),
            (b"{", JSON, 400),
            (b"[" * 100_000, JSON, 400),
            (bomb, zipped, 413),
            (b"no gzip", zipped, 400),
            (gzip.compress(b"x" * 1_000)[:-9], zipped, 400),
            (b"", {**PROTOBUF, "content-encoding": "br"}, 400),
            (b"{}", {"content-type": "text/plain"}, 415),
        ):
            assert (await http.post("/v1/metrics", content=body, headers=headers)).status_code == code, body[:20]
    async with running(ledger_settings) as ledger:
        base = f"http://127.0.0.1:{ledger.http_port}"
        async with httpx.AsyncClient(base_url=base, timeout=60) as http:
            answer = await http.post("/v1/metrics", content=b"", headers=PROTOBUF)
            assert answer.status_code == 501
            assert status_pb2.Status.FromString(answer.content).code == grpc.StatusCode.UNIMPLEMENTED.value[0]


async def test_a_wrong_mapping_stops_the_start(ledger_settings: Settings, tmp_path: Path) -> None:
    """The process ends with a message that names the file and the rule."""
    path = tmp_path / "otlp.toml"
    path.write_text("[[metric]]\n")
    environment = {"TOLLKEEPER_OTLP_MAPPING": str(path)}
    async with process(ledger_settings, free_port(), environment=environment, stderr=asyncio.subprocess.PIPE) as ledger:
        _, told = await asyncio.wait_for(ledger.communicate(), 120)
    assert ledger.returncode == 1
    assert f"tollkeeper-ledger: TOLLKEEPER_OTLP_MAPPING: {path}: metric[0].name" in told.decode()


@pytest.mark.parametrize("over", ["http", "grpc"])
@pytest.mark.parametrize("temporality", [AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE])
async def test_a_real_sdks_counters_are_usage(
    ledger_settings: Settings, tmp_path: Path, over: str, temporality: AggregationTemporality
) -> None:
    """What an application counts in two exports arrives whole."""
    run = secrets.token_hex(4)
    async with serving(ledger_settings, tmp_path) as (ledger, http):
        preferred = {Counter: temporality}
        if over == "http":
            url = f"http://127.0.0.1:{ledger.http_port}/v1/metrics"
            exporter: Any = HttpExporter(endpoint=url, preferred_temporality=preferred)
        else:
            exporter = GrpcExporter(endpoint=f"127.0.0.1:{ledger.port}", insecure=True, preferred_temporality=preferred)
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
        provider = MeterProvider([reader], resource=Resource({"service.instance.id": run}), shutdown_on_exit=False)
        calls = provider.get_meter("test").create_counter("calls")
        before = await stored(http, "other")
        for count in (2, 5):
            calls.add(count, {"tenant.id": "other", "http.route": run})
            calls.add(1, {"tenant.id": "other", "http.route": run})
            assert await asyncio.to_thread(provider.force_flush, 60_000)
        await asyncio.to_thread(provider.shutdown, 60_000)
        after = await stored(http, "other")
        new = [after[name] for name in after.keys() - before.keys()]
        assert sorted(one["units"]["requests"] for one in new) == [3, 6]
        assert {one["attributes"]["path"] for one in new} == {run}
        assert await findings(http) == []
