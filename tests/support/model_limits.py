"""Random limits for walks beside the model, and the catalogue that declares them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quota_model import Limit, Match

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from quota_model import Enforcement, Kind

METERS = ("requests", "tokens")
SEATS, JOBS = "seats", "jobs"
ALL_METERS = (*METERS, SEATS, JOBS)
VALUES = ("a", "ab", "b")


def draw_limits(rng: Random, *, with_buckets: bool) -> tuple[Limit, ...]:
    """Draw one to five limits of a tenant and its parent; with buckets, those on requests are mostly token buckets."""
    return tuple(_draw_limit(rng, f"l{number}", with_buckets=with_buckets) for number in range(rng.randint(1, 5)))


def _draw_limit(rng: Random, name: str, *, with_buckets: bool) -> Limit:
    amount = rng.choice([rng.randint(1, 12), rng.randint(1, 40)] * 6 + [-1, 0])
    rule = rng.choice(["exact", "prefix", "set", "any", None, None, None, None])
    meter = rng.choice(METERS * 2 if with_buckets else (*METERS, *METERS, SEATS, JOBS))
    kind: Kind = "level" if meter == SEATS else "concurrency" if meter == JOBS else "window"
    if with_buckets and meter == METERS[0] and rng.random() < 0.9:
        kind = "token_bucket"
    enforcement: Enforcement = rng.choice(["hard", "hard", "hard", "soft", "shadow"])
    return Limit(
        name=name,
        meter=meter,
        kind=kind,
        amount=min(amount, 6) if kind == "token_bucket" else amount,
        burst=rng.randint(2, 6),
        enforcement="hard" if kind in ("level", "concurrency") else enforcement,
        match=() if rule is None else (Match(attribute="who", rule=rule, values=("",) if rule == "any" else ("a",)),),
        key=rng.choice([(), (), ("who",)]),
        of_parent=rng.random() < 0.4,
    )


def limit_yaml(limit: Limit) -> str:
    """Write a limit for a catalogue. Without an authority it denies, so that nothing is admitted from elsewhere."""
    matches = []
    for match in limit.match:
        values = {"any": "true", "set": str(list(match.values))}.get(match.rule, match.values[0])
        matches.append(f"{{attribute: {match.attribute}, {match.rule}: {values}}}")
    shape = {
        "window": ["window: {unit: minute, count: 1}"],
        "token_bucket": ["refill: {unit: minute, count: 1}", f"burst: {limit.burst}"],
    }.get(limit.kind, [])
    facts = [
        f"name: {limit.name}",
        f"meter: {limit.meter}",
        f"kind: {limit.kind}",
        f"amount: {limit.amount}",
        *shape,
        # Shared, so that the model may look at what a parent has left as well.
        "shared: true",
        f"enforcement: {limit.enforcement}",
        "failure_policy: closed",
        f"match: [{', '.join(matches)}]",
        f"key: [{', '.join(limit.key)}]",
    ]
    return f"{{{', '.join(facts)}}}"


def catalogue(declared: Iterable[tuple[str, tuple[Limit, ...]]]) -> str:
    """Declare tenants by name, each with a parent, and both on plans with their limits."""
    subscription = '{start: "2026-01-01T00:00:00Z", anchor: start, time_zone: UTC}'
    plans, tenants = [], []
    for name, limits in declared:
        for role, parent in (("parent", ""), ("child", f", parent: {name}-parent")):
            own = "".join(f"\n      - {limit_yaml(limit)}" for limit in limits if limit.of_parent == (role == "parent"))
            plan = f"{name}-{role}"
            head = f"  - name: {plan}\n    currency: USD\n    billing_interval: {{unit: month, count: 1}}\n    limits:"
            plans.append(head + (own or " []"))
            tenants.append(f"  - {{id: {plan}, name: {plan}, plan: {plan}, subscription: {subscription}{parent}}}")
    seller = '{id: default, name: T, address: ["-"], tax_id: "-", invoice_prefix: T, currency: USD, time_zone: UTC}'
    meters = [f"  - {{name: {meter}, unit: {meter}, aggregation: sum, attributes: [who]}}" for meter in ALL_METERS]
    return "\n".join(
        ["version: 1", f"seller: {seller}", "meters:", *meters, "plans:", *plans, "tenants:", *tenants],
    )
