"""A real sidecar on a real ledger decides as the obvious model does, for random limits and random calls.

The ledger's clock stands still between steps, so that every answer is exact.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from clock_support import set_clock
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from quota_model import MINUTE_US, Limit, Match, Model, Said
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc, usage_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from platform_support import Platform

EXAMPLES = 25
SECOND_US = 1_000_000
METERS = ("requests", "tokens")
VALUES = ("a", "ab", "b")
WAIT_S = 60.0
AGAIN_MAX = 400


@dataclass(frozen=True, slots=True)
class Check:
    """A check that takes, or only looks."""

    costs: dict[str, int]
    attributes: dict[str, str]
    peek: bool = False


@dataclass(frozen=True, slots=True)
class Reserve:
    """A reservation that is ended at once at the actual quantities; none = released."""

    costs: dict[str, int]
    attributes: dict[str, str]
    actual: dict[str, int] | None


@dataclass(frozen=True, slots=True)
class Advance:
    """So much time passes."""

    us: int


Step: TypeAlias = Check | Reserve | Advance


@dataclass(slots=True)
class Run:
    """One example against the platform."""

    platform: Platform
    tenant: str
    model: Model
    stub: quota_pb2_grpc.QuotaServiceStub
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))


def units(highest: int = 12) -> st.SearchStrategy[int]:
    """Draw units: small ones, so that limits are met, and none at all."""
    return st.integers(0, highest)


@st.composite
def limits(draw: st.DrawFn) -> tuple[Limit, ...]:
    """Draw one to five limits of a tenant and its parent."""
    drawn = []
    for number in range(draw(st.integers(1, 5))):
        amount = draw(st.one_of(st.integers(1, 30), st.sampled_from([-1, 0])))
        rule = draw(st.sampled_from(["exact", "prefix", "set", "any", None, None]))
        match = () if rule is None else (Match(attribute="who", rule=rule, values=("",) if rule == "any" else ("a",)),)
        drawn.append(
            Limit(
                name=f"l{number}",
                meter=draw(st.sampled_from(METERS)),
                # TODO(#4): token buckets again, once the model knows that settling gives back and that slices lapse.
                kind="window",
                amount=amount,
                burst=max(amount, 0),
                enforcement=draw(st.sampled_from(["hard", "hard", "hard", "soft", "shadow"])),
                match=match,
                key=draw(st.sampled_from([(), (), ("who",)])),
                of_parent=draw(st.booleans()),
            )
        )
    return tuple(drawn)


def steps() -> st.SearchStrategy[list[Step]]:
    """Draw up to fifteen calls, time passing between some of them."""
    costs = st.dictionaries(st.sampled_from(METERS), units(), min_size=1)
    # TODO(#4): reserving nothing holds no window, so what is settled above it is not counted.
    reserved = st.dictionaries(st.sampled_from(METERS), units().map(lambda drawn: max(drawn, 1)), min_size=1)
    attributes = st.one_of(st.just({}), st.fixed_dictionaries({"who": st.sampled_from(VALUES)}))
    actual = st.one_of(st.none(), st.dictionaries(st.sampled_from(METERS), units(20)))
    return st.lists(
        st.one_of(
            st.builds(Check, costs, attributes, st.booleans()),
            st.builds(Check, costs, attributes),
            st.builds(Reserve, reserved, attributes, actual),
            st.builds(Advance, st.integers(1, MINUTE_US)),
        ),
        min_size=3,
        max_size=15,
    )


def limit_yaml(limit: Limit) -> str:
    """Return a limit for a catalogue."""
    matches = []
    for match in limit.match:
        values = {"any": "true", "set": str(list(match.values))}.get(match.rule, match.values[0])
        matches.append(f"{{attribute: {match.attribute}, {match.rule}: {values}}}")
    shape = (
        "window: {unit: minute, count: 1}"
        if limit.kind == "window"
        else f"refill: {{unit: minute, count: 1}}, burst: {limit.burst}"
    )
    # Shared, so that the model may look at what a parent has left as well.
    shape += ", shared: true"
    return (
        f"{{name: {limit.name}, meter: {limit.meter}, kind: {limit.kind}, amount: {limit.amount}, {shape}, "
        f"enforcement: {limit.enforcement}, match: [{', '.join(matches)}], key: [{', '.join(limit.key)}]}}"
    )


def catalogue(name: str, declared: tuple[Limit, ...]) -> str:
    """Declare a tenant and its parent, each on a plan with its limits."""
    subscription = '{start: "2026-01-01T00:00:00Z", anchor: start, time_zone: UTC}'
    plans, tenants = [], []
    for role, parent in (("parent", ""), ("child", f", parent: {name}-parent")):
        own = "".join(f"\n      - {limit_yaml(limit)}" for limit in declared if limit.of_parent == (role == "parent"))
        plan = f"{name}-{role}"
        plans.append(
            f"  - name: {plan}\n    currency: USD\n    billing_interval: {{unit: month, count: 1}}\n    limits:"
            + (own or " []")
        )
        tenants.append(f"  - {{id: {plan}, name: {plan}, plan: {plan}, subscription: {subscription}{parent}}}")
    return "\n".join(
        [
            "version: 1",
            (
                'seller: {id: default, name: T, address: ["-"], tax_id: "-", invoice_prefix: T, currency: USD,'
                " time_zone: UTC}"
            ),
            "meters:",
            *(f"  - {{name: {meter}, unit: {meter}, aggregation: sum, attributes: [who]}}" for meter in METERS),
            "plans:",
            *plans,
            "tenants:",
            *tenants,
        ]
    )


async def decide(
    run: Run, costs: dict[str, int], attributes: dict[str, str], mode: quota_pb2.CheckMode.ValueType
) -> quota_pb2.CheckQuotaResponse:
    """Ask the sidecar; asks again where no authority answered it in time, which decides and takes nothing."""
    for _ in range(AGAIN_MAX):
        answer = await run.stub.CheckQuota(
            quota_pb2.CheckQuotaRequest(
                tenant=run.tenant,
                costs=[quota_pb2.Cost(meter=meter, units=count) for meter, count in costs.items()],
                attributes=attributes,
                mode=mode,
                request_id=f"{run.tenant}/{next(run.numbers)}",
                detail=quota_pb2.DETAIL_ALL,
            ),
            timeout=WAIT_S,
        )
        if answer.decision.reason != decision_pb2.DECISION_REASON_AUTHORITY_UNREACHABLE:
            return answer
        await asyncio.sleep(0.02)
    raise AssertionError(f"no authority for {costs} of {run.tenant}")


def compare(run: Run, step: Step, said: Said, decision: decision_pb2.Decision) -> None:
    """Compare a decision with what the model allows."""
    reason = decision_pb2.DecisionReason.Name(decision.reason).removeprefix("DECISION_REASON_")
    context = f"{step} of {run.model.limits}: {decision}"
    assert said.allowed == decision.allowed, context
    assert reason in said.reasons, context
    if not said.allowed:
        assert decision.binding.name in said.retry_after_us, context
        expected = said.retry_after_us[decision.binding.name]
        assert (expected is not None) == decision.HasField("retry_after"), context
        if expected is not None:
            assert decision.retry_after.ToMicroseconds() == expected, context


async def remaining_agrees(run: Run, attributes: dict[str, str]) -> None:
    """Wait until what remains of every hard window is what the model says: units on their way back count late."""
    give_up_s = time.monotonic() + WAIT_S
    wanted = {
        limit.name: run.model.remaining(limit.name, attributes)
        for limit in run.model.limits
        if limit.kind == "window" and limit.amount >= 0 and limit.enforcement == "hard"
    }
    while True:
        answer = await run.stub.GetQuota(
            quota_pb2.GetQuotaRequest(tenant=run.tenant, attributes=attributes), timeout=WAIT_S
        )
        shown = {state.name: state.remaining for state in answer.limits if state.name in wanted}
        if shown == wanted:
            return
        assert time.monotonic() < give_up_s, f"remaining {shown}, expected {wanted}: {run.model.limits}"
        await asyncio.sleep(0.02)


async def take_step(run: Run, step: Step) -> None:
    """Do a step in both worlds."""
    match step:
        case Advance(us):
            run.model.now_us = await set_clock(run.platform, run.model.now_us + us)
        case Check(costs, attributes, peek):
            mode = quota_pb2.CHECK_MODE_PEEK if peek else quota_pb2.CHECK_MODE_CONSUME
            answer = await decide(run, costs, attributes, mode)
            compare(run, step, run.model.check(costs, attributes, take=not peek), answer.decision)
        case Reserve(costs, attributes, actual):
            answer = await decide(run, costs, attributes, quota_pb2.CHECK_MODE_RESERVE)
            compare(run, step, run.model.reserve("r", costs, attributes), answer.decision)
            if not answer.decision.allowed:
                return
            if actual is None:
                await run.stub.ReleaseReservation(
                    quota_pb2.ReleaseReservationRequest(token=answer.reservation.token), timeout=WAIT_S
                )
            else:
                quantities = [usage_pb2.Quantity(meter=meter, units=count) for meter, count in actual.items()]
                await run.stub.SettleReservation(
                    quota_pb2.SettleReservationRequest(token=answer.reservation.token, quantities=quantities),
                    timeout=WAIT_S,
                )
            run.model.end("r", actual or {})


_examples = itertools.count(1)


async def play(platform: Platform, declared: tuple[Limit, ...], played: list[Step]) -> None:
    """Run an example with a tenant of its own."""
    name = f"m{next(_examples)}"
    # A sidecar's clock never goes back: one that ran a little ahead before the clock stopped must be overtaken.
    now_us = await set_clock(platform, await set_clock(platform, None) + SECOND_US)
    await platform.apply(catalogue(name, declared))
    async with platform.channel() as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        run = Run(platform, f"{name}-child", Model(declared, now_us), stub)
        for step in played:
            await take_step(run, step)
        await remaining_agrees(run, {"who": "a"})


WINDOW = Limit(name="l0", meter="requests", kind="window", amount=10)
ONE = Check({"requests": 1}, {})


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(declared=limits(), played=steps())
@example(declared=(WINDOW,), played=[ONE, Check({"requests": 10}, {}), Advance(MINUTE_US), Check({"requests": 10}, {})])
@example(declared=(WINDOW,), played=[Reserve({"requests": 6}, {}, {"requests": 2}), Check({"requests": 8}, {}), ONE])
def test_decisions_are_the_models(platform: Platform, declared: tuple[Limit, ...], played: list[Step]) -> None:
    """For random limits and calls a sidecar admits, denies, explains and counts as the model does."""
    asyncio.run(play(platform, declared, played))
