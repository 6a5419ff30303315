"""Check a record's way into the chain, from its fields to a signed root, trusting the ledger in nothing.

Written from the contract (usage.proto, reports.proto), not from the ledger's code.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tollkeeper_cli.connection import micros_text, to_micros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tollkeeper.ledger.v1 import reports_pb2

_FLAG_SYSTEM_ID = 1


class ProofError(Exception):
    """Says which step of a proof does not hold."""


@dataclass(frozen=True, slots=True)
class Proved:
    """Under which root a record stands; both empty where none covers it yet."""

    signed_at: str
    public_key: str


def whole_proof(
    request: reports_pb2.ProveUsageRequest,
    ask: Callable[[reports_pb2.ProveUsageRequest], reports_pb2.ProveUsageResponse],
) -> reports_pb2.ProveUsageResponse:
    """Ask for a proof until all of it is there. Raises ProofError where answers don't go together."""
    proof = ask(request)
    asked = type(request)()
    asked.CopyFrom(request)
    while len(proof.later_batches) < proof.later_count:
        asked.later_from = len(proof.later_batches)
        more = ask(asked)
        if more.root != proof.root or not more.later_batches:
            raise ProofError("the ledger gives another root, or no more, while it is asked: ask again")
        proof.later_batches.extend(more.later_batches)
    return proof


def check_proof(
    tenant: str,
    record_id: str,
    proof: reports_pb2.ProveUsageResponse,
    *,
    event_us: int | None = None,
    public_key: str = "",
    must_bind: bool = True,
) -> Proved:
    """Check every step of a proof. Raises ProofError for the first that does not hold.

    `event_us`: the event time that the record must have, in microseconds. `must_bind=False` takes proofs of ledgers
    that gave no hashes of rows as well: those show that such content was recorded, under whatever id, and for ids that
    the system made at whatever time.
    """
    if proof.record.id != record_id:
        raise ProofError("it is about another record")
    if proof.record.event_time.nanos % 1_000:
        raise ProofError("its event time has parts of a microsecond")
    if event_us is not None and to_micros(proof.record.event_time) != event_us:
        raise ProofError("it is about a record of another time")
    if must_bind or proof.row_hashes:
        _check_row(proof)
    if _content(tenant, proof.record) != proof.content_hash:
        raise ProofError("the content hash is not the record's")
    tenant_root = _climb(proof.content_hash, proof.tenant_path)
    tag = _string("tollkeeper.merkle.tenant.v1")
    leaf = sha256(tag + _string(tenant) + struct.pack("<q", proof.tenant_records) + tenant_root).digest()
    if _climb(leaf, proof.batch_path) != proof.link.merkle_root:
        raise ProofError("the record is not in the batch's tree")
    link = proof.link
    hashed = _link(link.stream, link.position, link.previous_hash, _batch(link))
    if hashed != link.hash:
        raise ProofError("the link's hash does not follow from it")
    for number, batch in enumerate(proof.later_batches, link.position + 1):
        hashed = _link(link.stream, number, hashed, batch)
    if not proof.HasField("root"):
        return Proved(signed_at="", public_key="")
    return _root(proof, hashed, link.position + len(proof.later_batches), public_key)


def _check_row(proof: reports_pb2.ProveUsageResponse) -> None:
    """Hold id, times, number, flags and producer against the digest over the batch's rows; see that it is whole."""
    record, link = proof.record, proof.link
    if not proof.row_hashes:
        raise ProofError("it says nothing that binds the record's id and time: ask a newer ledger")
    if proof.later_count != len(proof.later_batches):
        raise ProofError("it is not whole: its root signs a link that it does not lead to")
    numbers = (link.batch_id, record.seq, to_micros(record.event_time), proof.received_us, record.flags)
    head = _string("tollkeeper.row.v1") + proof.content_hash + _string(record.id)
    row = sha256(head + struct.pack("<qqqqq", *numbers) + proof.segment_id).digest()
    if any(len(hashed) != len(row) for hashed in proof.row_hashes) or row not in proof.row_hashes:
        raise ProofError("the record's id, time, number or flags are not those that were stored")
    if sha256(b"".join(proof.row_hashes)).digest() != link.rows_digest:
        raise ProofError("the rows are not those of the link")
    if record.producer_id != link.producer_id:
        raise ProofError("another producer sent the batch")


def _root(proof: reports_pb2.ProveUsageResponse, hashed: bytes, position: int, public_key: str) -> Proved:
    root = proof.root
    if public_key and root.public_key.hex() != public_key.lower():
        raise ProofError("the root is signed with another key")
    try:
        Ed25519PublicKey.from_public_bytes(root.public_key).verify(root.signature, root.statement)
        statement = json.loads(root.statement)
        head = {"hash": hashed.hex(), "position": position, "stream": proof.link.stream}
        is_there = head in statement["heads"]
        signed_at = micros_text(statement["signed_us"])
    except (InvalidSignature, ValueError, KeyError, TypeError) as error:
        raise ProofError("the root is not signed") from error
    if not is_there:
        raise ProofError("the signed root has another link there")
    return Proved(signed_at=signed_at, public_key=root.public_key.hex())


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def _content(tenant: str, record: reports_pb2.StoredRecord) -> bytes:
    parts = [_string("tollkeeper.content.v1"), _string(tenant), struct.pack("<I", len(record.units))]
    for meter, units in sorted(record.units.items(), key=lambda one: one[0].encode()):
        parts += [_string(meter), struct.pack("<q", units)]
    parts.append(struct.pack("<I", len(record.attributes)))
    for name, value in sorted(record.attributes.items(), key=lambda one: one[0].encode()):
        parts += [_string(name), _string(value)]
    if record.flags & _FLAG_SYSTEM_ID:
        parts.append(struct.pack("<I", 0))
    else:
        parts.append(struct.pack("<Iq", 1, to_micros(record.event_time)))
    return sha256(b"".join(parts)).digest()


def _climb(node: bytes, path: Iterable[reports_pb2.ProofStep]) -> bytes:
    for step in path:
        pair = step.sibling + node if step.is_left else node + step.sibling
        node = sha256(b"\x01" + pair).digest()
    return node


def _batch(link: reports_pb2.ChainLink) -> bytes:
    head = _string("tollkeeper.batch.v1") + struct.pack("<q", link.batch_id) + link.producer_id
    span = struct.pack("<qqq", link.incarnation, link.first_seq, link.last_seq)
    counts = struct.pack("<qqqqq", link.stored, link.duplicates, link.conflicts, link.quarantined, link.holes)
    hashes = link.h + link.merkle_root + link.rows_digest + link.refused_digest
    return sha256(head + span + hashes + counts + struct.pack("<q", link.committed_us)).digest()


def _link(stream: int, position: int, previous: bytes, batch: bytes) -> bytes:
    head = _string("tollkeeper.link.v1") + struct.pack("<IQ", stream, position)
    return sha256(head + previous + batch).digest()
