"""Hashes of usage, version 1: content, holes, the producer's chain h, and Merkle roots.

Source: the comment of proto/tollkeeper/ledger/v1/usage.proto; proto/vectors/content_hash.json holds cases.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_CONTENT_TAG = "tollkeeper.content.v1"
_HOLE_TAG = b"tollkeeper.hole.v1"
_MERKLE_NODE = b"\x01"
_MERKLE_TENANT_TAG = b"tollkeeper.merkle.tenant.v1"
_MERKLE_TENANT_HEAD = len(_MERKLE_TENANT_TAG).to_bytes(4, "little") + _MERKLE_TENANT_TAG

_EVENT_TIME_PRESENT = (1).to_bytes(4, "little")
_EVENT_TIME_ABSENT = (0).to_bytes(4, "little")
_HASH_BYTES = 32


def string_bytes(text: str) -> bytes:
    """Give a string as hashes take it: its UTF-8 length as u32 little-endian, then its bytes."""
    encoded = text.encode()
    return len(encoded).to_bytes(4, "little") + encoded


def content_hash(
    *,
    tenant: str,
    quantities: Iterable[tuple[str, int]],
    attributes: Iterable[tuple[str, str]],
    event_time_us: int | None,
) -> bytes:
    """Give a record's content hash; `event_time_us` is None where the system made the id.

    The obvious form. Batches are hashed by `columns.hash_records`, which must agree with it.
    """
    ordered = sorted(quantities, key=lambda quantity: quantity[0].encode())
    named = sorted(attributes, key=lambda attribute: attribute[0].encode())
    parts = [string_bytes(_CONTENT_TAG), string_bytes(tenant), _LENGTH.pack(len(ordered))]
    for meter, units in ordered:
        parts += [string_bytes(meter), units.to_bytes(8, "little", signed=True)]
    parts.append(_LENGTH.pack(len(named)))
    for name, value in named:
        parts += [string_bytes(name), string_bytes(value)]
    if event_time_us is None:
        parts.append(_EVENT_TIME_ABSENT)
    else:
        parts += [_EVENT_TIME_PRESENT, event_time_us.to_bytes(8, "little", signed=True)]
    return sha256(b"".join(parts)).digest()


def hole_hash(first_seq: int, last_seq: int) -> bytes:
    """Give the content hash of a hole. Both numbers are unsigned 64-bit."""
    numbers = first_seq.to_bytes(8, "little") + last_seq.to_bytes(8, "little")
    return sha256(len(_HOLE_TAG).to_bytes(4, "little") + _HOLE_TAG + numbers).digest()


def h_start(producer_id: bytes) -> bytes:
    """Give h(0): nothing committed yet."""
    return sha256(producer_id).digest()


def h_next(h: bytes, entry_hash: bytes) -> bytes:
    """Give h after one more entry."""
    return sha256(h + entry_hash).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Give the root over hashes in their order; SHA-256 of nothing where there are none.

    Nodes are SHA-256(0x01, left, right); a node without a partner moves up as it is. Leaves are content hashes, whose
    preimages begin with 0x15, so no leaf can pass for a node. Source: the shape of RFC 6962, section 2.1.
    """
    if not leaves:
        return sha256(b"").digest()
    level = leaves
    while len(level) > 1:
        pairs = zip(level[0::2], level[1::2], strict=False)
        parents = [sha256(_MERKLE_NODE + left + right).digest() for left, right in pairs]
        if len(level) % 2:
            parents.append(level[-1])
        level = parents
    return level[0]


def merkle_tenant_leaf(tenant: str, count: int, root: bytes) -> bytes:
    """Give the leaf that stands for a tenant's records in the root over all tenants."""
    name = tenant.encode()
    return sha256(_MERKLE_TENANT_HEAD + _LENGTH.pack(len(name)) + name + _COUNT.pack(count) + root).digest()


def merkle_root_by_tenant(hashes: Mapping[str, Sequence[bytes]]) -> bytes:
    """Give the root over a batch: per tenant a tree in sequence order, over them a tree in bytewise tenant order.

    A tenant can be shown that a record is in it without seeing anything of another tenant's but one hash.
    """
    # Strings ascend by code points, and their UTF-8 by the same.
    ordered = [(tenant, hashes[tenant]) for tenant in sorted(hashes)]
    return merkle_root(
        [
            merkle_tenant_leaf(tenant, len(leaves), leaves[0] if len(leaves) == 1 else merkle_root(leaves))
            for tenant, leaves in ordered
        ]
    )


def row_hash(
    content_hash: bytes,
    *,
    record_id: str,
    batch_id: int,
    seq: int,
    event_us: int,
    received_us: int,
    flags: int,
    segment_id: bytes,
) -> bytes:
    """Give the hash over everything that is stored of a record: its content, and what the content hash leaves out."""
    numbers = _ROW_NUMBERS.pack(batch_id, seq, event_us, received_us, flags)
    return sha256(_ROW_HEAD + content_hash + string_bytes(record_id) + numbers + segment_id).digest()


def row_checks(hashed: bytes) -> tuple[int, ...]:
    """Give `row_check` of every row, of their hashes one behind the other."""
    return struct.unpack("<" + "q24x" * (len(hashed) // _HASH_BYTES), hashed)


def refused_hash(
    *,
    tenant_id: bytes,
    producer_id: bytes,
    batch_id: int,
    seq: int,
    at_us: int,
    reason: str,
    field: str,
    content_hash: bytes,
    record: bytes,
) -> bytes:
    """Give the hash over everything that is stored of a record in quarantine."""
    numbers = _REFUSED_NUMBERS.pack(batch_id, seq, at_us)
    why = string_bytes(reason) + string_bytes(field)
    return sha256(
        _REFUSED_HEAD + tenant_id + producer_id + numbers + why + content_hash + sha256(record).digest()
    ).digest()


def row_check(hashed: bytes) -> int:
    """Give what a row carries of its own hash: the first 8 bytes as a signed integer."""
    return int.from_bytes(hashed[:8], "little", signed=True)


def rows_digest(hashed: Iterable[bytes]) -> bytes:
    """Give the hash over rows of a batch, stored or refused ones, in sequence order."""
    return sha256(b"".join(hashed)).digest()


_ROW_TAG = b"tollkeeper.row.v1"
_ROW_HEAD = len(_ROW_TAG).to_bytes(4, "little") + _ROW_TAG
_ROW_NUMBERS = struct.Struct("<qqqqq")
_REFUSED_TAG = b"tollkeeper.refused.v1"
_REFUSED_HEAD = len(_REFUSED_TAG).to_bytes(4, "little") + _REFUSED_TAG
_REFUSED_NUMBERS = struct.Struct("<qqq")
_LENGTH = struct.Struct("<I")
_COUNT = struct.Struct("<Q")
