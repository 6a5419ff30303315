"""Release records from quarantine, or discard them: each comes to one end, whoever asks and however often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.domain.usage_judgement import NOBODY
from tollkeeper_ledger.domain.usage_quarantine import (
    ActOutcome,
    QuarantineAct,
    RefusedUse,
    columns_again,
    read_refused,
    release_problem,
)
from tollkeeper_ledger.services.notes import check_note, need_note
from tollkeeper_ledger.services.usage_bisect import UNSTORABLE
from tollkeeper_ledger.store import usage_quarantine as store
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.usage_attempts import REFUSALS
from tollkeeper_ledger.store.usage_batches import find_tenants

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.usage import Problem
    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.services.usage import UsageIngest
    from tollkeeper_ledger.store.pool import Connection
    from tollkeeper_ledger.store.usage_quarantine import RefusedKey, Waiting

KEYS_MAX = 500
"""Records of one call."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What an operator wants done."""

    keys: Sequence[RefusedKey]
    tenant: str
    """Wire id that the records must have come with; empty = any."""
    note: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Where a record stands after the call."""

    key: RefusedKey
    outcome: ActOutcome
    problem: Problem | None
    """Why it was refused again."""
    before: bool
    """It stood there before."""


@dataclass(frozen=True, slots=True)
class _Tried:
    outcome: ActOutcome
    problem: Problem | None = None
    place: tuple[int, int] = (0, 0)
    """Batch and number of the stored record."""


class _RefusedAgainError(Exception):
    """Takes back an append in which these places were refused."""

    def __init__(self, problems: Mapping[int, Problem]) -> None:
        super().__init__(problems)
        self.problems = problems


class _ProbedError(Exception):
    """Takes back an append that was only tried."""


async def event_times(conn: Connection, asked: Asked) -> list[int]:
    """Give when the records' facts happened, for `UsageIngest.need_months` before the transaction.

    Raises as `release_records`.
    """
    found = await _find(conn, asked)
    return [refused.use.event_us for one in found if (refused := read_refused(one.row.record))]


async def release_records(
    conn: Connection, ingest: UsageIngest, producer_id: UUID, asked: Asked, act: Act
) -> list[Ended]:
    """Append records of quarantine again under their own ids and times; what is refused again stays, with its reason.

    In the caller's transaction: a record is appended and done with, or neither. Idempotent: one that is done with stays
    as it is. Those of closed periods are billed late. `producer_id`: under which the ledger appends them.
    Raises UnknownNameError USAGE_UNKNOWN, InvalidFieldError.
    """
    check_note(asked.note)
    await store.lock_quarantine(conn)
    found = await _find(conn, asked)
    now_us = to_us(act.now)
    fit: dict[RefusedKey, RefusedUse] = {}
    tried: dict[RefusedKey, _Tried] = {}
    for one in found:
        if not one.is_over:
            refused = read_refused(one.row.record)
            problem = release_problem(one.row, refused, now_us=now_us)
            if refused and not problem:
                fit[one.key] = refused
            else:
                tried[one.key] = _Tried(ActOutcome.REFUSED, problem)
    tried |= dict(zip(fit, await _append(conn, ingest, producer_id, list(fit.values())), strict=True))
    return await _note(conn, found, tried, asked, act)


async def discard_records(conn: Connection, asked: Asked, act: Act) -> list[Ended]:
    """Say of records in quarantine that they never count. In the caller's transaction; idempotent.

    One that was released before stays released. Raises UnknownNameError USAGE_UNKNOWN, InvalidFieldError.
    """
    need_note(asked.note)
    await store.lock_quarantine(conn)
    found = await _find(conn, asked)
    tried = {one.key: _Tried(ActOutcome.DISCARDED) for one in found if not one.is_over}
    return await _note(conn, found, tried, asked, act)


async def find_refused(conn: Connection, key: RefusedKey, *, tenant: str) -> Waiting:
    """Give one record. Raises UnknownNameError USAGE_UNKNOWN, also where it came with another tenant than that."""
    (found,) = await _find(conn, Asked([key], tenant, ""))
    return found


async def _find(conn: Connection, asked: Asked) -> list[Waiting]:
    keys = list(dict.fromkeys(asked.keys))
    if not 1 <= len(keys) <= KEYS_MAX:
        raise InvalidFieldError(
            "records", "must name some", reason="FIELD_OUT_OF_RANGE", value=len(keys), bound=f"1 to {KEYS_MAX}"
        )
    found = await store.read_refused(conn, keys)
    for key in keys:
        if key not in found or (asked.tenant and _tenant_of(found[key]) != asked.tenant):
            raise UnknownNameError("usage", str(key), remedy="name a record that `ListQuarantine` lists")
    return [found[key] for key in keys]


def _tenant_of(one: Waiting) -> str:
    """Give the wire id that a record came with; empty where it can't be read any more."""
    refused = read_refused(one.row.record)
    return refused.use.tenant if refused else ""


