"""Begin the next round of windows, and turn windows that are over."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.allotment import follow_amount, new_window
from tollkeeper_ledger.domain.errors import InvalidFieldError, PreconditionError, UnknownNameError
from tollkeeper_ledger.domain.limits import UNLIMITED, LimitKind
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.domain.windows import Alignment
from tollkeeper_ledger.services.notes import check_note
from tollkeeper_ledger.services.notices import announce_replaced, announce_units
from tollkeeper_ledger.services.spans import name_window, span_of
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.limits import (
    WindowRow,
    amounts_in_force,
    lock_windows,
    successor,
    write_cursors,
    write_windows,
)
from tollkeeper_ledger.store.operators import NIL, WindowView, lock_expired, lock_limit, note_replaced
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from tollkeeper_ledger.domain.issuing import Issuing
    from tollkeeper_ledger.domain.limits import EffectiveLimit
    from tollkeeper_ledger.domain.windows import Span
    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.services.tenant_directory import TenantDirectory
    from tollkeeper_ledger.store.operators import KnownIdentity
    from tollkeeper_ledger.store.pool import Connection
    from tollkeeper_ledger.store.tenants import TenantView

STATES_MAX = 1000
_KEYS_AUDITED_MAX = 20


@dataclass(frozen=True, slots=True)
class ResetAsked:
    """What an operator wants reset; no key values = every key."""

    limit: str
    key_values: tuple[str, ...]
    note: str


async def reset_limit(
    conn: Connection, tenant: TenantView, asked: ResetAsked, act: Act, issuing: Issuing
) -> list[WindowView]:
    """Begin the next round of the limit's windows that are open now; gives them as they stand then.

    The round before is closed: its pool is closed by the follower of amounts, sidecars are told to forget it, and
    nothing is issued from it any more. What they hold of it may be spent until they have heard. Windows leased early
    for later stay.
    Raises UnknownNameError, InvalidFieldError: no such limit, or its kind has no windows.
    """
    check_note(asked.note)
    now_us = to_us(act.now)
    _check_resettable(tenant, asked, now_us)
    known = await lock_limit(conn, tenant.tenant_id, asked.limit, asked.key_values or None)
    places = [(one, place) for one in known if (place := one.cursor.find(now_us)) is not None]
    rows = await lock_windows(conn, [place.window_id for _, place in places])
    amounts = (await amounts_in_force(conn, {(tenant.tenant_id, asked.limit)}))[tenant.tenant_id, asked.limit]
    amount, _ = amounts.at(now_us)
    pairs: list[tuple[WindowRow, WindowRow]] = []
    for one, place in places:
        before = rows[place.window_id]
        renewed = one.cursor.replace(place.window_id, _fresh_name(place.span))
        after = successor(before, renewed.window_id, timeline=issuing.timeline, allotted=0, rounds=1)
        follow_amount(after.state, amount=amount, amount_version=amounts.version)
        _close(before)
        pairs.append((before, after))
    await write_windows(conn, [row for pair in pairs for row in pair])
    await write_cursors(conn, [(one.identity, one.cursor) for one, _ in places])
    await note_replaced(conn, [before.window_id for before, _ in pairs])
    await announce_replaced(conn, [(before.identity, before.window_id) for before, _ in pairs])
    await announce_units(conn, [before.identity for before, _ in pairs])
    entry = _reset_entry(tenant, asked, amount, pairs, [one.key_values for one, _ in places])
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action="ResetLimit", request_id=act.request_id)
    views = [_view(tenant.wire_id, one.key_values, after) for (one, _), (_, after) in zip(places, pairs, strict=True)]
    return views[:STATES_MAX]


def _check_resettable(tenant: TenantView, asked: ResetAsked, now_us: int) -> None:
    limit = tenant.limit(asked.limit, now_us)
    if limit is None:
        known = ", ".join(dict.fromkeys(one.rule.name for one in tenant.limits)) or "none"
        raise UnknownNameError("limit", asked.limit, remedy=f"this tenant's limits: {known}")
    if limit.rule.kind is not LimitKind.WINDOW:
        raise InvalidFieldError(
            "limit",
            f"is of kind {limit.rule.kind.value}, which has no windows to reset",
            value=asked.limit,
            remedy="change its amount instead",
        )
    if limit.rule.amount == UNLIMITED:
        raise InvalidFieldError("limit", "is unlimited: there is nothing to reset", value=asked.limit)
    if asked.key_values and len(asked.key_values) != len(limit.rule.key):
        raise InvalidFieldError(
            "key_values",
            "do not fit the limit's key",
            value=len(asked.key_values),
            bound=f"{len(limit.rule.key)} values: {', '.join(limit.rule.key) or 'the limit is not split'}",
        )


def _close(before: WindowRow) -> None:
    """End the round's pool; the follower of amounts tells Redis."""
    generation = before.state.generation
    if generation is not None and not generation.closed:
        generation.closing = generation.changed = True
        before.state.changed = True


