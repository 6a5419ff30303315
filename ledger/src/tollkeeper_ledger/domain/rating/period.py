"""Rate one billing period of a subscription whose plan, seats or state may change within it.

A period is a row of stretches in which nothing changes. Fees are shared out over them; usage is rated by the plan that
was in force when it happened, all of a plan's usage in a period together. Fees in advance of the next period are billed
with this one; where this period became another than what was billed ahead for it, the unused share is taken back and
the new one charged.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, groupby, repeat
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from tollkeeper_ledger.domain.money import exact, major, parse_decimal, round_line
from tollkeeper_ledger.domain.periods import Period
from tollkeeper_ledger.domain.proration import prorate, true_up
from tollkeeper_ledger.domain.rating.charges import Charge, Charges, SubscriptionFacts
from tollkeeper_ledger.domain.rating.engine import rate_late, rate_usage
from tollkeeper_ledger.domain.rating.fees import (
    BY_SECOND,
    NEVER,
    Share,
    fee_line,
    length,
    share_minor,
)
from tollkeeper_ledger.domain.rating.paid import PaidFee, PaidPeriod, give_back
from tollkeeper_ledger.domain.rating.progressive import without_end
from tollkeeper_ledger.domain.rating.reductions import (
    Coupon,
    Grant,
    GrantUse,
    amount_line,
    pay_with_credit,
    units_granted,
    units_used,
    with_coupons,
)
from tollkeeper_ledger.domain.rating.terms import terms_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tollkeeper_ledger.domain.money import Currency
    from tollkeeper_ledger.domain.rating.charges import LateUsage, PriceJson, Total
    from tollkeeper_ledger.domain.rating.reductions import Reduced
    from tollkeeper_ledger.domain.rating.terms import PlanTerms

_USED_WHERE_TAKEN = 2
"""Engine version since which a coupon is used up by what it takes something off alone."""

Plans: TypeAlias = "Mapping[str, PriceJson]"
"""Plan versions' definitions by digest."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time within a period in which nothing about the subscription changes."""

    span: Period
    plan: str
    """Digest of the plan version."""
    state: str
    """`active`, `trialing` or `paused`; fees are due while it is active."""
    quantity: int
    """Seats."""

    @property
    def key(self) -> tuple[str, int] | None:
        """Name what fees depend on; None where none are due."""
        return (self.plan, self.quantity) if self.state == "active" else None


@dataclass(frozen=True, slots=True)
class Ahead:
    """Fees of a period that are billed before it: under which plan, for which time."""

    plan: str
    quantity: int
    span: Period
    whole: Period
    """The whole period between two boundaries; `span` is shorter where the subscription begins within it."""
    time_zone: str = ""
    """Zone of its days; empty: that of the period whose facts these are."""
    paid: tuple[PaidFee, ...] = ()
    """What was charged for each fee in advance of the plan, in its order; empty: not known, or not asked for."""
    is_void: bool = False
    """Whether the invoice is void that billed it: nobody paid, so nothing is given back, and nobody is to pay anew."""


@dataclass(frozen=True, slots=True)
class PeriodFacts:
    """Everything but usage that the charges of a period depend on."""

    time_zone: str
    period: Period
    whole: Period
    stretches: tuple[Stretch, ...]
    """In order, without gaps; empty for the opening of a subscription, which only bills ahead."""
    ahead: Ahead | None
    """What was billed ahead for this period."""
    advance: Ahead | None
    """What is to be billed ahead now, for the next one."""
    coupons: tuple[Coupon, ...] = ()
    grants: tuple[Grant, ...] = ()
    """In the order in which they are used."""
    paid_late: tuple[PaidPeriod, ...] = ()
    """What was charged for periods whose usage late segments take back."""
    is_cut: bool = False
    """The period still runs and is billed up to here: usage alone, of prices that can't fall when more is used."""


@dataclass(frozen=True, slots=True)
class PeriodUsage:
    """Usage of a period."""

    by_plan: Mapping[str, Sequence[Total]]
    """Sums by digest of the plan version that rates them, without what a trial gave away."""
    late: tuple[LateUsage, ...] = ()


