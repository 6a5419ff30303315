"""Turn OTLP data points into usage records, by the declared mapping."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.metrics.v1 import metrics_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError, LedgerError
from tollkeeper_ledger.domain.metric_mapping import MetricKind
from tollkeeper_ledger.domain.metric_series import Reading, units_of
from tollkeeper_ledger.domain.usage_columns import Use
from tollkeeper_ledger.rpc.usage_fields import checked_attributes
from tollkeeper_ledger.services.tenants import check_tenant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    from tollkeeper_ledger.domain.metric_mapping import MetricRule

_DELTA = metrics_pb2.AGGREGATION_TEMPORALITY_DELTA
_CUMULATIVE = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
_NO_VALUE = metrics_pb2.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
_TOTAL_MAX = 2**63 - 1
_TOTAL_DIGITS = 30
_TIME_NS_MAX = 253_402_300_800 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Point:
    """A data point of a mapped metric: its record, or why it is none."""

    metric: str
    use: Use | LedgerError


def points_of(request: ExportMetricsServiceRequest, rules: Mapping[str, MetricRule]) -> list[Point]:
    """Give the data points of metrics that have a rule; other metrics are no usage and are left out."""
    points: list[Point] = []
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            origin = _pairs(resource.resource.attributes) + _framed(
                [scope.scope.name.encode(), scope.scope.version.encode(), _pairs(scope.scope.attributes)]
            )
            for metric in scope.metrics:
                rule = rules.get(metric.name)
                if rule is not None:
                    points += _of_metric(metric, rule, resource.resource.attributes, origin)
    return points


def _of_metric(metric: Any, rule: MetricRule, resource: Iterable[Any], origin: bytes) -> Iterator[Point]:
    shape = metric.WhichOneof("data")
    data = getattr(metric, shape) if shape else None
    refusal = _shape_problem(shape, data, rule)
    grows = rule.kind is MetricKind.SUM and data is not None and data.aggregation_temporality == _CUMULATIVE
    for point in data.data_points if data is not None else ():
        if refusal is not None:
            yield Point(rule.name, refusal)
        elif not point.flags & _NO_VALUE:
            try:
                use = _use(point, rule, resource, origin, grows=grows)
                yield Point(rule.name, use)
            except LedgerError as error:
                yield Point(rule.name, error)


def _shape_problem(shape: str | None, data: Any, rule: MetricRule) -> LedgerError | None:
    """Say why none of a metric's points can be taken."""
    if shape != rule.kind.value:
        return InvalidFieldError(
            "data", f"is a {shape}", bound=f"a {rule.kind.value}, as its rule says", remedy="change the rule's kind"
        )
    if rule.kind is MetricKind.SUM and not data.is_monotonic:
        return InvalidFieldError(
            "data.is_monotonic", "is false", bound="a counter", remedy="send a gauge for what goes up and down"
        )
    if rule.kind is MetricKind.SUM and data.aggregation_temporality not in {_DELTA, _CUMULATIVE}:
        return InvalidFieldError(
            "data.aggregation_temporality",
            "is not set",
            bound="AGGREGATION_TEMPORALITY_DELTA or AGGREGATION_TEMPORALITY_CUMULATIVE",
            remedy="say which one the counter is",
        )
    return None


def _use(point: Any, rule: MetricRule, resource: Iterable[Any], origin: bytes, *, grows: bool) -> Use:
    named = {pair.key: pair.value for pair in [*resource, *point.attributes]}
    tenant = _text(rule.tenant, named[rule.tenant]) if rule.tenant in named else ""
    if not tenant:
        raise InvalidFieldError(
            rule.tenant, "is missing", reason="FIELD_REQUIRED", bound="an attribute of the data point or its resource"
        )
    check_tenant(tenant)
    if not 0 < point.time_unix_nano < _TIME_NS_MAX:
        raise InvalidFieldError(
            "time_unix_nano",
            "is no time",
            reason="FIELD_OUT_OF_RANGE",
            value=point.time_unix_nano,
            bound="1970 to 9999",
        )
    kept = {to: _text(name, named[name]) for name, to in rule.attributes.items() if name in named}
    reading = _reading(point, rule, origin) if grows else None
    return Use(
        tenant=tenant,
        id=_record_id(point, rule.name, origin),
        event_us=point.time_unix_nano // 1_000,
        quantities=((rule.meter, 0 if reading is not None else units_of(_value(point), rule.scale)),),
        attributes=checked_attributes(kept),
        reading=reading,
    )


def _value(point: Any) -> Decimal:
    """Give the value; NaN where there is none. A double is taken as the shortest decimal that it is read from."""
    kind = point.WhichOneof("value")
    if kind == "as_int":
        return Decimal(point.as_int)
    return Decimal(repr(point.as_double)) if kind else Decimal("NaN")


def _reading(point: Any, rule: MetricRule, origin: bytes) -> Reading:
    """Give what a counter that only grows stood at."""
    start_ns, time_ns = point.start_time_unix_nano, point.time_unix_nano
    if not 0 < start_ns <= time_ns:
        raise InvalidFieldError(
            "start_time_unix_nano",
            "is no time before the point's" if start_ns else "is missing",
            reason="FIELD_OUT_OF_RANGE" if start_ns else "FIELD_REQUIRED",
            value=start_ns,
            bound="a counter that only grows says since when it counts",
            remedy="send deltas, or the time at which the counter was 0",
        )
    total = _value(point)
    exponent = total.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -_TOTAL_DIGITS or not 0 <= total * rule.scale <= _TOTAL_MAX:
        raise InvalidFieldError(
            "value",
            "is no total of a counter",
            reason="FIELD_OUT_OF_RANGE",
            value=total,
            bound=f"0 to {_TOTAL_MAX} of the meter's units, up to {_TOTAL_DIGITS} decimal places",
            remedy="send whole numbers, or set the rule's scale",
        )
    series = sha256(_framed([origin, rule.name.encode(), _pairs(point.attributes)])).digest()
    return Reading(series=series, start_ns=start_ns, time_ns=time_ns, total=total, scale=rule.scale)


def _record_id(point: Any, metric: str, origin: bytes) -> str:
    """Give the record's id: the same for the same series and times, so that a point sent again is the same record."""
    times = point.start_time_unix_nano.to_bytes(8, "little") + point.time_unix_nano.to_bytes(8, "little")
    digest = sha256(_framed([origin, metric.encode(), _pairs(point.attributes), times])).digest()
    return "ot/" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _pairs(attributes: Iterable[Any]) -> bytes:
    """Give attributes as bytes, whatever their order was."""
    pairs = sorted((pair.key.encode(), pair.value.SerializeToString(deterministic=True)) for pair in attributes)
    return _framed([part for pair in pairs for part in pair])


def _framed(parts: list[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(4, "little") + part for part in [len(parts).to_bytes(4, "little"), *parts])


def _text(name: str, value: Any) -> str:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return str(value.string_value)
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    if kind == "int_value":
        return str(value.int_value)
    raise InvalidFieldError(
        name, "is no text", bound="a text, a whole number or a truth value", remedy="send it as text"
    )
