"""The invoice as bytes: inputs taken at the close, and the document made of them.

Both are canonical JSON. The document is a pure function of the inputs, the plan versions' definitions, and what
finalising adds (id, number, time): it can be made again on another machine and must come out the same.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.catalogue.canonical import canonical_json, digest_of
from tollkeeper_ledger.domain.invoice_lines import FIGURE_MAX, summed
from tollkeeper_ledger.domain.period_facts import (
    digests_of_facts,
    facts_from_json,
    facts_to_json,
    instant_of,
    instant_text,
    period_to_json,
)
from tollkeeper_ledger.domain.rating.charges import LateUsage, Total
from tollkeeper_ledger.domain.rating.dimensions import added
from tollkeeper_ledger.domain.rating.engine import ENGINE_VERSION
from tollkeeper_ledger.domain.rating.paid import GivenBack, PaidFee, PaidUsage
from tollkeeper_ledger.domain.rating.period import PeriodFacts, PeriodUsage, RatedPeriod, rate_period
from tollkeeper_ledger.domain.rating.plan_bytes import is_named_by, plan_of
from tollkeeper_ledger.domain.seller_taxes import NO_TAXES, NOWHERE, SellerTaxes, TaxPlace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from tollkeeper_ledger.domain.periods import Period
    from tollkeeper_ledger.domain.rating.charges import Attributes

Json: TypeAlias = dict[str, Any]

INPUTS_FORMAT = 2
DOCUMENT_FORMAT = 1


@dataclass(frozen=True, slots=True)
class PlanReference:
    """Name a plan version by the digest of its bytes."""

    name: str
    version: int
    digest: str
    """SHA-256, hex."""


@dataclass(frozen=True, slots=True)
class SegmentInput:
    """One closed segment with its exact sums."""

    segment_id: str
    record_count: int
    totals: tuple[Total, ...]
    plan: str = ""
    """Digest of the plan version that rates it; empty in a trial, whose usage is free."""
    part_of: str = ""
    """Start of the stretch whose parts are added up, where progressive invoices cut it."""


@dataclass(frozen=True, slots=True)
class LateInput:
    """One closed segment of late usage, its own period, and what had been billed for that."""

    segment: SegmentInput
    late_for: str
    """Segment id of the period that the usage belongs to."""
    period: Period
    plan: PlanReference
    before: tuple[Total, ...]


@dataclass(frozen=True, slots=True)
class Parties:
    """Who invoices whom, as they were at the close."""

    seller: Json
    tenant: Json
    billing_tenant: Json
    taxes: SellerTaxes = NO_TAXES
    """The seller's; which of them apply is frozen with the payer's terms."""
    place: TaxPlace = NOWHERE


@dataclass(frozen=True, slots=True)
class CloseInputs:
    """Everything that an invoice is made of."""

    parties: Parties
    subscription_id: str
    time_zone: str
    period: Period
    plan: PlanReference
    """In force at the period's end."""
    facts: PeriodFacts
    engine_version: int
    segments: tuple[SegmentInput, ...]
    late: tuple[LateInput, ...]
    chain_heads: tuple[Json, ...]
    not_waited_for: tuple[str, ...]
    closed_at: datetime
    billing: Json
    """The payer's terms, taxes, language and paper, as `BillingProfile.frozen` gives them."""
    items: tuple[Json, ...] = ()
    """What operators added: item_id, description, amount_minor."""
    invoiced: tuple[Json, ...] = ()
    """What progressive invoices of the same period said already, as `already_invoiced` gives it."""

    @property
    def record_count(self) -> int:
        """Give the number of usage records that the invoice is about."""
        return sum(one.record_count for one in self.segments) + sum(one.segment.record_count for one in self.late)


def merge_totals(groups: Sequence[Sequence[Total]]) -> tuple[Total, ...]:
    """Add up sums of the same meters and attribute values, in their order."""
    merged: dict[tuple[str, Attributes], Total] = {}
    for total in (total for group in groups for total in group):
        key = total.meter, total.attributes
        merged[key] = added(merged[key], total) if key in merged else total
    return tuple(merged[key] for key in sorted(merged))


def _totals_json(totals: Sequence[Total]) -> list[Json]:
    return [_total_json(total) for total in totals]


def _total_json(total: Total) -> Json:
    shown: Json = {"meter": total.meter, "unit": total.unit, "scale": total.scale, "units": total.units}
    if total.attributes:
        shown["attributes"] = [list(pair) for pair in total.attributes]
    if total.events:
        shown["events"] = [list(run) for run in total.events]
    return shown


