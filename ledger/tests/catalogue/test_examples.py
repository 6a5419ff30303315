"""The example catalogues say what their comments say: each plan's limits, and what it costs in worked months."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from tollkeeper_ledger.domain.catalogue.canonical import canonical_json, plan_to_json
from tollkeeper_ledger.domain.catalogue.compare import compare
from tollkeeper_ledger.domain.catalogue.faults import Faults
from tollkeeper_ledger.domain.catalogue.known import AddPlanVersion, Known
from tollkeeper_ledger.domain.rating.charges import SubscriptionFacts, Total, Usage
from tollkeeper_ledger.domain.rating.engine import rate
from tollkeeper_ledger.services.catalogue import read_catalogue

CATALOGUES = Path(__file__).resolve().parents[3] / "examples" / "catalogues"
OCTOBER = SubscriptionFacts(
    period_start=datetime(2026, 10, 1, tzinfo=UTC), period_end=datetime(2026, 11, 1, tzinfo=UTC)
)
GB = 1_000_000_000


def plans_of(name: str) -> dict[str, bytes]:
    """Give the definitions of a catalogue's plans, tenants' own ones included, as applying to nothing stores them."""
    catalogue = read_catalogue((CATALOGUES / f"{name}.yaml").read_text(), source_name=name)
    faults = Faults()
    changes = compare(catalogue, Known(), now=OCTOBER.period_start, faults=faults)
    assert faults.found == []
    plans = {plan.name: canonical_json(plan_to_json(plan)) for plan in catalogue.plans}
    return plans | {one.write.name: one.write.definition for one in changes if isinstance(one.write, AddPlanVersion)}


# Plan, usage of a month, expected cents: by line, in the order of the invoice.
WORKED = [
    ("messaging", "messaging-free", {"active_users": 1_000, "messages": 10_000}, []),
    ("messaging", "messaging-pro", {}, [9_900]),
    ("messaging", "messaging-pro", {"active_users": 10_000, "messages": 100_000}, [9_900, 0, 0]),
    # 1,500 users more at 1 cent; 50,000 messages more at 0.01 cent; 25.5 GB at 10 cents
    (
        "messaging", "messaging-pro", {"active_users": 11_500, "messages": 150_000, "bandwidth": 25_500_000_000},
        [9_900, 1_500, 500, 255],
    ),
    # One message more is a hundredth of a cent, which rounds to nothing.
    ("messaging", "messaging-pro", {"messages": 100_001}, [9_900, 0]),
    ("messaging", "messaging-enterprise", {"active_users": 10**6, "bandwidth": 10 * GB}, []),
    ("messaging", "messaging-enterprise@bank", {"active_users": 10**6, "bandwidth": 10 * GB}, [250_000, 50]),
    ("marketplace", "marketplace", {"uploads": 5}, [50]),
    (
        "marketplace", "marketplace", {"uploads": 5, "reviews": 3, "queries": 17, "reports": 2},
        [50, 15, 17, 50],
    ),
    # 720 GB·hours at 2 cents, 1.5 CPU hours at 50 cents, 2.25 GB·hours of memory at 10 cents (22.5, rounded up)
    (
        "marketplace", "marketplace", {"storage_gb_hours": 720_000, "cpu_hours": 1_500, "memory_gb_hours": 2_250},
        [1_440, 75, 23],
    ),
    ("api-tiers", "api-free", {"requests": 20_000}, [0]),
    ("api-tiers", "api-starter", {"requests": 100_000}, [2_900]),
    ("api-tiers", "api-starter", {"requests": 100_001}, [2_900, 50]),
    ("api-tiers", "api-starter", {"requests": 150_000}, [2_900, 2_500]),
    ("api-tiers", "api-business", {"requests": 501_001}, [9_900, 60]),
    ("api-tiers", "api-scale", {"requests": 6_000_000}, [49_900, 10_000]),
    # 3 million tokens of context, 2 million of them charged at 2.50; 150,000 generated, 100,000 charged at 10.00
    ("llm", "code-scale", {"context_tokens": 3_000_000, "generated_tokens": 150_000}, [2_000, 500, 100]),
    ("llm", "chat-scale", {"context_tokens": 2_500_000, "generated_tokens": 250_000}, [5_000, 100, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("catalogue", "plan", "used", "expected_minor"), WORKED)
def test_an_example_plan_costs_what_was_worked_out(
    catalogue: str, plan: str, used: dict[str, int], expected_minor: list[int]
) -> None:
    """Every line of a month, in cents; a line of no amount is that of usage which is included."""
    totals = tuple(Total(meter=meter, unit="", scale=0, units=units) for meter, units in used.items())
    charges = rate(plans_of(catalogue)[plan], Usage(totals=totals), OCTOBER, engine_version=1)
    found = [line.amount_minor for line in charges.lines]
    assert [amount for amount in expected_minor if amount] == [amount for amount in found if amount]
    assert sum(expected_minor) == charges.subtotal_minor


def test_the_tiers_have_the_limits_and_flags_that_they_promise() -> None:
    """10 a minute, 1,000 an hour, 10,000 a day, 100,000 a month, 5,000 db queries an hour, 1,000 MB; three flags."""
    catalogue = read_catalogue((CATALOGUES / "api-tiers.yaml").read_text(), source_name="api-tiers")
    for plan in catalogue.plans:
        assert [limit.amount for limit in plan.limits] == [5_000, 10_000, 1_000, 10, 100_000, 1_000]
    assert [len(plan.features) for plan in catalogue.plans] == [0, 1, 2, 3]
    for plan in catalogue.plans:
        on_requests = {limit.enforcement for limit in plan.limits if limit.meter == "requests"}
        assert on_requests == {"hard" if plan.name == "api-free" else "soft"}, "what a paid tier includes can be used"
    assert len(catalogue.features) == 3


@pytest.mark.parametrize("path", sorted(CATALOGUES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_can_be_applied(path: Path) -> None:
    """No example has a fault, and nothing in one is unchanged when it is applied to an empty ledger."""
    assert plans_of(path.stem)
