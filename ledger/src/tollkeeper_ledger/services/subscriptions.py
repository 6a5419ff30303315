"""Read subscriptions with their running periods."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.features import features_of
from tollkeeper_ledger.domain.periods import period_at
from tollkeeper_ledger.domain.phases import CANCELLED
from tollkeeper_ledger.domain.rating.plan_bytes import plan_of
from tollkeeper_ledger.services.subscription_dates import read_scheduled
from tollkeeper_ledger.store.billing_segments import schedule_from
from tollkeeper_ledger.store.catalogue import read_subscriptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from tollkeeper_ledger.domain.features import FeatureValue
    from tollkeeper_ledger.domain.periods import Period, Schedule
    from tollkeeper_ledger.services.subscription_dates import Scheduled
    from tollkeeper_ledger.store.pool import Connection

FIRST = ("", str(uuid.UUID(int=0)))
"""Key before every subscription."""


@dataclass(frozen=True, slots=True)
class SubscriptionView:
    """A subscription as operators see it."""

    subscription_id: str
    tenant: str
    plan: str
    plan_version: int
    state: str
    started_at: datetime
    running: Period | None
    """None before its start."""
    quantity: int
    """Seats."""
    ends_at: datetime | None
    counted: Schedule
    """What its periods are counted by now."""
    features: Mapping[str, FeatureValue]
    """What the tenant may do now, also while that is paused; nothing once it is over."""
    scheduled: Sequence[Scheduled] = ()
    """What is to change, in order of time."""


async def list_subscriptions(
    conn: Connection,
    *,
    after: tuple[str, str],
    count_max: int,
    only: str | None,
    now: datetime,
    state: str | None = None,
) -> list[SubscriptionView]:
    """List subscriptions in order of wire id; `only` keeps to one tenant, `state` to one state.

    Raises ValueError for a malformed key.
    """
    key = (after[0], uuid.UUID(after[1]))
    rows = await read_subscriptions(conn, after=key, count_max=count_max, only=only, state=state)
    scheduled = await read_scheduled(conn, [row["subscription_id"] for row in rows])
    return [
        SubscriptionView(
            subscription_id=str(row["subscription_id"]),
            tenant=row["wire_id"],
            plan=row["plan"],
            plan_version=row["version"],
            state=row["state"],
            started_at=row["started_at"],
            running=period_at(counted, now),
            quantity=row["quantity"],
            ends_at=row["ends_at"],
            counted=counted,
            features={} if row["state"] == CANCELLED else features_of(plan_of(row["definition"]), row["features"]),
            scheduled=scheduled.get(row["subscription_id"], ()),
        )
        for row in rows
        for counted in [schedule_from(row, started_at=row["period_from"])]
    ]