class RatedPeriod(NamedTuple):
    """What a period costs, and what of grants is used for it."""

    charges: Charges
    grants_used: tuple[GrantUse, ...]
    coupons_used: tuple[str, ...]
    ahead_lines: range
    """Places of the lines of fees in advance of the next period."""
    used_lines: Mapping[str, range]
    """Places of the lines of usage by digest of the plan version that rates it, late usage left out."""


@exact
def rate_period(facts: PeriodFacts, usage: PeriodUsage, plans: Plans, *, engine_version: int) -> RatedPeriod:
    """Give the charges of one period. Pure. Raises ValueError for an engine version or a model that does not exist.

    In a trial nothing is due: no fee, and no usage, which is left out of `usage`. While paused no fee is due, and what
    is used all the same is charged. A cut charges usage alone.
    """
    if facts.is_cut:
        plans = {digest: without_end(plan) for digest, plan in plans.items()}
    read = {digest: terms_of(plan) for digest, plan in plans.items()}
    digests = list(dict.fromkeys([stretch.plan for stretch in facts.stretches])) or [_only_plan(facts)]
    currency = read[digests[-1]].currency
    granted = units_granted(facts.grants)
    fees = {digest: _arrears(facts, digest, read[digest], currency) for digest in digests}
    span = SubscriptionFacts(period_start=facts.period.start, period_end=facts.period.end)
    used = {
        digest: _used(facts, digest, usage, read[digest], span, granted=granted, engine_version=engine_version)
        for digest in dict.fromkeys([*digests, *usage.by_plan])
    }
    lines = [line for of_plan in fees.values() for line in of_plan]
    used_lines = {}
    for digest, of_plan in used.items():
        used_lines[digest] = range(len(lines), len(lines) + len(of_plan))
        lines.extend(of_plan)
    if usage.late:
        lines.extend(rate_late(usage.late, currency, engine_version=engine_version))
    lines.extend(_corrections(facts, read, currency))
    for digest in digests:
        lines.extend(_commitment(facts, digest, read[digest], [*fees[digest], *used[digest]], currency))
    before = len(lines)
    if facts.advance is not None:
        lines.extend(
            _fees_ahead(facts.advance, read[facts.advance.plan], facts.advance.time_zone or facts.time_zone, currency)
        )
    reduced = with_coupons(facts.coupons, lines, currency)
    paid, credit_used = pay_with_credit(facts.grants, reduced.lines, facts.period, currency)
    return RatedPeriod(
        charges=Charges(currency=currency, lines=(*reduced.lines, *paid)),
        grants_used=(*units_used(facts.grants, granted), *credit_used),
        coupons_used=_coupons_used(facts, reduced, engine_version=engine_version),
        ahead_lines=range(before, len(lines)),
        used_lines=used_lines,
    )


def _coupons_used(facts: PeriodFacts, reduced: Reduced, *, engine_version: int) -> tuple[str, ...]:
    if engine_version >= _USED_WHERE_TAKEN:
        return reduced.coupons_used
    is_any = any(line.amount_minor > 0 for line in reduced.lines)
    return tuple(coupon.coupon_id for coupon in facts.coupons) if is_any else ()


def _only_plan(facts: PeriodFacts) -> str:
    if facts.advance is None:
        raise ValueError("a period without stretches bills ahead or nothing")
    return facts.advance.plan


def _used(
    facts: PeriodFacts,
    digest: str,
    usage: PeriodUsage,
    plan: PlanTerms,
    span: SubscriptionFacts,
    *,
    granted: dict[str, int],
    engine_version: int,
) -> list[Charge]:
    totals = usage.by_plan.get(digest, ())
    lines = rate_usage(plan, totals, span, engine_version=engine_version, granted=granted)
    if not facts.is_cut:
        for stretch in facts.stretches:
            if stretch.plan == digest and stretch.state == "active":
                return lines
    # What is owed without any use is owed for a plan that was in force, not for a trial or a pause alone.
    return [line for line in lines if line.quantity]


