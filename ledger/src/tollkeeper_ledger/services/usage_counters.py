"""Turn readings of counters that only grow into usage, in the transaction that stores it, so each amount is once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.metric_series import Standing, count, units_of
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.store.metric_series import keep_readings, last_readings, taken_ids
from tollkeeper_ledger.store.usage_batches import find_tenants

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime
    from decimal import Decimal

    from tollkeeper_ledger.domain.metric_series import Reading
    from tollkeeper_ledger.domain.usage_columns import Use
    from tollkeeper_ledger.store.pool import Connection


@dataclass(slots=True)
class Counting:
    """What becomes of uses before they are appended."""

    fit: list[int] = field(default_factory=list)
    """Places of those that are appended."""
    uses: list[Use] = field(default_factory=list)
    """These, with what their readings add."""
    again: set[int] = field(default_factory=set)
    """Places of readings that were counted before."""
    idle: list[int] = field(default_factory=list)
    """Places of new readings that add nothing: kept, but no record."""
    other: set[int] = field(default_factory=set)
    """Places of readings that say another total than what was counted at their time."""
    refused: dict[int, InvalidFieldError] = field(default_factory=dict)


def rounds_of(uses: Sequence[Use]) -> list[list[int]]:
    """Give places of uses in rounds of one reading of a series each, in the order of their times.

    What a reading adds depends on whether the one before it was stored.
    """
    order = sorted(range(len(uses)), key=lambda at: _time_of(uses[at]))
    rounds: list[list[int]] = []
    seen: dict[bytes, int] = {}
    for at in order:
        reading = uses[at].reading
        turn = 0 if reading is None else seen.get(reading.series, 0)
        if reading is not None:
            seen[reading.series] = turn + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(at)
    return [sorted(places) for places in rounds]


def _time_of(use: Use) -> tuple[int, int]:
    return (0, 0) if use.reading is None else (use.reading.start_ns, use.reading.time_ns)


async def count_readings(conn: Connection, uses: Sequence[Use], *, now: datetime) -> Counting:
    """Say what each reading adds; uses without one stay as they are. One reading of a series at most.

    The transaction holds the lock of their way in: nobody else counts these series.
    """
    last = await last_readings(conn, [use.reading.series for use in uses if use.reading is not None])
    counting = Counting()
    behind: list[int] = []
    for at, use in enumerate(uses):
        if use.reading is None:
            counting.fit.append(at)
            counting.uses.append(use)
            continue
        counted = count(last.get(use.reading.series), use.reading, now_us=to_us(now))
        if counted.standing is Standing.AGAIN:
            counting.again.add(at)
        elif counted.standing is Standing.OTHER:
            counting.other.add(at)
        elif counted.standing is Standing.BEHIND:
            behind.append(at)
        else:
            _add(counting, at, use, use.reading, counted.amount)
    if behind:
        known = await _known(conn, [uses[at] for at in behind])
        for at in behind:
            if (uses[at].tenant, uses[at].id) in known:
                counting.again.add(at)
            else:
                counting.refused[at] = _behind(uses[at])
    return counting


def _add(counting: Counting, at: int, use: Use, reading: Reading, amount: Decimal) -> None:
    ((meter, _),) = use.quantities
    try:
        units = units_of(amount, reading.scale)
    except InvalidFieldError as error:
        # The next reading tells it again: nothing was counted.
        counting.refused[at] = error
        return
    if not units:
        counting.idle.append(at)
        return
    counting.fit.append(at)
    counting.uses.append(replace(use, quantities=((meter, units),)))


async def _known(conn: Connection, uses: Sequence[Use]) -> Collection[tuple[str, str]]:
    tenants = await find_tenants(conn, {use.tenant for use in uses})
    pairs = {(tenants[use.tenant], use.id): (use.tenant, use.id) for use in uses if use.tenant in tenants}
    return {pairs[pair] for pair in await taken_ids(conn, list(pairs))}


def _behind(use: Use) -> InvalidFieldError:
    return InvalidFieldError(
        "time_unix_nano",
        "is before the last reading of its series",
        reason="FIELD_OUT_OF_RANGE",
        value=f"{use.event_us} us",
        bound="in order of time; what it counts is counted with the later one, unless the counter began anew",
        remedy="give each process its own service.instance.id, and send in order",
    )


async def keep_counted(conn: Connection, counted: Sequence[Use], *, now: datetime) -> None:
    """Keep the readings that were counted; what the others tell the next reading tells again."""
    readings = [use.reading for use in counted if use.reading is not None]
    if readings:
        await keep_readings(conn, readings, now=now)
