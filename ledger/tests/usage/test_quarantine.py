# ruff: noqa: SIM300 - expected first, then actual
"""Records in quarantine: what is kept of them is all of them, and each act is a row that tells when it was changed."""

from __future__ import annotations

import json
from dataclasses import replace
from uuid import UUID

import pytest
from tollkeeper_ledger.domain.usage import DAY_US, FLAG_DECREASE, FLAG_SYSTEM_ID, SHIPPING_MAX_US, Problem, UsageAppend
from tollkeeper_ledger.domain.usage_audit import AuditedRecord, RefusedRecord, hash_of_refused
from tollkeeper_ledger.domain.usage_batch import read_batch
from tollkeeper_ledger.domain.usage_hash import h_start, row_check
from tollkeeper_ledger.domain.usage_judgement import describe_records
from tollkeeper_ledger.domain.usage_quarantine import (
    CHANGED,
    EXPIRED,
    RELEASE_MAX_US,
    ActOutcome,
    QuarantineAct,
    RefusedUse,
    act_problem,
    columns_again,
    counted_as,
    read_refused,
    release_problem,
)
from usage_support import Log, Use

PRODUCER = UUID(int=3)
NOW_US = 1_800_000_000_000_000


def recorded(*uses: Use) -> UsageAppend:
    """Give records as a producer sends them."""
    log = Log(producer_id=PRODUCER)
    log.record(*uses)
    return log.cut()


USES = (
    Use("plain", event_us=NOW_US - 5, received_us=NOW_US),
    Use(
        "rich",
        tenant="globex",
        event_us=NOW_US,
        received_us=NOW_US - 9,
        quantities=(("requests", 2**53 - 1), ("bytes", 0)),
        attributes=(("ü\n", '"\\'), ("a", "")),
        flags=FLAG_SYSTEM_ID,
    ),
    Use("\0 bad", tenant="no tenant!", quantities=(("requests", -1), ("requests", 2)), event_us=-1, received_us=2**62),
    Use("empty", quantities=(), attributes=(("a", "1"), ("a", "1"))),
    Use("r/" + "0" * 32, flags=FLAG_SYSTEM_ID, home=bytes(range(16))),
    Use("falls", flags=FLAG_DECREASE, levels=(("seats", b"key", b"holder", 3, 1), ("beds", b"", b"h", 2, 0))),
)


def refused_use(record: bytes) -> RefusedUse:
    """Read a record that nobody changed."""
    refused = read_refused(record)
    assert refused is not None
    return refused


def test_a_record_is_kept_whole_whatever_it_holds() -> None:
    """What is read from quarantine makes the batch that came: every column's meaning, hashes, homes and levels."""
    before = read_batch(recorded(*USES))
    kept = describe_records(before, range(len(USES)))
    columns = columns_again([refused_use(kept[at]) for at in range(len(USES))])
    source = replace(before.source, columns=columns, h_before=h_start(PRODUCER.bytes))
    after = read_batch(source)
    assert before.records.hashes == after.records.hashes
    assert before.entry_h == after.entry_h
    assert before.problems == after.problems
    assert before.levels == after.levels
    assert kept == describe_records(after, range(len(USES)))


def row(use: Use) -> RefusedRecord:
    """Give a record as quarantine has it."""
    batch = read_batch(recorded(use))
    record = describe_records(batch, [0])[0]
    bare = RefusedRecord(UUID(int=1), PRODUCER, 1, 7, "METER_UNKNOWN", "", batch.records.hashes[0], record, NOW_US, 0)
    return bare._replace(row_check=row_check(hash_of_refused(bare)))