def _plan_json(plan: PlanReference) -> Json:
    return {"name": plan.name, "version": plan.version, "digest": plan.digest}


def _segment_json(segment: SegmentInput) -> Json:
    return {
        "segment_id": segment.segment_id,
        "record_count": segment.record_count,
        "totals": _totals_json(segment.totals),
        "plan": segment.plan,
        **({"part_of": segment.part_of} if segment.part_of else {}),
    }


def usage_to_json(segments: Sequence[SegmentInput], lates: Sequence[LateInput]) -> Json:
    """Write the usage of a period as its inputs keep it."""
    return {
        "segments": [_segment_json(segment) for segment in segments],
        "late": [
            {
                "segment": _segment_json(late.segment),
                "late_for": late.late_for,
                "period": period_to_json(late.period),
                "plan": _plan_json(late.plan),
                "before": _totals_json(late.before),
            }
            for late in lates
        ],
    }


def inputs_to_bytes(inputs: CloseInputs) -> bytes:
    """Give the canonical bytes that are stored with the close."""
    return canonical_json(inputs_to_json(inputs))


def inputs_to_json(inputs: CloseInputs) -> Json:
    """Give what the stored bytes say: reading them gives an equal object."""
    return {
        "format": INPUTS_FORMAT,
        "engine_version": inputs.engine_version,
        "seller": inputs.parties.seller,
        "tenant": inputs.parties.tenant,
        "billing_tenant": inputs.parties.billing_tenant,
        "subscription_id": inputs.subscription_id,
        "time_zone": inputs.time_zone,
        "period": period_to_json(inputs.period),
        "plan": _plan_json(inputs.plan),
        **usage_to_json(inputs.segments, inputs.late),
        "facts": facts_to_json(inputs.facts),
        "record_count": inputs.record_count,
        "chain_heads": list(inputs.chain_heads),
        "not_waited_for": list(inputs.not_waited_for),
        "closed_at": instant_text(inputs.closed_at),
        "billing": inputs.billing,
        "items": list(inputs.items),
        **({"invoiced": list(inputs.invoiced)} if inputs.invoiced else {}),
    }


def with_parties(inputs: bytes, parties: Parties, billing: Json, *, replaces: str) -> bytes:
    """Give the same inputs with seller's, tenant's and payer's data and terms as they are now.

    `replaces`: number of the void invoice, which the new one names.
    """
    stored = json.loads(inputs)
    stored.update(seller=parties.seller, tenant=parties.tenant, billing_tenant=parties.billing_tenant, billing=billing)
    stored["replaces"] = replaces
    return canonical_json(stored)


def _read_totals(totals: Sequence[Json]) -> tuple[Total, ...]:
    return tuple(
        Total(
            meter=total["meter"],
            unit=total["unit"],
            scale=total["scale"],
            units=total["units"],
            attributes=tuple((name, value) for name, value in total.get("attributes", ())),
            events=tuple((units, count) for units, count in total.get("events", ())),
        )
        for total in totals
    )


def digests_named(inputs: bytes) -> set[str]:
    """Give the digests of the plan versions that the inputs are rated with."""
    return _digests_of(json.loads(inputs))


def digests_of(inputs: CloseInputs) -> set[str]:
    """Give what `digests_named` gives of these inputs' bytes."""
    facts = inputs.facts
    ahead = {one.plan for one in (facts.ahead, facts.advance) if one is not None}
    late = {late.plan.digest for late in inputs.late}
    return {inputs.plan.digest} | late | ahead | {stretch.plan for stretch in facts.stretches}


def _digests_of(stored: Json) -> set[str]:
    named = {stored["plan"]["digest"], *(late["plan"]["digest"] for late in stored["late"])}
    return named | digests_of_facts(stored["facts"])


@dataclass(frozen=True, slots=True)
class RatedInputs:
    """Inputs and what they come to: all that an invoice is made of but its id, number and time."""

    inputs: bytes
    stored: Json
    """The inputs as JSON."""
    rated: RatedPeriod
    sums: Json
    """Lines, taxes and sums, as the document has them."""


def rate_inputs(inputs: bytes, definitions: Mapping[str, bytes]) -> RatedPeriod:
    """Rate stored inputs; `definitions` holds the plan versions' bytes by digest, those of other inputs as well.

    Raises ValueError where a definition is missing or its bytes don't have the digest that they are named by.
    """
    return _rated(json.loads(inputs), definitions)


def rate_and_sum(inputs: bytes, definitions: Mapping[str, bytes]) -> RatedInputs:
    """Rate stored inputs and sum their lines. Raises ValueError as `rate_inputs` does."""
    return _rate_and_sum(inputs, json.loads(inputs), definitions)


