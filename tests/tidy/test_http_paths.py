"""Every call of the ledger has a path over HTTP, or is known to have none."""

from __future__ import annotations

import re

from tollkeeper_ledger.rpc.registry import described_services
from tollkeeper_ledger.web.transcode.bindings import bindings_of

SIDECARS_ONLY = {
    *(
        f"LimitService.{name}"
        for name in ("WatchLimits", "Allot", "ReturnUnits", "ReportConsumption", "ReportDecisions")
    ),
    *(f"UsageService.{name}" for name in ("OpenProducer", "AppendUsage")),
}


def test_every_call_but_those_of_sidecars_has_a_path() -> None:
    """A new method needs `option (google.api.http)` in its proto file, as its neighbours have."""
    services = described_services()
    methods = {method.full_name.removeprefix("tollkeeper.ledger.v1.") for one in services for method in one.methods}
    served = {binding.method.full_name.removeprefix("tollkeeper.ledger.v1.") for binding in bindings_of(services)}
    assert methods - served == SIDECARS_ONLY


def test_no_path_is_another_ones() -> None:
    """Whatever stands in a path's fields, one method of a verb is meant."""
    bindings = bindings_of(described_services())
    for one in bindings:
        path = re.sub(r"\{[^}]+\}", "nobody%3A1", one.template.text)
        assert [one] == [
            other for other in bindings if other.verb == one.verb and other.template.match(path) is not None
        ], path
