"""Decide, record by record, what of a batch is stored and what goes to quarantine. Pure."""

from __future__ import annotations

import json
from functools import reduce
from itertools import accumulate
from typing import TYPE_CHECKING
from uuid import UUID

from tollkeeper_ledger.domain.usage import FLAG_VOID, WIDEST, Problem, TimeSpan, Verdict
from tollkeeper_ledger.domain.usage_rules import time_problem, times_fit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tollkeeper_ledger.domain.usage_batch import UsageBatch
    from tollkeeper_ledger.domain.usage_rollup import MeterFacts

NOBODY = UUID(int=0)
"""Stands for the tenant of a record whose tenant is unknown."""

_TENANT_UNKNOWN = Problem("TENANT_UNKNOWN", "tenant")
_METER_UNKNOWN = Problem("METER_UNKNOWN", "quantities.meter")


def judge(
    batch: UsageBatch,
    *,
    skip: int,
    tenant_ids: Mapping[str, UUID],
    meters: Mapping[str, MeterFacts],
    now_us: int,
) -> dict[int, Problem]:
    """Give the first problem of each record from `skip` on that has one. One tenant's problem is no other's.

    Of a record's meters the one that allows the least decides how late and how early it may be.
    """
    records = batch.records
    problems = {place: problem for place, problem in batch.problems.items() if place >= skip}
    strangers = {at for at, tenant in enumerate(batch.tenants) if tenant not in tenant_ids}
    known = [meter in meters for meter in batch.meters]
    unknown = {at for at, shape in enumerate(batch.shapes) if not all(known[meter] for meter in shape)}
    allowed = [meters[meter].span if meter in meters else WIDEST for meter in batch.meters]
    least = reduce(TimeSpan.and_of, allowed, WIDEST)
    shipping_max_us = batch.source.shipping_max_us
    fit = skip >= len(records) or times_fit(
        records.event_us[skip:], records.received_us[skip:], now_us, least, shipping_max_us=shipping_max_us
    )
    if fit and not strangers and not unknown:
        return problems
    spans = [reduce(TimeSpan.and_of, [allowed[meter] for meter in shape], WIDEST) for shape in batch.shapes]
    for place in range(skip, len(records)):
        if place in problems:
            continue
        if records.tenant[place] in strangers:
            problems[place] = _TENANT_UNKNOWN
        elif records.shape[place] in unknown:
            problems[place] = _METER_UNKNOWN
        elif records.flags[place] & FLAG_VOID:
            # As old as what it takes back, which the ledger holds.
            continue
        else:
            problem = time_problem(
                records.event_us[place],
                records.received_us[place],
                now_us,
                spans[records.shape[place]],
                shipping_max_us=shipping_max_us,
            )
            if problem:
                problems[place] = problem
    return problems


def verdicts_of(batch: UsageBatch, refused: Mapping[int, Problem], taken: Mapping[int, bool]) -> list[Verdict]:
    """Give what is to be said of records by their places: refused ones, and those whose id their like has."""
    said: dict[int, Problem | None] = {place: None for place, same in taken.items() if same}
    return [Verdict(batch.records.seqs[place], problem) for place, problem in sorted({**said, **refused}.items())]


def describe_records(batch: UsageBatch, places: Iterable[int]) -> dict[int, bytes]:
    """Give records as canonical JSON in UTF-8, exactly as they came, whatever they hold. `tenant` stands last."""
    columns = batch.source.columns
    records = batch.records
    ends = list(accumulate(columns.attribute_count))
    described = {}
    for place in places:
        attributes = slice(ends[place] - columns.attribute_count[place], ends[place])
        content: dict[str, object] = {
            "attributes": [
                [columns.attribute_names[name], columns.attribute_values[value]]
                for name, value in zip(
                    columns.attribute_name[attributes], columns.attribute_value[attributes], strict=True
                )
            ],
            "event_time_us": records.event_us[place],
            "flags": records.flags[place],
            "id": records.ids[place],
            "quantities": [
                [batch.meters[meter], units]
                for meter, units in zip(batch.shapes[records.shape[place]], records.units[place], strict=True)
            ],
            "received_us": records.received_us[place],
            "tenant": batch.tenants[records.tenant[place]],
        }
        if home := records.home[place]:
            content["home"] = columns.homes[home - 1].hex()
        if place in batch.levels:
            content["levels"] = [
                [
                    *(change.level.tenant, change.level.limit, change.level.key_hash.hex()),
                    *(change.holder.hex(), change.units, change.over),
                ]
                for change in batch.levels[place]
            ]
        described[place] = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    return described
