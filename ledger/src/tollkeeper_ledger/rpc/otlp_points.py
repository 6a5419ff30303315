"""Turn OTLP data points into usage records, by the declared mapping."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.metrics.v1 import metrics_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError, LedgerError
from tollkeeper_ledger.domain.metric_mapping import MetricKind
from tollkeeper_ledger.domain.usage import UNITS_MAX
from tollkeeper_ledger.domain.usage_columns import Use
from tollkeeper_ledger.rpc.usage_fields import checked_attributes
from tollkeeper_ledger.services.tenants import check_tenant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    from tollkeeper_ledger.domain.metric_mapping import MetricRule

_DELTA = metrics_pb2.AGGREGATION_TEMPORALITY_DELTA
_NO_VALUE = metrics_pb2.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
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
    for point in data.data_points if data is not None else ():
        if refusal is not None:
            yield Point(rule.name, refusal)
        elif not point.flags & _NO_VALUE:
            try:
                yield Point(rule.name, _use(point, rule, resource, origin))
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
    if rule.kind is MetricKind.SUM and data.aggregation_temporality != _DELTA:
        return InvalidFieldError(
            "data.aggregation_temporality",
            "is not delta",
            bound="AGGREGATION_TEMPORALITY_DELTA: what was before a start is in no cumulative sum",
            remedy="set OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=delta, or cumulativetodelta in a collector",
        )
    return None


def _use(point: Any, rule: MetricRule, resource: Iterable[Any], origin: bytes) -> Use:
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
    return Use(
        tenant=tenant,
        id=_record_id(point, rule.name, origin),
        event_us=point.time_unix_nano // 1_000,
        quantities=((rule.meter, _units(point, rule.scale)),),
        attributes=checked_attributes(kept),
    )


def _units(point: Any, scale: Decimal) -> int:
    """Give the value in the meter's units. A double is taken as the shortest decimal that it is read from."""
    kind = point.WhichOneof("value")
    value = Decimal(point.as_int) if kind == "as_int" else Decimal(repr(point.as_double))
    units = Fraction(value) * Fraction(scale) if kind and value.is_finite() else Fraction(-1)
    if units.denominator != 1 or not 0 <= units <= UNITS_MAX:
        raise InvalidFieldError(
            "value",
            "is no number of the meter's units",
            reason="FIELD_OUT_OF_RANGE",
            value=value if kind else "nothing",
            bound=f"0 to {UNITS_MAX}, whole when multiplied by {scale}",
            remedy="send whole numbers, or set the rule's scale",
        )
    return int(units)


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