def _share(facts: PeriodFacts, span: Period, plan: PlanTerms, quantity: int) -> Share:
    """Say how much of the whole period a span is, as the plan measures it."""
    return _share_of(span, facts.whole, plan, quantity, facts.time_zone)


def _share_of(span: Period, whole: Period, plan: PlanTerms, quantity: int, time_zone: str) -> Share:
    by = plan.proration
    if by == NEVER or span == whole:
        return Share(span.start, span.end, quantity=quantity)
    count = length(whole.start, whole.end, by=by, time_zone=time_zone)
    if not count:
        by, count = BY_SECOND, length(whole.start, whole.end, by=BY_SECOND, time_zone=time_zone)
    part = length(span.start, span.end, by=by, time_zone=time_zone)
    return Share(span.start, span.end, part=part, whole=count, by=by, quantity=quantity)


def _key_for(fee: PriceJson | None, key: tuple[str, int] | None) -> tuple[str, int] | None:
    """Name what one fee depends on: seats only where it is due for each."""
    return (key[0], 1) if key is not None and fee is not None and not fee.get("per_seat") else key


def _runs(stretches: Sequence[Stretch], fee: PriceJson | None = None) -> list[tuple[tuple[str, int], Period]]:
    """Join neighbours for which the same is due, of one fee or of all; leave out where nothing is."""
    if len(stretches) == 1:
        only = _key_for(fee, stretches[0].key)
        return [] if only is None else [(only, stretches[0].span)]
    runs = []
    for key, group in groupby(stretches, key=lambda stretch: _key_for(fee, stretch.key)):
        joined = list(group)
        if key is not None:
            runs.append((key, Period(start=joined[0].span.start, end=joined[-1].span.end)))
    return runs


def _arrears(facts: PeriodFacts, digest: str, plan: PlanTerms, currency: Currency) -> list[Charge]:
    """Give the lines of a plan's fees after the period. Unshared ones are due whole, to the last plan in force."""
    lines: list[Charge] = []
    for fee in plan.arrears:
        runs = _runs(facts.stretches, fee)
        for (of_plan, quantity), span in runs[-1:] if plan.proration == NEVER else runs:
            share = _share(facts, span, plan, quantity)
            if of_plan == digest and share.part:
                lines.append(fee_line(fee, share, currency))
    return lines


def _fees_ahead(ahead: Ahead, plan: PlanTerms, time_zone: str, currency: Currency) -> list[Charge]:
    share = _share_of(ahead.span, ahead.whole, plan, ahead.quantity, time_zone)
    if not share.part:
        return []
    return [fee_line(fee, share, currency, words="in advance") for fee in plan.advance]


def _corrections(facts: PeriodFacts, plans: Mapping[str, PlanTerms], currency: Currency) -> list[Charge]:
    """Take back what was billed ahead and not used, and charge the fees in advance that nobody billed ahead."""
    ahead = facts.ahead
    lines: list[Charge] = []
    if ahead is not None and not ahead.is_void and plans[ahead.plan].proration != NEVER:
        lines.extend(_taken_back(facts, ahead, plans[ahead.plan], currency))
    for digest in dict.fromkeys([stretch.plan for stretch in facts.stretches]):
        plan = plans[digest]
        if ahead is None or plan.proration != NEVER:
            for fee in plan.advance:
                lines.extend(_not_billed_ahead(facts, digest, fee, plan, currency))
    return lines


def _taken_back(facts: PeriodFacts, ahead: Ahead, plan: PlanTerms, currency: Currency) -> Iterator[Charge]:
    """Give the lines that take back what was billed ahead and is not used, as it was paid where that is known."""
    for fee, paid in zip(plan.advance, chain(ahead.paid, repeat(None)), strict=False):
        before_minor = 0
        for span in _unused(facts, ahead, fee):
            share = _share(facts, span, plan, ahead.quantity)
            if share.part:
                line = fee_line(fee, share, currency, words="unused", is_credit=True)
                yield line if paid is None else give_back(line, paid, currency, before_minor=before_minor)
                before_minor -= line.amount_minor


