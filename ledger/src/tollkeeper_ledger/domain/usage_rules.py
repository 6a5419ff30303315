"""What makes a single record unfit to store, whatever the tables say. It goes to quarantine and holds nobody up."""

from __future__ import annotations

import re
from itertools import repeat
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain import usage
from tollkeeper_ledger.domain.usage import WIDEST, Problem, TimeSpan, UsageColumns

if TYPE_CHECKING:
    from collections.abc import Sequence

_TENANT = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")


def find_problems(columns: UsageColumns, *, own: bool = False) -> dict[int, Problem]:
    """Give the first problem of each record that has one. A batch without problems costs a few passes in C.

    `own`: the ledger made them itself, so they may void others.
    """
    if not columns.ids or not _suspicious(columns):
        return {}
    bad_tenants = {at for at, tenant in enumerate(columns.tenants) if not _TENANT.match(tenant)}
    bad_names = {at for at, name in enumerate(columns.attribute_names) if not _fits(name)}
    bad_values = {at for at, value in enumerate(columns.attribute_values) if not _fits(value, empty=True)}
    problems: dict[int, Problem] = {}
    quantity_at = attribute_at = 0
    for record in range(len(columns.ids)):
        quantities = slice(quantity_at, quantity_at := quantity_at + columns.quantity_count[record])
        attributes = slice(attribute_at, attribute_at := attribute_at + columns.attribute_count[record])
        problem = (
            (Problem("FIELD_INVALID", "tenant") if columns.tenant[record] in bad_tenants else None)
            or _id_problem(columns.ids[record], own=own)
            or _flag_problem(columns.flags[record], own=own)
            or _quantity_problem(columns.meter[quantities], columns.units[quantities], columns.meters)
            or _attribute_problem(
                columns.attribute_name[attributes],
                columns.attribute_value[attributes],
                columns.attribute_names,
                bad_names,
                bad_values,
            )
        )
        if problem is not None:
            problems[record] = problem
    return problems


def time_problem(
    event_us: int,
    received_us: int,
    now_us: int,
    span: TimeSpan = WIDEST,
    *,
    shipping_max_us: int = usage.SHIPPING_MAX_US,
) -> Problem | None:
    """Say what is wrong with a record's times. Lateness is judged at receive time, so an outage makes nothing late."""
    if now_us - received_us > shipping_max_us:
        return Problem("DEDUP_EXPIRED", "received_us")
    if received_us - now_us > usage.CLOCK_AHEAD_MAX_US:
        return Problem("FIELD_OUT_OF_RANGE", "received_us")
    if received_us - event_us > span.late_us:
        return Problem("TOO_LATE", "event_time_us")
    if event_us - received_us > span.early_us:
        return Problem("TOO_EARLY", "event_time_us")
    return None


def times_fit(
    event_us: Sequence[int],
    received_us: Sequence[int],
    now_us: int,
    span: TimeSpan = WIDEST,
    *,
    shipping_max_us: int = usage.SHIPPING_MAX_US,
) -> bool:
    """Say whether no record has a problem with its times: one pass over a whole batch."""
    lags = [received - event for event, received in zip(event_us, received_us, strict=True)]
    return (
        now_us - min(received_us) <= shipping_max_us
        and max(received_us) - now_us <= usage.CLOCK_AHEAD_MAX_US
        and max(lags) <= span.late_us
        and -min(lags) <= span.early_us
    )


def _suspicious(columns: UsageColumns) -> bool:
    # Everything that the slow pass refuses must be found here; a false alarm costs only time.
    counts = columns.quantity_count
    dictionaries = (columns.attribute_names, columns.attribute_values)
    return (
        min(counts) < 1
        or max(counts) > usage.QUANTITIES_MAX
        or max(columns.attribute_count) > usage.ATTRIBUTES_MAX
        or min(columns.units) < 0
        or max(columns.units) > usage.UNITS_MAX
        or max(columns.flags) > usage.FLAGS_KNOWN
        or not all(map(_TENANT.match, columns.tenants))
        or min(map(len, columns.ids)) < 1
        or max(map(len, columns.ids)) > usage.ID_BYTES_MAX
        or not (text := "".join(columns.ids)).isascii()
        or "\0" in text
        or any(map(str.startswith, columns.ids, repeat(usage.VOID_PREFIX)))
        or any(not _fits(name) for name in dictionaries[0])
        or any(not _fits(value, empty=True) for value in dictionaries[1])
        or _may_repeat(counts, columns.meter, columns.meters)
        or _may_repeat(columns.attribute_count, columns.attribute_name, columns.attribute_names)
    )


def _may_repeat(counts: Sequence[int], values: Sequence[int], dictionary: Sequence[str]) -> bool:
    """Say whether some record may name a thing twice."""
    if max(counts) <= 1:
        return False
    if len(set(dictionary)) != len(dictionary):
        return True
    first = counts[0]
    if min(counts) == max(counts):
        # Alike in every record, the usual case: compare columns of equal place.
        places = [values[place::first] for place in range(first)]
        return any(any(map(int.__eq__, places[one], places[other])) for one in range(first) for other in range(one))
    return True


def text_problem(text: str, field: str, *, most: int = usage.NAME_BYTES_MAX, empty: bool = False) -> Problem | None:
    """Say what is wrong with a text of at most so many bytes of UTF-8: it is missing, too long, or has a zero byte."""
    if text == "" and not empty:
        return Problem("FIELD_REQUIRED", field)
    if len(text.encode()) > most:
        return Problem("FIELD_TOO_LONG", field)
    return Problem("FIELD_INVALID", field) if "\0" in text else None


def _fits(text: str, *, empty: bool = False) -> bool:
    return text_problem(text, "", empty=empty) is None


def _id_problem(text: str, *, own: bool) -> Problem | None:
    problem = text_problem(text, "id", most=usage.ID_BYTES_MAX)
    if problem is None and text.startswith(usage.VOID_PREFIX) and not own:
        return Problem("FIELD_INVALID", "id")
    return problem


def _flag_problem(flags: int, *, own: bool) -> Problem | None:
    known = usage.FLAGS_KNOWN | (usage.FLAG_VOID if own else 0)
    return Problem("ENUM_UNKNOWN", "flags") if flags & ~known else None


def _quantity_problem(meters: Sequence[int], units: Sequence[int], names: Sequence[str]) -> Problem | None:
    if not meters:
        return Problem("FIELD_REQUIRED", "quantities")
    if len(meters) > usage.QUANTITIES_MAX:
        return Problem("FIELD_TOO_LONG", "quantities")
    if len({names[meter] for meter in meters}) != len(meters):
        return Problem("FIELD_REPEATED", "quantities.meter")
    if not all(0 <= amount <= usage.UNITS_MAX for amount in units):
        return Problem("FIELD_OUT_OF_RANGE", "quantities.units")
    return None


def _attribute_problem(
    names: Sequence[int], values: Sequence[int], dictionary: Sequence[str], bad_names: set[int], bad_values: set[int]
) -> Problem | None:
    if len(names) > usage.ATTRIBUTES_MAX:
        return Problem("FIELD_TOO_LONG", "attributes")
    if len({dictionary[name] for name in names}) != len(names):
        return Problem("FIELD_REPEATED", "attributes.name")
    if not bad_names.isdisjoint(names):
        return Problem("FIELD_INVALID", "attributes.name")
    if not bad_values.isdisjoint(values):
        return Problem("FIELD_INVALID", "attributes.value")
    return None
