# ruff: noqa: SIM300 - expected first, then actual
"""The ledger's own alarm about producers that are behind or gone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from tollkeeper_ledger.services.producer_watch import LAG_ALARM, LAG_PAGE, NAMED_MAX, ProducerWatch
from tollkeeper_ledger.services.reports import IngestStatus, ProducerView, TopicView
from tollkeeper_ledger.store.usage_reports import ProducerRow
from tollkeeper_ledger.store.usage_topics import TopicRow

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, Any]] = []

    def warning(self, what: str, **fields: Any) -> None:
        """Keep a warning."""
        self.lines.append(("warning", what, fields.get("producer") or fields["count"]))

    def error(self, what: str, **fields: Any) -> None:
        """Keep an error."""
        self.lines.append(("error", what, fields.get("producer") or fields["count"]))


def producer(number: int, state: str, lag: timedelta | None) -> ProducerView:
    """Give a producer so far behind."""
    watermark = None if lag is None else NOW - lag
    row = ProducerRow(UUID(int=number), "open", 1, 1, watermark, seen_at=NOW, quiet=SECOND)
    return ProducerView(row=row, state=state)


def status(*producers: ProducerView, topics: tuple[TopicView, ...] = ()) -> IngestStatus:
    """Give a status."""
    return IngestStatus(now=NOW, producers=producers, topics=topics, producers_cut=False, records=0, quarantined=0)


def test_what_is_behind_is_told_each_time_and_who_is_gone_once() -> None:
    """From 60 s a warning, from 10 min an error; closed ones and those that said nothing yet are silent."""
    log = Log()
    watch = ProducerWatch(None, log)  # type: ignore[arg-type]
    row = TopicRow("g", "t", 3, 1, 2, NOW - LAG_PAGE, "open", NOW, SECOND)
    seen = status(
        producer(1, "open", LAG_ALARM - SECOND),
        producer(2, "open", LAG_ALARM),
        producer(3, "closed", LAG_PAGE),
        producer(4, "open", None),
        producer(5, "silent", LAG_PAGE),
        topics=(TopicView(row=row, state="open"),),
    )
    behind = [("warning", "usage lags", UUID(int=2).hex), ("error", "usage lags", "kafka/g/t/3")]
    gone = ("error", "producer is gone; what it had not sent is missing", UUID(int=5).hex)
    watch.look(seen)
    assert [gone, *behind] == log.lines
    watch.look(seen)
    assert [gone, *behind, *behind] == log.lines
    watch.look(status(producer(5, "open", SECOND)))
    watch.look(status(producer(5, "lost", LAG_PAGE)))
    assert [gone, *behind, *behind, gone] == log.lines


def test_many_at_once_are_all_named_in_time() -> None:
    """A look has a bounded number of lines, the rest is counted; whoever is gone is named by one look, and once."""
    log = Log()
    watch = ProducerWatch(None, log)  # type: ignore[arg-type]
    count = 2 * NAMED_MAX + 5
    gone = status(*(producer(one, "lost", None) for one in range(count)))
    left = []
    for _ in range(4):
        watch.look(gone)
        left += [value for _, what, value in log.lines if what == "more producers are behind or gone"]
        log.lines = [line for line in log.lines if line[1] != "more producers are behind or gone"]
    assert [NAMED_MAX + 5, 5] == left
    assert [UUID(int=one).hex for one in range(count)] == [name for _, _, name in log.lines]


def test_who_is_behind_is_named_beside_many_that_are_gone() -> None:
    """However many are gone, the first look names who is furthest behind; and those gone beside many behind."""
    log = Log()
    watch = ProducerWatch(None, log)  # type: ignore[arg-type]
    many = [producer(one, "lost", None) for one in range(3 * NAMED_MAX)]
    slow = [producer(1_000 + one, "open", LAG_PAGE + one * SECOND) for one in range(3 * NAMED_MAX)]
    watch.look(status(*many, *slow[:2]))
    assert [("error", "usage lags", UUID(int=1_000 + one).hex) for one in (0, 1)] == log.lines[-3:-1]
    assert NAMED_MAX + 1 == len(log.lines)
    log.lines.clear()
    watch.look(status(*many, *slow))
    names = [name for _, _, name in log.lines[:-1]]
    half = NAMED_MAX // 2
    assert [UUID(int=one).hex for one in range(NAMED_MAX - 2, NAMED_MAX - 2 + half)] == names[:half]
    assert [UUID(int=1_000 + 2 * NAMED_MAX + half + one).hex for one in range(half)] == names[half:]
