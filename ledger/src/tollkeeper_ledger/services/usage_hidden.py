"""Hide what the catalogue hides of records that a producer sent before it heard of that."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.pseudonyms import version_of
from tollkeeper_ledger.domain.usage import FLAG_SYSTEM_ID, FLAG_VOID
from tollkeeper_ledger.domain.usage_hash import content_hash
from tollkeeper_ledger.domain.usage_rollup import hidden_by
from tollkeeper_ledger.store.pseudonyms import read_keys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.pseudonyms import PseudonymKey
    from tollkeeper_ledger.domain.usage_batch import Records, UsageBatch
    from tollkeeper_ledger.domain.usage_rollup import MeterFacts
    from tollkeeper_ledger.store.pool import Connection


async def hide_plain(
    conn: Connection,
    batch: UsageBatch,
    places: Sequence[int],
    *,
    tenant_ids: Mapping[str, UUID],
    meters: Mapping[str, MeterFacts],
) -> Records:
    """Give all records of a batch, those at `places` as they are to be stored: hidden attributes as pseudonyms.

    The batch's own records where nothing is to be hidden; that costs a look at its meters where they hide nothing, and
    at its attributes where they do. The hash of what is changed is that of the changed content. Voids stay: they take
    back what is stored. What has the form of a pseudonym is taken for one. Tenants and meters of `places` are known; in
    a transaction that has no ids yet, for a tenant may get its key here.
    """
    hidden = hidden_by(batch.meters, meters)
    if not hidden:
        return batch.records
    # As large batches are read in a thread: heartbeats of this process go on.
    names = {at for at, name in enumerate(batch.source.columns.attribute_names) if name in hidden}
    plain = await asyncio.to_thread(_find_plain, batch, places, meters, names) if names else None
    if not plain:
        return batch.records
    owners = {place: tenant_ids[batch.tenants[batch.records.tenant[place]]] for place in plain}
    keys = await read_keys(conn, set(owners.values()))
    return await asyncio.to_thread(_hide, batch, plain, {place: keys[owner] for place, owner in owners.items()})


def _has_plain(batch: UsageBatch, names: set[int]) -> bool:
    """Say whether some record has an attribute of these names that is no pseudonym."""
    columns = batch.source.columns
    pairs = zip(columns.attribute_name, columns.attribute_value, strict=True)
    values = {value for name, value in pairs if name in names}
    return any(version_of(columns.attribute_values[value]) is None for value in values)


def _find_plain(
    batch: UsageBatch, places: Sequence[int], meters: Mapping[str, MeterFacts], names: set[int]
) -> dict[int, tuple[dict[str, str], list[str]]]:
    """Give the attributes of records that name plainly what one of their meters hides, and which these are.

    `names`: where the batch's dictionary has what some meter hides.
    """
    if not _has_plain(batch, names):
        return {}
    records = batch.records
    hidden = [hidden_by([batch.meters[meter] for meter in shape], meters) for shape in batch.shapes]
    found = {}
    for place in places:
        own = hidden[records.shape[place]]
        if own and not records.flags[place] & FLAG_VOID:
            attributes: dict[str, str] = json.loads(records.attributes[place])
            plain = [name for name in own & attributes.keys() if version_of(attributes[name]) is None]
            if plain:
                found[place] = (attributes, plain)
    return found


def _hide(
    batch: UsageBatch, plain: Mapping[int, tuple[dict[str, str], list[str]]], keys: Mapping[int, PseudonymKey]
) -> Records:
    records = batch.records
    texts, hashes = list(records.attributes), list(records.hashes)
    for place, (attributes, names) in plain.items():
        # In the order of the names, which stays.
        stored = attributes | {name: keys[place].pseudonym(name, attributes[name]) for name in names}
        texts[place] = json.dumps(stored, ensure_ascii=False, separators=(",", ":"))
        shape = batch.shapes[records.shape[place]]
        hashes[place] = content_hash(
            tenant=batch.tenants[records.tenant[place]],
            quantities=zip([batch.meters[meter] for meter in shape], records.units[place], strict=True),
            attributes=stored.items(),
            event_time_us=None if records.flags[place] & FLAG_SYSTEM_ID else records.event_us[place],
        )
    return replace(records, attributes=texts, hashes=hashes)