def _rate_and_sum(inputs: bytes, stored: Json, definitions: Mapping[str, bytes]) -> RatedInputs:
    rated = _rated(stored, definitions)
    sums = summed(rated.charges, stored, engine_version=stored["engine_version"])
    return RatedInputs(inputs=inputs, stored=stored, rated=rated, sums=sums)


def paid_ahead(inputs: bytes, definitions: Mapping[str, bytes]) -> tuple[PaidFee, ...]:
    """Say what an invoice of these inputs charges for each fee in advance. Raises ValueError as `rate_inputs` does.

    Taxes of single lines are those of today's engine: the first one's were of the wrong size beside lines below zero.
    """
    stored = json.loads(inputs)
    rated = _rated(stored, definitions)
    lines = summed(rated.charges, stored, engine_version=ENGINE_VERSION)["lines"]
    return tuple(_paid(lines[place], stored) for place in rated.ahead_lines)


def paid_usage(inputs: bytes, definitions: Mapping[str, bytes], *, plan: str) -> tuple[PaidUsage, ...]:
    """Say what an invoice of these inputs charges for usage under a plan version, by its digest, as `paid_ahead` does.

    What is free, and late usage, is left out.
    """
    stored = json.loads(inputs)
    rated = _rated(stored, definitions)
    lines = summed(rated.charges, stored, engine_version=ENGINE_VERSION)["lines"]
    found = ((rated.charges.lines[place], lines[place]) for place in rated.used_lines.get(plan, ()))
    return tuple(
        PaidUsage(meter=line.meter, attributes=line.dimensions, paid=_paid(said, stored))
        for line, said in found
        if line.kind == "usage" and line.amount_minor > 0
    )


def usage_given_back_by(
    inputs: bytes, definitions: Mapping[str, bytes], *, plan: str, period: Period
) -> tuple[GivenBack, ...]:
    """Say what an invoice of these inputs gives back of an earlier period's usage under a plan version, by its digest.

    Raises ValueError as `rate_inputs` does.
    """
    stored = json.loads(inputs)
    starts = {instant_of(late["period"]["start"]) for late in stored["late"] if late["plan"]["digest"] == plan}
    meant = {start for start in starts if period.start <= start < period.end}
    return tuple(
        GivenBack(
            meter=line.meter,
            attributes=line.dimensions,
            amount_minor=line.amount_minor,
            discount_minor=line.discount_minor,
            tax_minor=line.given_back.tax_minor,
        )
        for line in _rated(stored, definitions).charges.lines
        if line.late and line.given_back is not None and line.period_start in meant
    )


def _paid(line: Json, stored: Json) -> PaidFee:
    return PaidFee(
        amount_minor=line["amount_minor"],
        discount_minor=line["discount_minor"],
        tax_minor=line["tax"]["tax_minor"],
        tax_name=line["tax"]["name"],
        tax_percent=line["tax"]["percent"],
        tax_mode=stored["billing"]["tax_mode"],
    )


def _rated(stored: Json, definitions: Mapping[str, bytes]) -> RatedPeriod:
    plans = {}
    for digest in _digests_of(stored):
        if digest not in definitions or not is_named_by(definitions[digest], digest):
            raise ValueError(f"the plan version's bytes don't have the digest {digest}")
        plans[digest] = plan_of(definitions[digest])
    facts = facts_from_json(stored)
    paid = {one.segment_id: one for one in facts.paid_late}
    by_plan = _totals_by_plan(stored["segments"])
    usage = PeriodUsage(
        by_plan={digest: merge_totals(groups) for digest, groups in by_plan.items()},
        late=tuple(
            LateUsage(
                definition=definitions[late["plan"]["digest"]],
                period_start=instant_of(late["period"]["start"]),
                period_end=instant_of(late["period"]["end"]),
                before=_read_totals(late["before"]),
                added=_read_totals(late["segment"]["totals"]),
                paid=paid.get(late["segment"]["segment_id"]),
            )
            for late in stored["late"]
            if late["segment"]["plan"]
        ),
    )
    return rate_period(facts, usage, plans, engine_version=stored["engine_version"])


def _totals_by_plan(segments: Sequence[Json]) -> dict[str, list[tuple[Total, ...]]]:
    """Give the sums of each plan's stretches; parts of one are added up, never below 0 together."""
    stretches: dict[tuple[str, str], list[tuple[Total, ...]]] = {}
    for place, segment in enumerate(segments):
        if segment["plan"]:
            stretch = segment.get("part_of") or str(place)
            stretches.setdefault((segment["plan"], stretch), []).append(_read_totals(segment["totals"]))
    by_plan: dict[str, list[tuple[Total, ...]]] = {}
    for (plan, _), parts in stretches.items():
        totals = parts[0] if len(parts) == 1 else merge_totals(parts)
        by_plan.setdefault(plan, []).append(
            tuple(total if total.units >= 0 else total._replace(units=0) for total in totals)
        )
    return by_plan