@exact
def paid_instead(ahead: Ahead, plan: PriceJson, time_zone: str) -> tuple[PaidFee, ...]:
    """Say what would have been paid ahead under another plan, without tax: as much off each fee as was off all."""
    amount_minor = sum(fee.amount_minor for fee in ahead.paid)
    off_minor = sum(fee.discount_minor for fee in ahead.paid)
    read = terms_of(plan)
    lines = _fees_ahead(ahead, read, ahead.time_zone or time_zone, read.currency)
    return tuple(
        PaidFee(
            amount_minor=line.amount_minor,
            discount_minor=prorate(off_minor, part=line.amount_minor, whole=amount_minor) if amount_minor else 0,
            tax_minor=0,
            tax_name="",
            tax_percent="",
            tax_mode="exclusive",
        )
        for line in lines
    )


def is_given_back(facts: PeriodFacts) -> bool:
    """Whether some of what was billed ahead for a period may be unused, so that it matters what was paid for it."""
    ahead = facts.ahead
    if ahead is None or ahead.is_void:
        return False
    key = (ahead.plan, ahead.quantity)
    return facts.period.end < ahead.span.end or any(stretch.key != key for stretch in facts.stretches)


def _not_billed_ahead(
    facts: PeriodFacts, digest: str, fee: PriceJson, plan: PlanTerms, currency: Currency
) -> Iterator[Charge]:
    """Give the lines of a fee in advance for the time that nobody billed ahead."""
    ahead = facts.ahead
    for key, run in _runs(facts.stretches, fee):
        span = run
        if ahead is not None and key == _key_for(fee, (ahead.plan, ahead.quantity)):
            # A change that was to end the period within it, and was taken back after the bill, leaves a rest.
            span = Period(start=max(run.start, ahead.span.end), end=run.end)
        share = _share(facts, span, plan, key[1]) if key[0] == digest and span.start < span.end else None
        if share is not None and share.part:
            yield fee_line(fee, share, currency)


def _unused(facts: PeriodFacts, ahead: Ahead, fee: PriceJson) -> list[Period]:
    """Give the spans for which a fee was billed ahead under what was not in force then, neighbours joined."""
    key = _key_for(fee, (ahead.plan, ahead.quantity))
    spans = [stretch.span for stretch in facts.stretches if _key_for(fee, stretch.key) != key]
    if facts.period.end < ahead.span.end:
        spans.append(Period(start=facts.period.end, end=ahead.span.end))
    joined: list[Period] = []
    for span in spans:
        if joined and joined[-1].end == span.start:
            joined[-1] = Period(start=joined[-1].start, end=span.end)
        else:
            joined.append(span)
    return joined


def _commitment(
    facts: PeriodFacts, digest: str, plan: PlanTerms, lines: Sequence[Charge], currency: Currency
) -> list[Charge]:
    """Give what is missing to a plan's minimum for the time that it was in force, whatever was billed ahead."""
    if plan.commitment is None:
        return []
    spans = [(span, quantity) for (of_plan, quantity), span in _runs(facts.stretches) if of_plan == digest]
    shares = [_share(facts, span, plan, quantity) for span, quantity in spans]
    if not shares:
        return []
    charged_minor = sum(line.amount_minor for line in lines)
    charged_minor += sum(share_minor(fee, share, currency) for fee in plan.advance for share in shares)
    full_minor = round_line(parse_decimal(plan.commitment), currency)
    part, whole = sum(share.part for share in shares), shares[0].whole
    missing_minor = true_up(full_minor, charged_minor=charged_minor, part=min(part, whole), whole=whole)
    if not missing_minor:
        return []
    of_whole = "" if part >= whole else f" for {shares[0]._replace(part=part).text}"
    steps = (
        f"minimum of {plan.commitment} {currency.code}{of_whole}",
        f"fees and usage: {major(charged_minor, currency)} {currency.code}",
        f"missing: {major(missing_minor, currency)} {currency.code}",
    )
    return [amount_line("Minimum commitment", missing_minor, facts.period, kind="commitment", explanation=steps)]
