"""Tell a repeat from another record of its id where the tenant's key of pseudonyms has turned in between."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.pseudonyms import at_its_time
from tollkeeper_ledger.domain.usage import FLAG_SYSTEM_ID
from tollkeeper_ledger.domain.usage_hash import content_hash
from tollkeeper_ledger.store.usage_batches import find_stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

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

    `tenant_ids`: of the tenants that the records point to. A record whose own key was destroyed is a repeat where all
    but those pseudonyms is the same; with no pseudonym of another key nothing changes, and nothing is read.
    """
    records = merged.records
    hidden = {
        at: names
        for at, same in taken.items()
        if not same and (names := _hidden(merged.shapes[records.shape[at]], meters))
    }
    if not hidden:
        return dict(taken)
    pairs = {at: (tenant_ids[records.tenant[at]], records.ids[at]) for at in hidden}
    stored = await find_stored(conn, list(set(pairs.values())))
    for at in range(len(records)):
        # Those of this very transaction are not stored yet.
        pair = (tenant_ids[records.tenant[at]], records.ids[at])
        if at not in taken and pair not in stored:
            stored[pair] = (json.loads(records.attributes[at]), records.hashes[at])
    told = dict(taken)
    for at, names in hidden.items():
        if pairs[at] in stored:
            attributes, kept_hash = stored[pairs[at]]
            told[at] = _hash_at_its_time(merged, at, attributes, names) == kept_hash
    return told


def _hidden(shape: Sequence[str], meters: Mapping[str, MeterFacts]) -> set[str]:
    return {name for meter in shape if meter in meters for name in meters[meter].hidden}


def _hash_at_its_time(merged: Merged, at: int, stored: Mapping[str, str], hidden: set[str]) -> bytes | None:
    records = merged.records
    attributes = at_its_time(json.loads(records.attributes[at]), stored, hidden)
    if attributes is None:
        return None
    return content_hash(
        tenant=merged.tenants[records.tenant[at]],
        quantities=zip(merged.shapes[records.shape[at]], records.units[at], strict=True),
        attributes=attributes.items(),
        event_time_us=None if records.flags[at] & FLAG_SYSTEM_ID else records.event_us[at],
    )