async def _append(
    conn: Connection, ingest: UsageIngest, producer_id: UUID, records: Sequence[RefusedUse]
) -> list[_Tried]:
    """Append those records that can be stored, in one batch; give what became of each."""
    refused: dict[int, Problem] = {}
    duplicates: set[int] = set()
    while left := [at for at in range(len(records)) if at not in refused]:
        try:
            duplicates = await _append_all(conn, ingest, producer_id, [records[at] for at in left])
            break
        except _RefusedAgainError as error:
            refused |= {left[at]: problem for at, problem in error.problems.items()}
        except REFUSALS:
            # Postgres finds fault with something that no rule of ours names.
            bad = await _unstorable(conn, ingest, producer_id, records, left)
            if not bad:
                raise
            refused |= dict.fromkeys(bad, UNSTORABLE)
    tried = {at: _Tried(ActOutcome.REFUSED, problem) for at, problem in refused.items()}
    if left:
        places = await _places(conn, [records[at] for at in left])
        for number, at in enumerate(left):
            outcome = ActOutcome.DUPLICATE if number in duplicates else ActOutcome.RELEASED
            tried[at] = _Tried(outcome, place=places[number])
    return [tried[at] for at in range(len(records))]


async def _append_all(
    conn: Connection, ingest: UsageIngest, producer_id: UUID, records: Sequence[RefusedUse], *, probe: bool = False
) -> set[int]:
    """Append all of these records or none; give the places of those that are stored already.

    Raises _RefusedAgainError, _ProbedError where it is only a probe, and what Postgres says of it.
    """
    async with conn.transaction():
        outcome = await ingest.append_again(conn, producer_id, columns_again(records))
        first_seq = outcome.position.committed_seq - len(records) + 1
        said = {one.seq - first_seq: one.problem for one in outcome.verdicts}
        if problems := {at: problem for at, problem in said.items() if problem is not None}:
            raise _RefusedAgainError(problems)
        if probe:
            raise _ProbedError
    return set(said)


async def _unstorable(
    conn: Connection, ingest: UsageIngest, producer_id: UUID, records: Sequence[RefusedUse], places: Sequence[int]
) -> list[int]:
    """Give those of these places whose records Postgres refuses, by halves; nothing stays appended."""
    try:
        await _append_all(conn, ingest, producer_id, [records[at] for at in places], probe=True)
    except (_ProbedError, _RefusedAgainError):
        return []
    except REFUSALS:
        if len(places) == 1:
            return list(places)
    middle = len(places) // 2
    halves = (places[:middle], places[middle:])
    return [at for half in halves for at in await _unstorable(conn, ingest, producer_id, records, half)]


async def _places(conn: Connection, records: Sequence[RefusedUse]) -> list[tuple[int, int]]:
    """Give batch and number under which records are stored."""
    tenants = await find_tenants(conn, sorted({one.use.tenant for one in records}))
    names = [(tenants[one.use.tenant], one.use.id) for one in records]
    found = await store.find_places(conn, names)
    return [found[name] for name in names]


async def _note(
    conn: Connection, found: Sequence[Waiting], tried: Mapping[RefusedKey, _Tried], asked: Asked, act: Act
) -> list[Ended]:
    """Keep what was done, beside the records and in the audit log."""
    rows = {one.key: one for one in found}
    acts = [
        QuarantineAct(
            tenant_id=rows[key].row.tenant_id,
            producer_id=key.producer_id,
            seq=key.seq,
            number=rows[key].acts + 1,
            outcome=one.outcome,
            problem=one.problem,
            note=asked.note,
            actor=act.actor,
            at_us=to_us(act.now),
            batch_id=one.place[0],
            batch_seq=one.place[1],
        )
        for key, one in tried.items()
    ]
    if acts:
        await store.add_acts(conn, acts)
        name = "DiscardQuarantined" if acts[0].outcome is ActOutcome.DISCARDED else "ReleaseQuarantined"
        entries = [_entry(one) for one in acts]
        await add_audit(conn, entries, now=act.now, actor=act.actor, action=name, request_id=act.request_id)
    return [_ended(one, tried.get(one.key)) for one in found]


def _entry(act: QuarantineAct) -> AuditEntry:
    after: dict[str, object] = {"outcome": act.outcome.value, "note": act.note}
    if act.problem is not None:
        after |= {"reason": act.problem.reason, "field": act.problem.field}
    return AuditEntry(
        subject=act.subject,
        tenant_id=None if act.tenant_id == NOBODY else act.tenant_id,
        before=None,
        after=after,
    )


def _ended(one: Waiting, tried: _Tried | None) -> Ended:
    if tried is not None:
        return Ended(one.key, tried.outcome, tried.problem, before=False)
    if one.outcome is None:
        raise RuntimeError("a record that waits was left out")
    return Ended(one.key, one.outcome, None, before=True)
