"""The chain over batches: one link per batch, each holding the hash of the link before it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

CHAIN_START = bytes(32)
"""Hash before the first link of a stream."""

_BODY_TAG = b"tollkeeper.batch.v1"
_LINK_TAG = b"tollkeeper.link.v1"


@dataclass(frozen=True, slots=True)
class BatchBody:
    """What a link says about its batch."""

    batch_id: int
    producer_id: UUID
    incarnation: int
    first_seq: int
    last_seq: int
    h: bytes
    merkle_root: bytes
    rows_digest: bytes
    """Over everything that is stored of the batch's records."""
    refused_digest: bytes
    """Over everything that is kept of those that went to quarantine."""
    stored: int
    duplicates: int
    conflicts: int
    quarantined: int
    holes: int
    """Sequence numbers that holes took."""
    committed_us: int

    def digest(self) -> bytes:
        """Give SHA-256 over every field: integers as 8 bytes little-endian, hashes and the producer id as they are."""
        head = len(_BODY_TAG).to_bytes(4, "little") + _BODY_TAG + _integers(self.batch_id) + self.producer_id.bytes
        span = _integers(self.incarnation, self.first_seq, self.last_seq)
        counts = _integers(self.stored, self.duplicates, self.conflicts, self.quarantined, self.holes)
        hashes = self.h + self.merkle_root + self.rows_digest + self.refused_digest
        return sha256(head + span + hashes + counts + _integers(self.committed_us)).digest()


def _integers(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "little", signed=True) for number in numbers)


def link_hash(*, stream: int, position: int, previous: bytes, body_digest: bytes) -> bytes:
    """Give the hash of a link: its place, the hash of the link before it, its batch."""
    head = len(_LINK_TAG).to_bytes(4, "little") + _LINK_TAG
    place = stream.to_bytes(4, "little") + position.to_bytes(8, "little")
    return sha256(head + place + previous + body_digest).digest()
