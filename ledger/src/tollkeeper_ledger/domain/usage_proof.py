"""A record's way into the chain, and what a signed root says. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.domain.usage_hash import merkle_root, merkle_tenant_leaf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tollkeeper_ledger.domain.usage_chain import BatchBody

ROOT_VERSION = 1


class Step(NamedTuple):
    """One step of a path in a Merkle tree."""

    sibling: bytes
    is_left: bool


class Head(NamedTuple):
    """The last link of a stream."""

    stream: int
    position: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class SignedRoot:
    """Heads of all streams at one moment, signed."""

    statement: bytes
    signature: bytes
    public_key: bytes


@dataclass(frozen=True, slots=True)
class UsageProof:
    """A record's way into the chain: content hash, paths to the batch's Merkle root, link, links after it, root."""

    content_hash: bytes
    row_hashes: Sequence[bytes]
    """Of every row of the batch in order: `rows_digest` is over them, and each binds its record's id and times."""
    tenant_path: Sequence[Step]
    tenant_records: int
    batch_path: Sequence[Step]
    stream: int
    position: int
    previous_hash: bytes
    body: BatchBody
    hash: bytes
    later_batches: Sequence[bytes]
    """Digests of the batches after it, from where they were asked for."""
    later_count: int
    """Links after it up to the one that the root signs."""
    root: SignedRoot | None


def merkle_path(leaves: Sequence[bytes], place: int) -> list[Step]:
    """Give the way from a leaf to the root that `usage_hash.merkle_root` gives."""
    steps: list[Step] = []
    level = list(leaves)
    while len(level) > 1:
        partner = place ^ 1
        if partner < len(level):
            steps.append(Step(level[partner], is_left=partner < place))
        pairs = [merkle_root(level[at : at + 2]) for at in range(0, len(level), 2)]
        level, place = pairs, place // 2
    return steps


def batch_paths(hashes: Mapping[str, Sequence[bytes]], tenant: str, place: int) -> tuple[list[Step], list[Step]]:
    """Give a record's ways to its tenant's root and from there to the batch's root."""
    ordered = sorted(hashes, key=lambda name: name.encode())
    leaves = [merkle_tenant_leaf(name, len(hashes[name]), merkle_root(hashes[name])) for name in ordered]
    return merkle_path(hashes[tenant], place), merkle_path(leaves, ordered.index(tenant))


def root_statement(*, installation_id: bytes, signed_us: int, heads: Sequence[Head]) -> bytes:
    """Give what is signed, as canonical JSON."""
    told = {
        "heads": [{"hash": head.hash.hex(), "position": head.position, "stream": head.stream} for head in heads],
        "installation": installation_id.hex(),
        "signed_us": signed_us,
        "version": ROOT_VERSION,
    }
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode()


def read_statement(statement: bytes) -> tuple[int, list[Head]]:
    """Give when a root was signed, in microseconds, and its heads. Raises ValueError for what is no statement."""
    try:
        told = json.loads(statement)
        heads = [
            Head(_number(head["stream"], 31), _number(head["position"], 63), bytes.fromhex(head["hash"]))
            for head in told["heads"]
        ]
        signed_us = _number(told["signed_us"], 63)
        from_us(signed_us)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError("no statement of a root") from error
    return signed_us, heads


def _number(value: Any, bits: int) -> int:
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise ValueError(f"no whole number of {bits} bits")
    return value


def key_name(public_key: bytes) -> str:
    """Give a key's name for people: the first bytes of its SHA-256."""
    return sha256(public_key).hexdigest()[:16]
