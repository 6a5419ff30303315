"""Set what a level really is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.allotment import follow_amount, new_window, notice_due
from tollkeeper_ledger.domain.cursor import Place
from tollkeeper_ledger.domain.errors import InvalidFieldError, PreconditionError, UnknownNameError
from tollkeeper_ledger.domain.keys import key_hash
from tollkeeper_ledger.domain.limits import UNITS_MAX, UNLIMITED, LimitKind
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.domain.standing import STANDING, STANDING_DAY, leased, set_level
from tollkeeper_ledger.services.notices import announce_units
from tollkeeper_ledger.services.overrides import effective_limit
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.limits import (
    DAY_BYTES,
    Proposal,
    WindowRow,
    amounts_in_force,
    lock_cursors,
    lock_windows,
    write_cursors,
    write_windows,
)
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.issuing import Issuing
    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.store.pool import Connection

_REASON_BYTES_MAX = 1024


@dataclass(frozen=True, slots=True)
class LevelAsked:
    """What an operator says of one key of a level."""

    limit: str
    key: Sequence[str]
    units: int
    reason: str


@dataclass(frozen=True, slots=True)
class LevelSet:
    """A level before and after, the units that holders have leased and not recorded, and the limit's amount."""

    before: int
    after: int
    leased: int
    amount: int


async def set_level_to(
    conn: Connection,
    tenant_id: UUID,
    asked: LevelAsked,
    act: Act,
    issuing: Issuing,
    *,
    random_bytes: Callable[[int], bytes],
) -> LevelSet:
    """Set what is stored, and audit who did it and why; `conn` is in a transaction of role `ingest` that may issue.

    Records that are committed later count on top, and so do the units that holders have leased. Raises
    InvalidFieldError, UnknownNameError, PreconditionError: the limit is unlimited, or Postgres was set back and nobody
    has confirmed it, so that nobody knows what is leased.
    """
    await _check(conn, tenant_id, asked, to_us(act.now))
    await conn.execute(sql("limits.ensure_day"), STANDING_DAY)
    row = await _locked(conn, tenant_id, asked, to_us(act.now), timeline=issuing.timeline, random_bytes=random_bytes)
    refused = issuing.refuses_window(row.span, timeline=row.state.timeline)
    if refused is not None:
        raise PreconditionError(refused.message, reason=refused.reason)
    known = (await amounts_in_force(conn, {(tenant_id, asked.limit)})).get((tenant_id, asked.limit))
    amount, version = (UNLIMITED, 0) if known is None else known.at(row.span.start_us)
    if amount == UNLIMITED:
        raise PreconditionError(f"limit {asked.limit!r} is unlimited: nothing is counted", reason="FIELD_INVALID")
    follow_amount(row.state, amount=amount, amount_version=version)
    before = row.state.stored
    set_level(row.state, asked.units)
    noticed = [row.identity] if notice_due(row.state) else []
    await write_windows(conn, [row])
    await announce_units(conn, noticed)
    entry = AuditEntry(
        subject=f"limit/{asked.limit}",
        tenant_id=tenant_id,
        before={"units": before, "key": list(asked.key)},
        after={"units": asked.units, "key": list(asked.key), "reason": asked.reason},
    )
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action="SetLevel", request_id=act.request_id)
    return LevelSet(before=before, after=asked.units, leased=leased(row.state), amount=amount)


async def _check(conn: Connection, tenant_id: UUID, asked: LevelAsked, now_us: int) -> None:
    if not 0 <= asked.units <= UNITS_MAX:
        raise InvalidFieldError(
            "units", "is out of range", reason="FIELD_OUT_OF_RANGE", value=asked.units, bound=f"0 to {UNITS_MAX}"
        )
    if not 1 <= len(asked.reason.encode()) <= _REASON_BYTES_MAX:
        raise InvalidFieldError(
            "reason",
            "is missing or too long",
            reason="FIELD_TOO_LONG" if asked.reason else "FIELD_REQUIRED",
            bound=f"1 to {_REASON_BYTES_MAX} bytes",
            remedy="say why the level is set",
        )
    limit = await effective_limit(conn, tenant_id, asked.limit, at_us=now_us)
    if limit is None:
        raise UnknownNameError("limit", asked.limit, remedy="list the tenant's limits")
    if limit.rule.kind is not LimitKind.LEVEL:
        raise InvalidFieldError("limit", "is no level", value=asked.limit, bound="limits of kind level")
    if len(asked.key) != len(limit.rule.key):
        raise InvalidFieldError(
            "key", "has not one value per key attribute", value=len(asked.key), bound=f"{len(limit.rule.key)} values"
        )


async def _locked(
    conn: Connection,
    tenant_id: UUID,
    asked: LevelAsked,
    now_us: int,
    *,
    timeline: int,
    random_bytes: Callable[[int], bytes],
) -> WindowRow:
    identity = (tenant_id, asked.limit, key_hash(asked.key))
    name = STANDING_DAY.to_bytes(DAY_BYTES, "big") + random_bytes(16 - DAY_BYTES)
    cursors = await lock_cursors(conn, [Proposal(identity, tuple(asked.key), Place(name, STANDING))])
    cursor = cursors[identity]
    place = cursor.find(now_us)
    if place is None:
        # Its windows are over: the limit was of another kind.
        place = cursor.open(now_us, STANDING, lambda _: name)
        await write_cursors(conn, [(identity, cursor)])
    if place is None:
        raise PreconditionError("the level begins later", reason="FIELD_INVALID")
    if place.window_id == name:
        state = new_window(amount=0, amount_version=0, timeline=timeline, generation_n=cursor.generation_n)
        return WindowRow(identity=identity, window_id=name, span=place.span, state=state, is_new=True)
    rows = await lock_windows(conn, [place.window_id])
    return rows[place.window_id]
