"""Change limits of single tenants while everything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.catalogue.faults import Faults
from tollkeeper_ledger.domain.catalogue.limit import LIMIT_FIELDS, ONE_IN_MAX, limit_to_json, read_limit
from tollkeeper_ledger.domain.catalogue.model import LIMITED
from tollkeeper_ledger.domain.catalogue.reader import NAME, Collected, Fields
from tollkeeper_ledger.domain.catalogue.tree import Entry, Listing, Node, Scalar, Table
from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.domain.limits import UNITS_MAX, LimitKind
from tollkeeper_ledger.services.notes import check_note
from tollkeeper_ledger.store import catalogue_writes as writes
from tollkeeper_ledger.store.catalogue import EVERYTHING, read_meters, read_override
from tollkeeper_ledger.store.changes import record_changes
from tollkeeper_ledger.store.tenants import load_tenants

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.domain.limits import EffectiveLimit, LimitRule
    from tollkeeper_ledger.store.pool import Connection

_SINGLE_FIELDS = ("amount", "enforcement", "burst", "shared", "decision_log", "decision_log_one_in")
"""What an override may change of a rule, one by one."""


@dataclass(frozen=True, slots=True)
class OverrideAsked:
    """What an operator asks for; None keeps what is there."""

    name: str
    amount: int | None
    enforcement: str | None
    burst: int | None
    rule: JsonObject | None
    """A whole rule, in the catalogue's form: in place of whatever there is of that name."""
    note: str
    shared: bool | None = None
    """Callers of child tenants see its figures."""
    decision_log: str | None = None
    """Which of its decisions are kept one by one."""
    decision_log_one_in: int | None = None
    """Of those that are sampled, one in so many."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked."""
        return self.rule is None and all(getattr(self, name) is None for name in _SINGLE_FIELDS)


@dataclass(frozen=True, slots=True)
class Act:
    """Who does it, when, under which request id."""

    actor: str
    request_id: str
    now: datetime


async def set_override(conn: Connection, tenant_id: UUID, asked: OverrideAsked, act: Act) -> int:
    """Set or replace an override and push it; give the change number, with which it is in force.

    A whole rule replaces all that plan, subscription or override say of that name; another kind or key of a limit that
    is used comes into force with the next turn. `conn` is in a transaction of this tenant. Raises UnknownNameError: no
    limit of that name and no rule for one; InvalidFieldError: a value breaks a rule.
    """
    _check_asked(asked)
    existing = await effective_limit(conn, tenant_id, asked.name)
    before = await read_override(conn, tenant_id, name=asked.name)
    if asked.rule is not None:
        rule = await _checked_rule(conn, asked)
    else:
        if existing is None:
            raise UnknownNameError("limit", asked.name, remedy="give a whole rule to make a new limit")
        rule = {**(before or {"name": asked.name}), **_changes(asked, existing.rule)}
    await writes.put_override(conn, tenant_id, name=asked.name, rule=rule, note=asked.note, now=act.now)
    return await _finish(
        conn, tenant_id, asked.name, act, action="SetOverride", before=before, after={**rule, "note": asked.note}
    )


async def delete_override(conn: Connection, tenant_id: UUID, *, name: str, act: Act) -> int:
    """Remove an override and push what it hid; give the change number. Raises UnknownNameError: there is none."""
    before = await writes.delete_override(conn, tenant_id, name=name)
    if before is None:
        raise UnknownNameError("limit", name, remedy="only overrides can be removed; this tenant has none of that name")
    return await _finish(conn, tenant_id, name, act, action="DeleteOverride", before=before, after=None)


async def effective_limit(
    conn: Connection, tenant_id: UUID, name: str, *, at_us: int | None = None
) -> EffectiveLimit | None:
    """Give the tenant's limit of that name as declared, or with the kind and key that it has at `at_us`."""
    views = await load_tenants(conn, tenant_ids=[tenant_id])
    return next((view.limit(name, at_us) for view in views if view.tenant_id == tenant_id), None)


async def _finish(
    conn: Connection,
    tenant_id: UUID,
    name: str,
    act: Act,
    *,
    action: str,
    before: JsonObject | None,
    after: JsonObject | None,
) -> int:
    entry = writes.AuditEntry(subject=f"limit/{name}", tenant_id=tenant_id, before=before, after=after)
    await writes.add_audit(conn, [entry], now=act.now, actor=act.actor, action=action, request_id=act.request_id)
    return await record_changes(conn, [tenant_id])


