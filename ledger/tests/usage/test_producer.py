"""What of a batch is new: any way of cutting, repeating, reordering and losing batches stores every record once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.errors import InvalidFieldError, PreconditionError
from tollkeeper_ledger.domain.usage_batch import holes_after, read_batch
from tollkeeper_ledger.domain.usage_hash import h_start
from tollkeeper_ledger.domain.usage_producer import (
    Placement,
    Producer,
    check_format,
    check_holder,
    check_opening,
    place,
    state_now,
)
from usage_support import Log, Use

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.usage import UsageAppend

PRODUCER = UUID(int=7)


@dataclass(slots=True)
class ModelLedger:
    """Keep what the ledger must keep, the obvious way: one dict of records and the producer's row."""

    producer: Producer = field(
        default_factory=lambda: Producer(PRODUCER, 1, b"x", committed_seq=0, h=h_start(PRODUCER.bytes))
    )
    records: dict[int, str] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)

    def append(self, append: UsageAppend) -> None:
        """Commit a batch; refuse what `place` refuses. Fails where a sequence number would be stored twice."""
        batch = read_batch(append)
        placement = place(self.producer, batch)
        if placement.behind:
            return
        for at in range(placement.skip, len(batch.records)):
            assert batch.records.seqs[at] not in self.records
            self.records[batch.records.seqs[at]] = batch.records.ids[at]
        for hole in holes_after(append.holes, self.producer.committed_seq):
            assert hole.first_seq not in self.lost
            self.lost[hole.first_seq] = hole.last_seq
        h = batch.h_at(batch.last_seq)
        assert h is not None
        self.producer = replace(self.producer, committed_seq=batch.last_seq, h=h)


def log_of(entries: list[int]) -> Log:
    """Give a log: 0 is a record, n > 0 a hole of n numbers."""
    log = Log(producer_id=PRODUCER)
    for number, entry in enumerate(entries):
        if entry:
            log.lose(entry)
        else:
            log.record(Use(id=f"u{number}", quantities=(("m", number),)))
    return log


ENTRIES = st.lists(st.sampled_from([0, 0, 0, 1, 3]), min_size=1, max_size=25)


@given(ENTRIES, st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), max_size=30))
def test_any_cutting_stores_every_record_once(entries: list[int], cuts: list[tuple[int, int]]) -> None:
    """Batches of any bounds in any order, then the whole: the same records, holes, sum and h as sent once."""
    log = log_of(entries)
    ledger = ModelLedger()
    for first, last in cuts:
        batch = log.cut(min(first, len(entries)), max(first, last))
        if batch.first_seq <= ledger.producer.committed_seq + 1:
            ledger.append(batch)
            continue
        with pytest.raises(PreconditionError) as caught:
            ledger.append(batch)
        assert caught.value.reason == "PRODUCER_GAP"
        assert int(caught.value.metadata["expected"]) == ledger.producer.committed_seq + 1
    ledger.append(log.cut())
    once = ModelLedger()
    once.append(log.cut())
    assert (once.records, once.lost, once.producer) == (ledger.records, ledger.lost, ledger.producer)
    assert (log.last_seq, log.h(len(entries))) == (ledger.producer.committed_seq, ledger.producer.h)
    assert len(ledger.records) == entries.count(0)


@given(ENTRIES, st.data())
def test_a_forked_history_is_found(entries: list[int], data: st.DataObject) -> None:
    """Where one committed entry differs, a batch that reaches what is committed is refused and changes nothing."""
    committed = data.draw(st.integers(1, len(entries)))
    changed = data.draw(st.integers(0, committed - 1))
    ledger = ModelLedger()
    ledger.append(log_of(entries).cut(0, committed))
    other = log_of(entries[:changed])
    if entries[changed]:
        other.record(*[Use(id="instead") for _ in range(entries[changed])])
    else:
        other.record(Use(id="u", quantities=(("m", 999),)))
    for number, entry in enumerate(entries[changed + 1 :], changed + 1):
        if entry:
            other.lose(entry)
        else:
            other.record(Use(id=f"u{number}", quantities=(("m", number),)))
    other.record(Use(id="next"))
    before = (dict(ledger.records), ledger.producer)
    reached = other.ends.index(ledger.producer.committed_seq) + 1
    first = data.draw(st.integers(0, reached))
    last = data.draw(st.integers(reached, len(other.entries)))
    with pytest.raises(PreconditionError) as caught:
        ledger.append(other.cut(first, last))
    assert caught.value.reason == "PRODUCER_FORKED"
    assert before == (ledger.records, ledger.producer)


