"""Which OTLP metrics are usage: metric and attributes become tenant, meter and attributes, by a file of rules.

```toml
[[metric]]
name = "gen_ai.tokens"                  # the metric
meter = "tokens"                        # the meter that its values count
tenant = "tenant.id"                    # attribute of the data point, or else of its resource, that names the tenant
kind = "sum"                            # or "gauge"
scale = "1"                             # the meter's units in 1 of the metric, a decimal
attributes = { "gen_ai.model" = "model" }  # attributes that are kept, and the names that the meter declares for them
```
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_FIELDS = {"name", "meter", "tenant", "kind", "scale", "attributes"}
_SCALE_DIGITS_MAX = 18


class MappingError(ValueError):
    """Says which rule of a file is wrong, and what to do."""


class MetricKind(Enum):
    """What a metric's data points are."""

    SUM = "sum"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class MetricRule:
    """One metric that is usage."""

    name: str
    meter: str
    tenant: str
    """Attribute that names the tenant."""
    kind: MetricKind
    scale: Decimal
    """Units of the meter in 1 of the metric; above 0."""
    attributes: Mapping[str, str]
    """Name in OTLP -> name that the meter declares."""


def parse_mapping(text: str) -> dict[str, MetricRule]:
    """Read rules from TOML, by metric. Raises MappingError."""
    try:
        read = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise MappingError(f"is not TOML: {error}") from error
    if read.keys() != {"metric"} or not isinstance(read["metric"], list):
        raise MappingError("must hold [[metric]] tables and nothing else")
    rules: dict[str, MetricRule] = {}
    for place, table in enumerate(read["metric"]):
        rule = _rule(f"metric[{place}]", table)
        if rule.name in rules:
            raise MappingError(f"metric[{place}]: {rule.name} has a rule already; keep one")
        rules[rule.name] = rule
    return rules


def _rule(path: str, table: Mapping[str, Any]) -> MetricRule:
    if not isinstance(table, dict) or not table.keys() <= _FIELDS:
        raise MappingError(f"{path}: allowed are {', '.join(sorted(_FIELDS))}")
    for field in ("name", "meter", "tenant"):
        if not isinstance(table.get(field), str) or not table[field]:
            raise MappingError(f"{path}.{field}: must be a text that isn't empty")
    kind = table.get("kind", MetricKind.SUM.value)
    if kind not in {one.value for one in MetricKind}:
        raise MappingError(f"{path}.kind: is {kind!r}, must be sum or gauge")
    attributes = table.get("attributes", {})
    if not isinstance(attributes, dict) or not all(isinstance(name, str) and name for name in attributes.values()):
        raise MappingError(f"{path}.attributes: must be a table of names")
    if len(set(attributes.values())) != len(attributes):
        raise MappingError(f"{path}.attributes: two attributes have one name")
    return MetricRule(
        name=table["name"],
        meter=table["meter"],
        tenant=table["tenant"],
        kind=MetricKind(kind),
        scale=_scale(path, table.get("scale", "1")),
        attributes=attributes,
    )


def _scale(path: str, given: object) -> Decimal:
    try:
        scale = Decimal(str(given))
    except InvalidOperation:
        scale = Decimal(0)
    if not scale.is_finite() or scale <= 0 or len(scale.as_tuple().digits) > _SCALE_DIGITS_MAX:
        raise MappingError(
            f"{path}.scale: is {given!r}, must be a decimal above 0 with up to {_SCALE_DIGITS_MAX} digits"
        )
    if not -_SCALE_DIGITS_MAX <= scale.adjusted() <= _SCALE_DIGITS_MAX:
        raise MappingError(f"{path}.scale: is {given!r}, must be 1e-{_SCALE_DIGITS_MAX} to 1e{_SCALE_DIGITS_MAX}")
    return scale