@pytest.mark.parametrize(
    ("event_age_us", "received_age_us", "flags", "problem"),
    [
        (0, 0, 0, None),
        (RELEASE_MAX_US + DAY_US, SHIPPING_MAX_US, 0, None),
        (RELEASE_MAX_US, SHIPPING_MAX_US + 1, 0, None),
        (RELEASE_MAX_US + 1, SHIPPING_MAX_US + 1, 0, EXPIRED),
        (0, SHIPPING_MAX_US, FLAG_SYSTEM_ID, None),
        (0, SHIPPING_MAX_US + 1, FLAG_SYSTEM_ID, EXPIRED),
    ],
)
def test_a_record_is_released_only_while_its_id_would_be_met(
    event_age_us: int, received_age_us: int, flags: int, problem: Problem | None
) -> None:
    """Later than that a copy of it may have been stored and its id forgotten, so it would count twice."""
    use = Use("old", event_us=NOW_US - event_age_us, received_us=NOW_US - received_age_us, flags=flags)
    kept = row(use)
    assert problem == release_problem(kept, read_refused(kept.record), now_us=NOW_US)


def test_a_row_that_was_changed_is_not_released() -> None:
    """Whoever raises a quantity in quarantine has it counted nowhere."""
    kept = row(Use("changed", received_us=NOW_US, event_us=NOW_US))
    changed = kept._replace(record=kept.record.replace(b'["requests",1]', b'["requests",9]'))
    assert changed.record != kept.record
    assert CHANGED == release_problem(changed, read_refused(changed.record), now_us=NOW_US)


@pytest.mark.parametrize("use", USES, ids=lambda use: repr(use.id))
def test_a_row_is_dealt_with_whatever_became_of_it(use: Use) -> None:
    """Any bit of a record turned, or its JSON of another shape: nothing breaks, and nothing is released."""
    kept = row(use)
    counted = AuditedRecord("acme", "x", 7, 0, NOW_US, NOW_US, 0, UUID(int=2), [("m", 1)], {"a": "b"}, 0, None)
    turned = [
        kept.record[:at] + bytes([kept.record[at] ^ 1 << bit]) + kept.record[at + 1 :]
        for at in range(len(kept.record))
        for bit in range(8)
    ]
    shapes = [b"", b"{}", b"[]", b"null", b"[" * 100_000, json.dumps({**json.loads(kept.record), "more": 1}).encode()]
    for record in [*turned, *shapes]:
        changed = kept._replace(record=record)
        assert release_problem(changed, read_refused(record), now_us=NOW_US) == CHANGED
        assert len(counted_as(counted, record)) == 32
        # As one who knows how rows are checked would leave it.
        forged = changed._replace(row_check=row_check(hash_of_refused(changed)))
        refused = read_refused(record)
        if release_problem(forged, refused, now_us=NOW_US) is None:
            assert refused is not None
            columns_again([refused])
    assert any(read_refused(record) is None for record in turned)


ACT = QuarantineAct(
    tenant_id=UUID(int=1),
    producer_id=PRODUCER,
    seq=4,
    number=2,
    outcome=ActOutcome.RELEASED,
    problem=None,
    note="meter declared",
    actor="ann",
    at_us=NOW_US,
    batch_id=9,
    batch_seq=1,
)


def test_an_act_is_what_its_row_says_it_was() -> None:
    """Every field is under the row's check; what it says is stored must be there, with the same content."""
    check = ACT.row_check()
    good = {"stored_check": check, "refused_hash": b"a", "counted_hash": b"a", "away": False}
    assert "" == act_problem(ACT, **good)
    others = {
        "tenant_id": UUID(int=2),
        "producer_id": UUID(int=4),
        "seq": 5,
        "number": 3,
        "outcome": ActOutcome.DUPLICATE,
        "problem": Problem("X", ""),
        "note": "meter declared.",
        "actor": "bob",
        "at_us": NOW_US + 1,
        "batch_id": 8,
        "batch_seq": 2,
    }
    assert set(others) == set(QuarantineAct.__slots__)
    for name, value in others.items():
        assert act_problem(replace(ACT, **{name: value}), **good), name
    assert act_problem(ACT, **{**good, "refused_hash": None})
    assert act_problem(ACT, **{**good, "counted_hash": b"b"})
    assert act_problem(ACT, **{**good, "counted_hash": None})
    assert "" == act_problem(ACT, **{**good, "counted_hash": None, "away": True})
    discarded = replace(ACT, outcome=ActOutcome.DISCARDED)
    assert "" == act_problem(
        discarded, stored_check=discarded.row_check(), refused_hash=b"a", counted_hash=None, away=False
    )