def test_a_hole_over_committed_records_is_a_fork() -> None:
    """A producer can't declare damaged what the ledger has; it must cut the hole at what is committed."""
    ledger = ModelLedger()
    ledger.append(log_of([0, 0]).cut())
    with pytest.raises(PreconditionError) as caught:
        ledger.append(log_of([0, 3, 0]).cut())
    assert caught.value.reason == "PRODUCER_FORKED"


def test_a_batch_that_ends_below_is_answered_and_counts_nothing() -> None:
    """An old batch says nothing about the present: it is answered with where the ledger stands."""
    log = log_of([0, 0, 0])
    ledger = ModelLedger()
    ledger.append(log.cut())
    assert Placement(skip=2, behind=True) == place(ledger.producer, read_batch(log.cut(0, 2)))


def test_an_empty_batch_is_a_sign_of_life_that_must_agree() -> None:
    """A batch without entries stands at committed_seq; a wrong h there is a fork."""
    log = log_of([0])
    ledger = ModelLedger()
    ledger.append(log.cut())
    assert Placement(skip=0, behind=False) == place(ledger.producer, read_batch(log.cut(1)))
    with pytest.raises(PreconditionError):
        place(ledger.producer, read_batch(replace(log.cut(1), h_before=bytes(32))))


@pytest.mark.parametrize(
    ("incarnation", "holder", "reason"),
    [(4, b"x", "PRODUCER_FENCED"), (5, b"y", "PRODUCER_FENCED"), (5, b"x", None), (6, b"y", None), (6, b"x", None)],
)
def test_older_processes_and_twins_are_fenced(incarnation: int, holder: bytes, reason: str | None) -> None:
    """Of one producer only the newest incarnation may speak, and of that only the process that announced it."""
    known = Producer(PRODUCER, 5, b"x", committed_seq=0, h=bytes(32))
    if reason is None:
        check_holder(known, incarnation=incarnation, holder=holder)
        return
    with pytest.raises(PreconditionError) as caught:
        check_holder(known, incarnation=incarnation, holder=holder)
    assert reason == caught.value.reason


@pytest.mark.parametrize(("incarnation", "holder"), [(0, b"x"), (2**63, b"x"), (1, b""), (1, b"x" * 65)])
def test_an_announcement_must_name_a_process(incarnation: int, holder: bytes) -> None:
    """Incarnations begin at 1 and fit the database; a holder has 1 to 64 bytes."""
    with pytest.raises(InvalidFieldError):
        check_opening(incarnation=incarnation, holder=holder)


@pytest.mark.parametrize("version", [0, 2])
def test_formats_of_other_versions_are_refused(version: int) -> None:
    """A ledger never guesses at a format."""
    with pytest.raises(PreconditionError) as caught:
        check_format(version)
    assert caught.value.reason == "VERSION_UNSUPPORTED"


@pytest.mark.parametrize(
    ("stored", "minutes", "state"),
    [
        ("open", 9, "open"),
        ("open", 10, "silent"),
        ("open", 60 * 24, "lost"),
        ("closed", 60 * 24, "closed"),
        ("lost", 0, "lost"),
    ],
)
def test_a_quiet_producer_becomes_silent_then_lost(stored: str, minutes: int, state: str) -> None:
    """Ten quiet minutes make an open producer silent, a day makes it lost; one that closed stays closed."""
    quiet = timedelta(minutes=minutes)
    found = state_now(stored, quiet=quiet, silent_after=timedelta(minutes=10), lost_after=timedelta(hours=24))
    assert state == found
