"""One transaction of appends: everything that happens to batches inside it, of all of them in one pass.

Locks in the order that every transaction of the ledger keeps: producers, ids, tenants (shared), levels, segments, sums
in key order, head of the chain. A batch that its producer may not send is refused by itself and takes nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Protocol, TypeAlias

from tollkeeper_ledger.domain.columns import merkle_root
from tollkeeper_ledger.domain.errors import PreconditionError
from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.domain.settlement import outcomes_elsewhere
from tollkeeper_ledger.domain.usage import CONFLICT, AppendOutcome
from tollkeeper_ledger.domain.usage_batch import holes_after
from tollkeeper_ledger.domain.usage_chain import BatchBody
from tollkeeper_ledger.domain.usage_hash import refused_hash, row_check, rows_digest
from tollkeeper_ledger.domain.usage_judgement import NOBODY, describe_records, judge, verdicts_of
from tollkeeper_ledger.domain.usage_merge import Merged, merge
from tollkeeper_ledger.domain.usage_producer import HOLDER_BYTES, place, unknown
from tollkeeper_ledger.services.usage_beside import beside
from tollkeeper_ledger.services.usage_hidden import hide_plain
from tollkeeper_ledger.services.usage_levels import change_levels
from tollkeeper_ledger.services.usage_store import store_records
from tollkeeper_ledger.services.usage_turned import without_turned
from tollkeeper_ledger.services.usage_verdicts import earlier_verdicts
from tollkeeper_ledger.store.settlements import NewSettlement, add_settlements
from tollkeeper_ledger.store.standing import note_ended
from tollkeeper_ledger.store.tenant_locks import share_tenants
from tollkeeper_ledger.store.usage_batches import (
    IdClaim,
    Refused,
    add_quarantine,
    audit_holes,
    claim_ids,
    find_tenants,
    next_batches,
)
from tollkeeper_ledger.store.usage_chain import add_links
from tollkeeper_ledger.store.usage_producers import (
    Advance,
    advance_producers,
    lock_producers,
    see_producer,
    serve_tenants,
)
from tollkeeper_ledger.store.usage_rollups import find_meters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.usage import Problem, ProducerPosition, Verdict
    from tollkeeper_ledger.domain.usage_batch import Records, UsageBatch
    from tollkeeper_ledger.domain.usage_producer import Placement, Producer
    from tollkeeper_ledger.domain.usage_rollup import MeterFacts
    from tollkeeper_ledger.services.usage_claims import Guesses
    from tollkeeper_ledger.services.usage_served import Serving
    from tollkeeper_ledger.store.pool import Connection

Result: TypeAlias = AppendOutcome | PreconditionError
"""What became of one batch: its outcome, or why its producer may not send it."""


class Position(Protocol):
    """Say where the ledger stands with a producer, and how much of that a restore would keep."""

    async def __call__(
        self, conn: Connection, producer_id: UUID, *, committed_seq: int, h: bytes, now: datetime
    ) -> ProducerPosition:
        """Give the position."""
        ...


@dataclass(frozen=True, slots=True)
class _Names:
    tenant_ids: Mapping[str, UUID]
    meters: Mapping[str, MeterFacts]

    def tenant(self, wire_id: str) -> UUID:
        return self.tenant_ids.get(wire_id, NOBODY)

    def tenants(self, wire_ids: Sequence[str]) -> list[UUID]:
        return list(map(self.tenant_ids.get, wire_ids, repeat(NOBODY)))


@dataclass(slots=True)
class _Append:
    """One batch on its way through the transaction."""

    batch: UsageBatch
    producer: Producer
    placement: Placement
    earlier: Sequence[Verdict] = ()
    batch_id: int = 0
    """0 while it takes no sequence numbers."""
    places: Sequence[int] = ()
    """Records that are still to be stored."""
    content: Records | None = None
    """All records as they are stored; None: as they came."""
    problems: dict[int, Problem] = field(default_factory=dict)
    taken: dict[int, bool] = field(default_factory=dict)
    """Records whose id another one has, and whether that is its like."""
    rooted: Sequence[int] | None = None
    """The places that `root` is of; None: there is none yet."""
    root: bytes = b""
    """Merkle root over the records of `rooted`."""
    rows: bytes = b""
    refused_rows: bytes = b""

    @property
    def served(self) -> set[str]:
        """The tenants that the batch names."""
        return {*self.batch.tenants, *self.batch.source.tenants_served}

    @property
    def stored(self) -> Records:
        """The records that are stored, once ids are claimed and levels changed."""
        return (self.content or self.batch.records).take(self.places)

    @property
    def conflicts(self) -> int:
        """How many ids another record has."""
        return sum(not same for same in self.taken.values())

    @property
    def refused(self) -> dict[int, Problem]:
        """What goes to quarantine, and why."""
        return {**self.problems, **{at: CONFLICT for at, same in self.taken.items() if not same}}

    def drop(self, gone: Mapping[int, object]) -> None:
        """Store these records no more."""
        if gone:
            self.places = [at for at in self.places if at not in gone]


async def append_batch(
    conn: Connection, batch: UsageBatch, *, now: datetime, stream: int, position: Position, serving: Serving
) -> AppendOutcome:
    """Commit what of the batch is new; the caller's transaction ends right after.

    Raises PreconditionError as `domain.usage_producer.place` says; nothing is stored then.
    """
    (result,) = await append_batches(conn, [batch], now=now, stream=stream, position=position, serving=serving)
    if isinstance(result, PreconditionError):
        raise result
    return result


async def append_batches(
    conn: Connection,
    batches: Sequence[UsageBatch],
    *,
    now: datetime,
    stream: int,
    position: Position,
    serving: Serving,
    guesses: Guesses | None = None,
) -> list[Result]:
    """Commit what is new of batches of different producers; the caller's transaction ends right after.

    `serving`: what the transaction writes of who serves whom; the caller tells it when it is committed. `guesses`:
    whether ids are claimed as if they were free; None: they are asked for.

    Gives a result per batch, in the order given: one that is refused, as `domain.usage_producer.place` says, stores
    nothing and is no other's trouble.
    """
    results: dict[int, Result] = {}
    appends: dict[int, _Append] = {}
    producers = await lock_producers(conn, [batch.source.producer_id for batch in batches])
    for at, batch in enumerate(batches):
        producer = producers.get(batch.source.producer_id)
        try:
            if producer is None:
                raise unknown(batch.source.producer_id)
            appends[at] = _Append(batch, producer, place(producer, batch))
        except PreconditionError as error:
            results[at] = error
    served = {wire_id for one in appends.values() for wire_id in one.served}
    meters = {meter for one in appends.values() for meter in one.batch.meters}
    names = _Names(await find_tenants(conn, served), await find_meters(conn, sorted(meters)))
    for at, one in appends.items():
        count = one.placement.skip
        one.earlier = await earlier_verdicts(conn, one.batch, count=count, tenant_ids=names.tenants(one.batch.tenants))
        if one.placement.behind:
            results[at] = await _behind(conn, one, now=now, position=position)
    going = {at: one for at, one in appends.items() if at not in results}
    new = [one for one in going.values() if one.batch.last_seq > one.producer.committed_seq]
    if new:
        await _commit_entries(conn, new, names=names, now=now, stream=stream, guesses=guesses)
    await _advance(conn, list(going.values()), names=names, now=now, serving=serving)
    for at, one in going.items():
        results[at] = await _outcome(conn, one, now=now, position=position)
    return [results[at] for at in range(len(batches))]


async def _behind(conn: Connection, one: _Append, *, now: datetime, position: Position) -> AppendOutcome:
    known = one.producer
    await see_producer(conn, known.producer_id)
    at = await position(conn, known.producer_id, committed_seq=known.committed_seq, h=known.h, now=now)
    return AppendOutcome(position=at, trimmed=one.placement.skip, verdicts=tuple(one.earlier))


async def _outcome(conn: Connection, one: _Append, *, now: datetime, position: Position) -> AppendOutcome:
    batch = one.batch
    h = batch.h_at(batch.last_seq) or one.producer.h
    return AppendOutcome(
        position=await position(conn, one.producer.producer_id, committed_seq=batch.last_seq, h=h, now=now),
        stored=len(one.places),
        duplicates=len(one.taken) - one.conflicts,
        conflicts=one.conflicts,
        quarantined=len(one.problems),
        trimmed=one.placement.skip,
        verdicts=(*one.earlier, *verdicts_of(batch, one.refused, one.taken)),
    )


async def _advance(
    conn: Connection, appends: Sequence[_Append], *, names: _Names, now: datetime, serving: Serving
) -> None:
    """Move producers to the end of their batches, in the order of their ids."""
    if not appends:
        return
    ids = names.tenant_ids
    served = {one.producer.producer_id: {ids[wire_id] for wire_id in one.served if wire_id in ids} for one in appends}
    if lacking := serving.lacking(served, since=appends[0].producer.server_started_at):
        await serve_tenants(conn, lacking)
    await advance_producers(
        conn,
        [
            Advance(
                producer_id=one.producer.producer_id,
                committed_seq=one.batch.last_seq,
                h=one.batch.h_at(one.batch.last_seq) or one.producer.h,
                watermark=_watermark(one.batch.source.watermark_us, now),
                closing=one.batch.source.closing,
            )
            for one in appends
        ],
    )
    for one in appends:
        if one.batch.source.closing and len(one.producer.holder) == HOLDER_BYTES:
            holder, last_seq = one.producer.holder, one.batch.last_seq
            await note_ended(conn, [holder], producer_id=one.producer.producer_id, ended_seq=last_seq)


async def _commit_entries(
    conn: Connection,
    appends: Sequence[_Append],
    *,
    names: _Names,
    now: datetime,
    stream: int,
    guesses: Guesses | None,
) -> None:
    for one, batch_id in zip(appends, await next_batches(conn, len(appends)), strict=True):
        one.batch_id = batch_id
        skip = one.placement.skip
        one.problems = judge(one.batch, skip=skip, tenant_ids=names.tenant_ids, meters=names.meters, now_us=to_us(now))
        one.places = range(skip, len(one.batch.records))
        one.drop(one.problems)
        one.content = await hide_plain(conn, one.batch, one.places, tenant_ids=names.tenant_ids, meters=names.meters)
    merged = await _claim(conn, appends, names, guesses)
    if merged is not None:
        await share_tenants(conn, names.tenants([merged.tenants[at] for at in set(merged.records.tenant)]))
        merged = await _change_levels(conn, appends, merged)
    for one in appends:
        one.rows = rows_digest(())
    if merged is not None:
        await _store(conn, appends, merged, names)
        for one in appends:
            await _keep_outcomes(conn, one, names, now)
    bodies = []
    for one in appends:
        holes = holes_after(one.batch.source.holes, one.producer.committed_seq)
        await _refuse(conn, one, names, now)
        if holes:
            await audit_holes(conn, holes, producer_id=one.producer.producer_id, now=now)
        gone = sum(hole.last_seq - hole.first_seq + 1 for hole in holes)
        bodies.append(await asyncio.to_thread(_body, one, holes=gone, now=now))
    await add_links(conn, bodies, stream=stream)


def _body(one: _Append, *, holes: int, now: datetime) -> BatchBody:
    batch = one.batch
    if one.rooted is not one.places:
        _make_roots([one])
    return BatchBody(
        batch_id=one.batch_id,
        producer_id=one.producer.producer_id,
        incarnation=one.producer.incarnation,
        first_seq=one.producer.committed_seq + 1,
        last_seq=batch.last_seq,
        h=batch.entry_h[-1],
        merkle_root=one.root,
        rows_digest=one.rows,
        refused_digest=one.refused_rows,
        stored=len(one.places),
        duplicates=len(one.taken) - one.conflicts,
        conflicts=one.conflicts,
        quarantined=len(one.problems),
        holes=holes,
        committed_us=to_us(now),
    )


def _merge(appends: Sequence[_Append]) -> tuple[list[_Append], Merged | None]:
    """Give those appends that have records to store, and these records."""
    storing = [one for one in appends if one.places]
    return storing, merge([(one.batch, one.stored) for one in storing]) if storing else None


async def _claim(conn: Connection, appends: Sequence[_Append], names: _Names, guesses: Guesses | None) -> Merged | None:
    """Claim the ids of all records; give those that are to be stored, None where there are none."""
    storing, merged = _merge(appends)
    if merged is None:
        return None
    records = merged.records
    claim = IdClaim(
        batch_ids=[one.batch_id for one in storing],
        starts=merged.starts,
        tenant_ids=names.tenants(merged.tenants),
        tenant=records.tenant,
        ids=records.ids,
        seqs=records.seqs,
        hashes=records.hashes,
        all_free=guesses is not None and guesses.all_free(len(records)),
    )
    # Hardly any record falls out after this, so roots are made while Postgres works, not while sums are locked.
    taken, _ = await beside(claim_ids(conn, claim), lambda: _make_roots(storing))
    if guesses is not None:
        guesses.learn(guessed=claim.all_free, met_taken=bool(taken))
    if not taken:
        return merged
    taken = await without_turned(conn, merged, taken, tenant_ids=claim.tenant_ids, meters=names.meters)
    for at, same in taken.items():
        batch, row = merged.origin(at)
        one = storing[batch]
        one.taken[one.places[row]] = same
    for one in storing:
        one.drop(one.taken)
    return _merge(appends)[1]


async def _change_levels(conn: Connection, appends: Sequence[_Append], merged: Merged) -> Merged | None:
    """Put what new records change of levels in force; gives those that are to be stored."""
    changing = [one for one in appends if one.batch.levels]
    if not changing:
        return merged
    refusals = await change_levels(conn, [(one.batch, one.places) for one in changing])
    if not any(refusals):
        return merged
    for one, refused in zip(changing, refusals, strict=True):
        one.problems.update(refused)
        one.drop(refused)
    return _merge(appends)[1]


async def _store(conn: Connection, appends: Sequence[_Append], merged: Merged, names: _Names) -> None:
    storing = [one for one in appends if one.places]
    digests = await store_records(
        conn,
        merged,
        batch_ids=[one.batch_id for one in storing],
        tenant_ids=names.tenants(merged.tenants),
        meters=names.meters,
    )
    for one, digest in zip(storing, digests, strict=True):
        one.rows = digest


async def _keep_outcomes(conn: Connection, one: _Append, names: _Names, now: datetime) -> None:
    """Keep how reservations of other producers ended: what is stored is the one outcome that stands."""
    batch = one.batch
    outcomes = outcomes_elsewhere(batch, one.stored)
    if outcomes:
        settlements = [
            NewSettlement(
                tenant_id=names.tenant(batch.tenants[outcome.tenant]),
                reservation_id=outcome.reservation_id,
                home=outcome.home,
                meter_ids=[names.meters[batch.meters[meter]].meter_id for meter in batch.shapes[outcome.shape]],
                units=outcome.units,
            )
            for outcome in outcomes
        ]
        await add_settlements(conn, settlements, now=now)


async def _refuse(conn: Connection, one: _Append, names: _Names, now: datetime) -> None:
    """Keep what is refused, in sequence order, and its digest."""
    rows, one.refused_rows = _refused(one, names, now)
    if rows:
        producer_id = one.producer.producer_id
        await add_quarantine(conn, rows, producer_id=producer_id, batch_id=one.batch_id, now=now)


def _refused(one: _Append, names: _Names, now: datetime) -> tuple[list[Refused], bytes]:
    batch, refused = one.batch, one.refused
    records = batch.records
    described = describe_records(batch, refused) if refused else {}
    rows, hashes = [], []
    for at, problem in sorted(refused.items()):
        tenant_id = names.tenant(batch.tenants[records.tenant[at]])
        hashed = refused_hash(
            tenant_id=tenant_id.bytes,
            producer_id=batch.source.producer_id.bytes,
            batch_id=one.batch_id,
            seq=records.seqs[at],
            at_us=to_us(now),
            reason=problem.reason,
            field=problem.field,
            content_hash=records.hashes[at],
            record=described[at],
        )
        hashes.append(hashed)
        rows.append(
            Refused(
                tenant_id=tenant_id,
                seq=records.seqs[at],
                reason=problem.reason,
                field=problem.field,
                content_hash=records.hashes[at],
                record=described[at],
                row_check=row_check(hashed),
            )
        )
    return rows, rows_digest(hashes)


def _make_roots(appends: Sequence[_Append]) -> None:
    """Make the Merkle root over what is to be stored of each. CPU-bound, about a microsecond a record."""
    for one in appends:
        stored = one.stored
        one.root, one.rooted = merkle_root(one.batch.tenants, stored.tenant, stored.hashes), one.places


def _watermark(watermark_us: int, now: datetime) -> datetime | None:
    """Give the producer's watermark, none for 0; it is not believed beyond the ledger's own time."""
    return from_us(min(watermark_us, to_us(now))) if watermark_us > 0 else None