def check_billable(inputs: Json, definitions: Mapping[str, bytes]) -> RatedInputs:
    """Rate inputs, as `inputs_to_json` gives them, and sum their lines; nothing is written to be read again.

    Raises ValueError where no invoice can be made of them: a figure is too large, or rating refuses.
    """
    found = _rate_and_sum(canonical_json(inputs), inputs, definitions)
    for line in found.rated.charges.lines:
        if max(line.quantity, abs(line.amount_minor)) > FIGURE_MAX:
            raise ValueError(f"{line.description}: {line.quantity} {line.unit} is more than an invoice can carry")
    if max(abs(found.sums["subtotal_minor"]), abs(found.sums["total_minor"])) > FIGURE_MAX:
        raise ValueError(f"the total {found.sums['total_minor']} is more than an invoice can carry")
    return found


@dataclass(frozen=True, slots=True)
class Finalised:
    """What finalising adds to the inputs; all None on a preview."""

    invoice_id: str | None
    number: str | None
    at: datetime | None


def make_document(inputs: bytes, definitions: Mapping[str, bytes], finalised: Finalised) -> Json:
    """Rate inputs and give the whole invoice as JSON. Raises ValueError as `rate_inputs` does."""
    return document_of(rate_and_sum(inputs, definitions), finalised)


def document_of(found: RatedInputs, finalised: Finalised) -> Json:
    """Give the whole invoice of rated inputs as JSON."""
    charges, stored = found.rated.charges, found.stored
    names = ("seller", "tenant", "billing_tenant", "subscription_id", "time_zone", "period", "plan", "engine_version",
             "record_count")  # fmt: skip
    manifest = {name: stored[name] for name in ("chain_heads", "not_waited_for", "closed_at")}
    segments = [*stored["segments"], *(late["segment"] for late in stored["late"])]
    manifest["segments"] = [
        {"segment_id": segment["segment_id"], "record_count": segment["record_count"]} for segment in segments
    ]
    manifest["inputs_digest"] = digest_of(found.inputs).hex()
    return {
        "format": DOCUMENT_FORMAT,
        **_finalised_json(finalised),
        "currency": charges.currency.code,
        "currency_digits": charges.currency.digits,
        **{name: stored[name] for name in names},
        "billing": stored["billing"],
        **({"is_cut": True} if stored["facts"].get("is_cut") else {}),
        **({"replaces": stored["replaces"]} if "replaces" in stored else {}),
        **found.sums,
        "manifest": manifest,
    }


def invoice_number(prefix: str, serial: int) -> str:
    """Give an invoice's number."""
    return f"{prefix}-{serial:06d}"


@dataclass(frozen=True, slots=True)
class Unnumbered:
    """An invoice as it is written before its number is known: whoever waits for the number waits for nothing else."""

    document: Json
    """The whole invoice; its number and time are to come."""
    parts: tuple[bytes, bytes, bytes]
    """Its canonical bytes before the time, between time and number, and after that."""

    def finalise(self, number: str, at: datetime) -> tuple[Json, bytes]:
        """Give the invoice with its number and the moment at which it gets it, and its canonical bytes."""
        before, between, after = self.parts
        moment = instant_text(at)
        written = b"".join((before, canonical_json(moment), between, canonical_json(number), after))
        return self.document | {"number": number, "finalised_at": moment}, written


def unnumbered(found: RatedInputs, invoice_id: str) -> Unnumbered:
    """Write the invoice of rated inputs, but for number and time."""
    document = document_of(found, Finalised(invoice_id=invoice_id, number=_GAP, at=None)) | {"finalised_at": _GAP}
    before, between, after = document_to_bytes(document).split(canonical_json(_GAP))
    return Unnumbered(document, (before, between, after))


_GAP = secrets.token_hex(16)
"""Stands for what is not known yet; nobody can have written it into an invoice."""


def _finalised_json(finalised: Finalised) -> Json:
    return {
        "invoice_id": finalised.invoice_id,
        "number": finalised.number,
        "state": "preview" if finalised.number is None else "finalised",
        "finalised_at": None if finalised.at is None else instant_text(finalised.at),
    }


def document_to_bytes(document: Json) -> bytes:
    """Give the canonical bytes whose SHA-256 is the invoice's digest."""
    return canonical_json(document)
