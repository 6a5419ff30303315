"""Hashes of usage agree with the vectors that every component is held to."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain import columns
from tollkeeper_ledger.domain.usage_batch import read_batch
from tollkeeper_ledger.domain.usage_chain import CHAIN_START, BatchBody, link_hash
from tollkeeper_ledger.domain.usage_hash import (
    content_hash,
    h_next,
    h_start,
    hole_hash,
    merkle_root,
    refused_hash,
    row_check,
    row_hash,
    rows_digest,
)
from tollkeeper_ledger.domain.usage_proof import merkle_path
from usage_support import Log, Use

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "proto" / "vectors" / "content_hash.json").read_text(encoding="utf-8")
)


def use_of(case: dict[str, Any]) -> Use:
    """Give the record of a vector."""
    return Use(
        id="any",
        tenant=case["tenant"],
        event_us=case["event_time_us"],
        quantities=tuple((one["meter"], one["units"]) for one in case["quantities"]),
        attributes=tuple((one["name"], one["value"]) for one in case["attributes"]),
        flags=1 if case["system_id"] else 0,
    )


@pytest.mark.parametrize("case", VECTORS["content"], ids=lambda case: case["name"])
def test_the_content_hash_is_the_vectors(case: dict[str, Any]) -> None:
    """Both the obvious hash and the batch reader's give what the vector says."""
    use = use_of(case)
    log = Log(producer_id=UUID(int=1))
    log.record(use)
    assert case["hash"] == use.hash().hex()
    assert [case["hash"]] == [found.hex() for found in read_batch(log.cut()).records.hashes]


@pytest.mark.parametrize("case", VECTORS["holes"], ids=lambda case: f"{case['first_seq']}-{case['last_seq']}")
def test_the_hash_of_a_hole_is_the_vectors(case: dict[str, Any]) -> None:
    """A hole's hash covers its first and last number."""
    assert case["hash"] == hole_hash(case["first_seq"], case["last_seq"]).hex()


@pytest.mark.parametrize("case", VECTORS["chains"], ids=lambda case: case["name"])
def test_the_chain_is_the_vectors(case: dict[str, Any]) -> None:
    """The chain begins from the producer id and takes one step per entry."""
    h = h_start(bytes.fromhex(case["producer_id"]))
    chain = [h]
    for entry in case["content_hashes"]:
        h = h_next(h, bytes.fromhex(entry))
        chain.append(h)
    assert case["h"] == [one.hex() for one in chain]
    assert chain[1:] == columns.chain(chain[0], [bytes.fromhex(entry) for entry in case["content_hashes"]])


def _rfc_6962(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return sha256(b"\x01" + _rfc_6962(leaves[:half]) + _rfc_6962(leaves[half:])).digest()


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=70))
def test_the_merkle_root_has_the_shape_of_rfc_6962(leaves: list[bytes]) -> None:
    """Level by level gives the same root as splitting at the largest power of two."""
    assert _rfc_6962(leaves) == merkle_root(leaves)


def test_the_merkle_root_of_nothing_is_the_hash_of_nothing() -> None:
    """A batch that stored nothing has a root as well."""
    assert sha256(b"").digest() == merkle_root([])


def test_a_link_depends_on_everything_it_says() -> None:
    """No field of a link can change without its hash changing."""
    fields: dict[str, Any] = {
        "batch_id": 1,
        "producer_id": UUID(int=2),
        "incarnation": 3,
        "first_seq": 4,
        "last_seq": 5,
        "h": bytes(32),
        "merkle_root": b"m" * 32,
        "rows_digest": b"r" * 32,
        "refused_digest": b"q" * 32,
        "stored": 6,
        "duplicates": 7,
        "conflicts": 8,
        "quarantined": 9,
        "holes": 10,
        "committed_us": 11,
    }
    hashes = {"h": b"x" * 32, "merkle_root": b"y" * 32, "rows_digest": b"z" * 32, "refused_digest": b"w" * 32}
    others = {**dict.fromkeys(fields, 99), "producer_id": UUID(int=9), **hashes}
    digests = {BatchBody(**{**fields, name: others[name]}).digest() for name in fields}
    body = BatchBody(**fields).digest()
    assert len(fields) + 1 == len(digests | {body})
    place: dict[str, Any] = {"stream": 0, "position": 1, "previous": CHAIN_START, "body_digest": body}
    changes = {"stream": 1, "position": 2, "previous": b"p" * 32, "body_digest": b"b" * 32}
    links = {link_hash(**{**place, name: value}) for name, value in changes.items()}
    assert len(place) + 1 == len(links | {link_hash(**place)})


def test_a_rows_hash_depends_on_everything_that_is_stored() -> None:
    """No field of a stored record can change without the row's hash and its check changing."""
    fields: dict[str, Any] = {"record_id": "x", "batch_id": 1, "seq": 2, "event_us": 3, "received_us": 4, "flags": 5}
    fields["segment_id"] = UUID(int=6).bytes
    others = {**dict.fromkeys(fields, 99), "record_id": "y", "segment_id": UUID(int=7).bytes}
    rows = {row_hash(b"c" * 32, **{**fields, name: others[name]}) for name in fields}
    rows |= {row_hash(b"c" * 32, **fields), row_hash(b"d" * 32, **fields)}
    assert len(fields) + 2 == len(rows) == len({row_check(row) for row in rows})
    assert rows_digest(sorted(rows)) != rows_digest(sorted(rows, reverse=True))


def test_a_refused_rows_hash_depends_on_everything_that_is_kept() -> None:
    """No field of a quarantined record can change without its hash and its check changing."""
    fields: dict[str, Any] = {"tenant_id": bytes(16), "producer_id": b"p" * 16, "batch_id": 1, "seq": 2, "at_us": 3}
    fields |= {"reason": "R", "field": "f", "content_hash": b"c" * 32, "record": b"{}"}
    others = {"tenant_id": b"t" * 16, "producer_id": b"o" * 16, "batch_id": 9, "seq": 9, "at_us": 9}
    others |= {"reason": "Rf", "field": "", "content_hash": b"d" * 32, "record": b"[]"}
    rows = {refused_hash(**{**fields, name: others[name]}) for name in fields} | {refused_hash(**fields)}
    assert len(fields) + 1 == len(rows) == len({row_check(row) for row in rows})
    assert refused_hash(**{**fields, "reason": "Rf", "field": ""}) != refused_hash(**fields)


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=70, unique=True), st.data())
def test_a_path_leads_from_any_leaf_to_the_root(leaves: list[bytes], data: st.DataObject) -> None:
    """Climbing a leaf's path gives the root of all leaves."""
    place = data.draw(st.integers(0, len(leaves) - 1))
    node = leaves[place]
    for step in merkle_path(leaves, place):
        node = sha256(b"\x01" + (step.sibling + node if step.is_left else node + step.sibling)).digest()
    assert node == merkle_root(leaves)


def test_a_system_id_leaves_the_event_time_out() -> None:
    """Two records under one system id are the same whatever their event times."""
    given_time = content_hash(tenant="a", quantities=[("m", 1)], attributes=[], event_time_us=5)
    assert given_time != content_hash(tenant="a", quantities=[("m", 1)], attributes=[], event_time_us=None)