def _reset_entry(
    tenant: TenantView,
    asked: ResetAsked,
    amount: int,
    pairs: list[tuple[WindowRow, WindowRow]],
    keys: list[tuple[str, ...]],
) -> AuditEntry:
    return AuditEntry(
        subject=f"limit/{asked.limit}",
        tenant_id=tenant.tenant_id,
        before={
            "windows": len(pairs),
            "round": max((before.round for before, _ in pairs), default=0),
            "allotted": sum(before.state.allotted for before, _ in pairs),
        },
        after={
            "round": max((after.round for _, after in pairs), default=0),
            "amount": amount,
            "keys": [list(values) for values in keys[:_KEYS_AUDITED_MAX] if values],
            "note": asked.note,
        },
    )


async def reset_all_expired(
    conn: Connection, tenants: TenantDirectory, act: Act, issuing: Issuing, *, only: UUID | None
) -> list[WindowView]:
    """Open the present calendar window of identities whose newest one is over; at most 1,000 in one call.

    Rolling windows begin at their first use, so none of them is due. A repeat finds nothing.
    Raises PreconditionError while windows may not be opened at all.
    """
    if issuing.is_held:
        raise PreconditionError(
            "the clock jumped: no window is opened", reason="CLOCK_UNCONFIRMED", metadata={"remedy": "confirm-clock"}
        )
    now_us = to_us(act.now)
    opened: list[tuple[KnownIdentity, WindowRow, str]] = []
    after = (NIL, "", b"")
    while len(opened) < STATES_MAX:
        found = await lock_expired(conn, now_us=now_us, tenant_id=only, after=after, count_max=STATES_MAX - len(opened))
        if not found:
            break
        after = found[-1].identity
        opened += await _turn(tenants, conn, found, issuing, now_us)
    rows = [row for _, row, _ in opened]
    for day in {row.end_day for row in rows}:
        await conn.execute(sql("limits.ensure_day"), day)
    await write_windows(conn, rows)
    await write_cursors(conn, [(one.identity, one.cursor) for one, _, _ in opened])
    if opened:
        entry = AuditEntry(subject="windows", tenant_id=only, before=None, after={"opened": len(opened)})
        await add_audit(
            conn, [entry], now=act.now, actor=act.actor, action="ResetAllExpired", request_id=act.request_id
        )
    return [_view(wire_id, one.key_values, row) for one, row, wire_id in opened]


async def _turn(
    tenants: TenantDirectory, conn: Connection, found: list[KnownIdentity], issuing: Issuing, now_us: int
) -> list[tuple[KnownIdentity, WindowRow, str]]:
    views = await tenants.by_id({one.identity[0] for one in found})
    amounts = await amounts_in_force(conn, {one.identity[:2] for one in found})
    turned: list[tuple[KnownIdentity, WindowRow, str]] = []
    for one in found:
        tenant_id, name, _ = one.identity
        view = views.get(tenant_id)
        limit = None if view is None else view.limit(name, now_us)
        if view is None or limit is None or not _turns(limit) or len(one.key_values) != len(limit.rule.key):
            continue
        try:
            span = span_of(view, limit, now_us)
        except (ValueError, OverflowError):
            continue  # no window of this rule holds the present
        if issuing.refuses_opening(span, is_rolling=False) is not None:
            continue
        place = one.cursor.open(now_us, span, _fresh_name)
        if place is None:
            continue
        known = amounts.get((tenant_id, name))
        amount, version = (limit.rule.amount, limit.amount_version) if known is None else known.at(span.start_us)
        state = new_window(
            amount=max(0, amount),
            amount_version=version,
            timeline=issuing.timeline,
            generation_n=one.cursor.generation_n,
        )
        row = WindowRow(identity=one.identity, window_id=place.window_id, span=place.span, state=state, is_new=True)
        turned.append((one, row, view.wire_id))
    return turned


def _turns(limit: EffectiveLimit) -> bool:
    window = limit.rule.window
    is_calendar = window is not None and window.alignment is Alignment.CALENDAR
    return limit.rule.kind is LimitKind.WINDOW and is_calendar and limit.rule.amount != UNLIMITED


def _fresh_name(span: Span) -> bytes:
    return name_window(span, secrets.token_bytes)


def _view(tenant: str, key_values: Iterable[str], row: WindowRow) -> WindowView:
    return WindowView(
        tenant=tenant,
        limit=row.identity[1],
        key_hash=row.identity[2],
        key_values=tuple(key_values),
        start_us=row.span.start_us,
        end_us=row.span.end_us,
        round=row.round,
        amount=row.state.amount,
        allotted=row.state.allotted,
        timeline=row.state.timeline,
    )