def _check_asked(asked: OverrideAsked) -> None:
    if NAME.fullmatch(asked.name) is None:
        reason = "FIELD_INVALID" if asked.name else "FIELD_REQUIRED"
        raise InvalidFieldError(
            "limit", "is not a name", reason=reason, value=asked.name, bound="1 to 128 of A-Z a-z 0-9 . _ : -"
        )
    check_note(asked.note)
    if asked.is_empty:
        raise InvalidFieldError(
            "amount",
            "is missing, and so is everything else that could change",
            reason="FIELD_REQUIRED",
            remedy="give amount, enforcement, burst, shared, decision_log or rule",
        )
    for field, value, least, most in (
        ("amount", asked.amount, -1, UNITS_MAX),
        ("burst", asked.burst, 0, UNITS_MAX),
        ("decision_log_one_in", asked.decision_log_one_in, 1, ONE_IN_MAX),
    ):
        if value is not None and not least <= value <= most:
            raise InvalidFieldError(
                field, "is out of range", reason="FIELD_OUT_OF_RANGE", value=value, bound=f"{least} to {most}"
            )


def _changes(asked: OverrideAsked, existing: LimitRule) -> JsonObject:
    if asked.burst is not None and existing.kind is not LimitKind.TOKEN_BUCKET:
        raise InvalidFieldError("burst", "belongs to token buckets only", value=asked.burst, remedy="leave it out")
    is_sampled = (asked.decision_log or existing.decision_log.value) == "sampled"
    if is_sampled and not (asked.decision_log_one_in or existing.decision_log_one_in):
        raise InvalidFieldError(
            "decision_log_one_in", "is missing", reason="FIELD_REQUIRED", bound=f"1 to {ONE_IN_MAX}"
        )
    if asked.decision_log_one_in is not None and not is_sampled:
        problem = "belongs to decision_log sampled only"
        raise InvalidFieldError("decision_log_one_in", problem, value=asked.decision_log_one_in, remedy="leave it out")
    values = {name: getattr(asked, name) for name in _SINGLE_FIELDS}
    return {name: value for name, value in values.items() if value is not None}


async def _checked_rule(conn: Connection, asked: OverrideAsked) -> JsonObject:
    """Read a whole rule as the catalogue would, so that there is one set of rules for rules."""
    rule = {**(asked.rule or {}), "name": asked.name}
    if asked.decision_log is not None:
        rule.pop("decision_log_one_in", None)
    rule.update({name: value for name in _SINGLE_FIELDS if (value := getattr(asked, name)) is not None})
    faults = Faults()
    collected = Collected(faults=faults)
    limit = read_limit(Fields(_tree(rule), "rule", collected, names=LIMIT_FIELDS), time_zone="UTC")
    if faults.found:
        fault = faults.in_order()[0]
        raise InvalidFieldError(
            fault.field, fault.problem, value=fault.value or None, bound=fault.bound, remedy=fault.remedy
        )
    meters = {meter.name: meter for meter in await read_meters(conn, after="", count_max=EVERYTHING)}
    if limit.meter not in meters:
        raise UnknownNameError("meter", limit.meter, remedy="declare it in the catalogue first")
    if meters[limit.meter].aggregation not in LIMITED:
        raise InvalidFieldError(
            "rule.meter", "is for reports", value=meters[limit.meter].aggregation, bound=f"aggregation {LIMITED}"
        )
    if meters[limit.meter].aggregation == "unique" and limit.kind != "window":
        problem = "is not served for a meter that counts distinct values"
        raise InvalidFieldError("rule.kind", problem, value=limit.kind, bound="window", remedy="use kind: window")
    return limit_to_json(limit)


def _tree(value: object) -> Node:
    match value:
        case dict():
            return Table(
                entries=tuple(Entry(name=name, line=1, value=_tree(inner)) for name, inner in value.items()), line=1
            )
        case list() | tuple():
            return Listing(items=tuple(_tree(inner) for inner in value), line=1)
        case bool():
            return Scalar(text="true" if value else "false", line=1, plain=True)
        case _:
            return Scalar(text=str(value), line=1, plain=False)
