"""Bring everything that is derived from records up to date, inside the transaction that stores them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.usage import FLAG_VOID
from tollkeeper_ledger.domain.usage_aggregate import merge_states
from tollkeeper_ledger.domain.usage_rollup import (
    Part,
    RawRecord,
    label_batch,
    states_of,
    values_of,
    without_voided,
)
from tollkeeper_ledger.store import usage_rollups as store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.domain.usage_aggregate import State
    from tollkeeper_ledger.domain.usage_batch import Records
    from tollkeeper_ledger.domain.usage_rollup import MeterFacts, StateKey, ValueKey
    from tollkeeper_ledger.store.pool import Connection
    from tollkeeper_ledger.store.usage_batches import RecordTexts
    from tollkeeper_ledger.store.usage_rollups import RecordSums


@dataclass(frozen=True, slots=True)
class BatchRollups:
    """What a batch adds."""

    sums: RecordSums
    values: dict[ValueKey, int]
    states: dict[StateKey, State]
    voided: frozenset[StateKey]
    """States that void records touch: they are made anew from what is stored."""
    meters: dict[int, MeterFacts]
    """Meters whose aggregation needs more than sums."""
    has_voids: bool


def derive(
    records: Records,
    *,
    parts: Sequence[Part],
    part: Sequence[int],
    shape_meters: Sequence[Sequence[MeterFacts]],
    texts: RecordTexts,
) -> BatchRollups:
    """Derive what a batch adds. CPU-bound, about a microsecond a record; meters with states cost several."""
    labels = label_batch(shape=records.shape, shape_meters=shape_meters, attributes=records.attributes)
    tracked = {meter.meter_id: meter for meters in shape_meters for meter in meters if meter.is_tracked}
    followed = _tracked_records(records, parts=parts, part=part, shape_meters=shape_meters) if tracked else []
    voids = [record for record in followed if record.flags & FLAG_VOID]
    return BatchRollups(
        sums=store.record_sums(parts, labels, texts, records.event_us),
        values=values_of(followed, tracked),
        states=states_of((record for record in followed if not record.flags & FLAG_VOID), tracked),
        voided=frozenset(states_of(voids, tracked)),
        meters=tracked,
        has_voids=any(one.flags & FLAG_VOID for one in parts),
    )


def _tracked_records(
    records: Records, *, parts: Sequence[Part], part: Sequence[int], shape_meters: Sequence[Sequence[MeterFacts]]
) -> list[RawRecord]:
    places = [[at for at, meter in enumerate(meters) if meter.is_tracked] for meters in shape_meters]
    named: dict[str, dict[str, str]] = {}
    found = []
    for at, shape in enumerate(records.shape):
        if not places[shape]:
            continue
        text = records.attributes[at]
        if text not in named:
            named[text] = json.loads(text)
        of = parts[part[at]]
        quantities = [(shape_meters[shape][place].meter_id, records.units[at][place]) for place in places[shape]]
        found.append(
            RawRecord(
                of.tenant_id, of.segment_id, of.flags, records.event_us[at], records.ids[at], quantities, named[text]
            )
        )
    return found


async def add_rollups(conn: Connection, added: BatchRollups) -> None:
    """Add a batch's sums, values and states; its records are stored already. Locks them in key order."""
    await store.add_record_sums(conn, added.sums)
    if added.values:
        await store.add_values(conn, added.values)
    await _merge(conn, added)
    if added.has_voids:
        sums = added.sums
        await store.drop_empty(conn, sums.tenant_ids, first_us=sums.first_us, last_us=sums.last_us)


async def _merge(conn: Connection, added: BatchRollups) -> None:
    keys = sorted(added.states.keys() | added.voided)
    if not keys:
        return
    merged: dict[StateKey, State | None] = {}
    anew: list[StateKey] = []
    for key, stored in zip(keys, await store.lock_states(conn, keys), strict=True):
        state = added.states.get(key)
        if key not in added.voided and state is not None:
            aggregation = added.meters[key.meter_id].aggregation
            after = state if stored is None else merge_states(aggregation, stored, state)
            if after is not None:
                merged[key] = after
                continue
        anew.append(key)
    if anew:
        # The locks are held, so whoever has committed a record of these quarters is seen here, and later ones merge.
        quarters = sorted({(key.tenant_id, key.start_us) for key in anew})
        meters = {key.meter_id: added.meters[key.meter_id] for key in anew}
        records = await store.records_of_quarters(conn, quarters, meters.keys())
        found = await asyncio.to_thread(lambda: states_of(without_voided(records), meters))
        merged |= {key: found.get(key) for key in anew}
    await store.write_states(conn, merged)
