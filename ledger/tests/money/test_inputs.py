"""What a close keeps is rated as it was gathered: writing and reading it changes nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate
from tollkeeper_ledger.domain.invoice import (
    CloseInputs,
    LateInput,
    Parties,
    PlanReference,
    SegmentInput,
    digests_named,
    digests_of,
    inputs_to_bytes,
    inputs_to_json,
)
from tollkeeper_ledger.domain.periods import Period
from tollkeeper_ledger.domain.rating.charges import Total
from tollkeeper_ledger.domain.rating.period import Ahead, PeriodFacts, Stretch
from tollkeeper_ledger.domain.rating.reductions import Coupon, Grant

_START = datetime(2026, 1, 1, tzinfo=UTC)
_MONTH = Period(start=_START, end=_START + timedelta(days=31))
_NEXT = Period(start=_MONTH.end, end=_MONTH.end + timedelta(days=28))
_TOTAL = Total("tokens", "tokens", 3, 2**70, (("model", "large"),), ((1, 2), (3, 4)))
_SEGMENT = SegmentInput(segment_id="s", record_count=2, totals=(_TOTAL,), plan="aa", part_of="2026")
_INPUTS = CloseInputs(
    parties=Parties(seller={"id": "s", "address": ["a"]}, tenant={"id": "t"}, billing_tenant={"id": "p"}),
    subscription_id="u",
    time_zone="Europe/Berlin",
    period=_MONTH,
    plan=PlanReference(name="p", version=1, digest="aa"),
    facts=PeriodFacts(
        time_zone="Europe/Berlin",
        period=_MONTH,
        whole=_MONTH,
        stretches=(Stretch(span=_MONTH, plan="aa", state="active", quantity=2),),
        ahead=Ahead(plan="bb", quantity=1, span=_MONTH, whole=_MONTH),
        advance=Ahead(plan="cc", quantity=1, span=_NEXT, whole=_NEXT, time_zone="UTC"),
        coupons=(Coupon(coupon_id="c", name="n", percent=Decimal("12.50"), amount_minor=None),),
        grants=(Grant(grant_id="g", name="n", meter="tokens", left=5),),
        is_cut=True,
    ),
    engine_version=1,
    segments=(_SEGMENT,),
    late=(
        LateInput(
            segment=_SEGMENT,
            late_for="l",
            period=_MONTH,
            plan=PlanReference(name="p", version=2, digest="dd"),
            before=(_TOTAL,),
        ),
    ),
    chain_heads=({"stream": 1, "position": 2, "hash": "ff"},),
    not_waited_for=("one",),
    closed_at=_NEXT.start,
    billing=BillingProfile(taxes=(TaxRate(name="VAT", percent="19", meters=("tokens",)),)).frozen(),
    items=({"item_id": "i", "description": "d", "amount_minor": 1},),
    invoiced=({"description": "d", "invoices": ["TK-1"]},),
)


def test_what_is_written_is_read_as_it_was() -> None:
    """A close rates what it gathered, and its stored bytes say the very same: lists, texts and numbers alike."""
    assert inputs_to_json(_INPUTS) == json.loads(inputs_to_bytes(_INPUTS))


def test_plans_named_are_those_that_rate() -> None:
    """Inputs and their bytes name the same plan versions: of stretches, of late usage, of fees ahead."""
    assert {"aa", "bb", "cc", "dd"} == digests_of(_INPUTS) == digests_named(inputs_to_bytes(_INPUTS))
