"""Tell a repeat from another record of its id where what it hides was hidden otherwise in between, or not yet."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.pseudonyms import at_its_time, version_of
from tollkeeper_ledger.domain.usage import FLAG_SYSTEM_ID
from tollkeeper_ledger.domain.usage_hash import content_hash
from tollkeeper_ledger.domain.usage_rollup import hidden_by
from tollkeeper_ledger.store.pseudonyms import read_keys
from tollkeeper_ledger.store.usage_batches import find_stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.pseudonyms import PseudonymKey
    from tollkeeper_ledger.domain.usage_merge import Merged
    from tollkeeper_ledger.domain.usage_rollup import MeterFacts
    from tollkeeper_ledger.store.pool import Connection


async def without_turned(
    conn: Connection,
    merged: Merged,
    taken: Mapping[int, bool],
    *,
    tenant_ids: Sequence[UUID],
    meters: Mapping[str, MeterFacts],
) -> dict[int, bool]:
    """Give `taken` (places whose id another record has, and whether that is its like) with repeats told as such.

    `tenant_ids`: of the tenants that the records point to. A record whose own key was destroyed, or that was stored
    before its attributes were hidden, is a repeat where all but those is the same. Of records without hidden attributes
    nothing is read.
    """
    records = merged.records
    hidden = {
        at: names
        for at, same in taken.items()
        if not same and (names := hidden_by(merged.shapes[records.shape[at]], meters))
    }
    if not hidden:
        return dict(taken)
    pairs = {at: (tenant_ids[records.tenant[at]], records.ids[at]) for at in hidden}
    # The time is part of what must be the same, but where the system made the id.
    stored = await find_stored(conn, [(*pair, _time_of(merged, at)) for at, pair in pairs.items()])
    plain = {
        pairs[at][0] for at, names in hidden.items() if pairs[at] in stored and _is_plain(stored[pairs[at]][0], names)
    }
    keys = await read_keys(conn, plain) if plain else {}
    return await asyncio.to_thread(_told, merged, dict(taken), hidden=hidden, pairs=pairs, stored=stored, keys=keys)


def _is_plain(attributes: Mapping[str, str], hidden: set[str]) -> bool:
    return any(version_of(attributes[name]) is None for name in hidden & attributes.keys())


def _told(
    merged: Merged,
    taken: dict[int, bool],
    *,
    hidden: Mapping[int, set[str]],
    pairs: Mapping[int, tuple[UUID, str]],
    stored: dict[tuple[UUID, str], tuple[dict[str, str], bytes]],
    keys: Mapping[UUID, PseudonymKey],
) -> dict[int, bool]:
    """Judge the places of `hidden` by what is stored of them, or by the record of this very transaction."""
    records = merged.records
    wanted = {(records.tenant[at], pair[1]): pair for at, pair in pairs.items() if pair not in stored}
    ids = {name for _, name in wanted}
    for at, name in enumerate(records.ids):
        if name in ids and at not in taken and (pair := wanted.pop((records.tenant[at], name), None)) is not None:
            stored[pair] = (json.loads(records.attributes[at]), records.hashes[at])
    for at, names in hidden.items():
        if pairs[at] in stored:
            attributes, kept_hash = stored[pairs[at]]
            key = keys.get(pairs[at][0])
            taken[at] = _hash_at_its_time(merged, at, attributes, names, key) == kept_hash
    return taken


def _time_of(merged: Merged, at: int) -> int | None:
    """Give the event time that is part of a record's content; None where the system made the id, and the time."""
    return None if merged.records.flags[at] & FLAG_SYSTEM_ID else merged.records.event_us[at]


def _hash_at_its_time(
    merged: Merged, at: int, stored: Mapping[str, str], hidden: set[str], key: PseudonymKey | None
) -> bytes | None:
    records = merged.records
    attributes = at_its_time(json.loads(records.attributes[at]), stored, hidden, key)
    if attributes is None:
        return None
    return content_hash(
        tenant=merged.tenants[records.tenant[at]],
        quantities=zip(merged.shapes[records.shape[at]], records.units[at], strict=True),
        attributes=attributes.items(),
        event_time_us=_time_of(merged, at),
    )
