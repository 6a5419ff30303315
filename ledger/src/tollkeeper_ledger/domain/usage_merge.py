"""Lay records of several batches behind each other, so that one statement stores all of them. Pure."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.usage_batch import Records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.domain.usage_batch import UsageBatch


@dataclass(frozen=True, slots=True)
class Merged:
    """Records of batches, one batch behind the other."""

    records: Records
    tenants: Sequence[str]
    """Wire ids that the records point to."""
    shapes: Sequence[tuple[str, ...]]
    """Meters of the shapes that the records point to."""
    starts: Sequence[int]
    """Per batch: where its records begin."""

    def origin(self, place: int) -> tuple[int, int]:
        """Give the batch that a record is from, and its place among the batch's records here."""
        batch = bisect_right(self.starts, place) - 1
        return batch, place - self.starts[batch]


def merge(parts: Sequence[tuple[UsageBatch, Records]]) -> Merged:
    """Lay records behind each other, each part some of its batch's, at least one. One part costs nothing.

    `home` of several batches' records is not told: it points into each batch's own dictionary.
    """
    starts = [0, *accumulate(len(records) for _, records in parts)][:-1]
    if len(parts) == 1:
        ((batch, records),) = parts
        return Merged(records, batch.tenants, _meters_of_shapes(batch), starts)
    tenants: dict[str, int] = {}
    shapes: dict[tuple[str, ...], int] = {}
    tenant, shape = [], []
    for batch, records in parts:
        places = [tenants.setdefault(wire_id, len(tenants)) for wire_id in batch.tenants]
        tenant += [places[at] for at in records.tenant]
        forms = [shapes.setdefault(meters, len(shapes)) for meters in _meters_of_shapes(batch)]
        shape += [forms[at] for at in records.shape]
    every = [records for _, records in parts]
    return Merged(
        records=Records(
            seqs=list(chain.from_iterable(one.seqs for one in every)),
            ids=list(chain.from_iterable(one.ids for one in every)),
            tenant=tenant,
            event_us=list(chain.from_iterable(one.event_us for one in every)),
            received_us=list(chain.from_iterable(one.received_us for one in every)),
            flags=list(chain.from_iterable(one.flags for one in every)),
            shape=shape,
            units=list(chain.from_iterable(one.units for one in every)),
            attributes=list(chain.from_iterable(one.attributes for one in every)),
            hashes=list(chain.from_iterable(one.hashes for one in every)),
            home=[0] * len(tenant),
        ),
        tenants=list(tenants),
        shapes=list(shapes),
        starts=starts,
    )


def _meters_of_shapes(batch: UsageBatch) -> list[tuple[str, ...]]:
    return [tuple([batch.meters[meter] for meter in shape]) for shape in batch.shapes]
