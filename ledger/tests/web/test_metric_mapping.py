"""The file that says which metrics are usage is refused as a whole where it says something else."""

from __future__ import annotations

from decimal import Decimal

import pytest
from tollkeeper_ledger.domain.metric_mapping import MappingError, MetricKind, parse_mapping

RULE = '[[metric]]\nname = "calls"\nmeter = "requests"\ntenant = "tenant.id"\n'


def test_a_rule_is_read_with_its_defaults() -> None:
    """A sum of whole units without attributes, unless said otherwise."""
    plain = parse_mapping(RULE)["calls"]
    assert (plain.kind, plain.scale, dict(plain.attributes)) == (MetricKind.SUM, Decimal(1), {})
    full = parse_mapping(RULE + 'kind = "gauge"\nscale = 0.001\nattributes = {"http.route" = "path"}')["calls"]
    assert (full.kind, full.scale, dict(full.attributes)) == (
        MetricKind.GAUGE,
        Decimal("0.001"),
        {"http.route": "path"},
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[[metric]]",
        "metric = 1",
        "metric = [1]",
        RULE + RULE,
        RULE + "other = 1",
        RULE + 'kind = "histogram"',
        RULE + "scale = 0",
        RULE + "scale = -1",
        RULE + "scale = nan",
        RULE + 'scale = "many"',
        RULE + 'scale = "1e400"',
        RULE + "attributes = 1",
        RULE + 'attributes = {a = "x", b = "x"}',
        RULE + "attributes = {a = 1}",
        RULE.replace('"calls"', '""'),
        RULE + "\n[more]",
        "[[metric",
    ],
)
def test_a_rule_that_is_none_is_named(text: str) -> None:
    """Nothing of such a file is used."""
    with pytest.raises(MappingError, match=r"metric|TOML"):
        parse_mapping(text)
