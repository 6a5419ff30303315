"""Changes of subscriptions that are to come: list them, and take one back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.scheduled import FIELD, without
from tollkeeper_ledger.services import trials
from tollkeeper_ledger.services.subscription_changes import announce, drop_idle, live_subscription
from tollkeeper_ledger.store import subscriptions as store
from tollkeeper_ledger.store.billing_segments import has_segments_from
from tollkeeper_ledger.store.tenant_locks import lock_tenant

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class Scheduled:
    """What a subscription will be from a time on."""

    at: datetime
    plan: str
    plan_version: int
    quantity: int
    state: str
    anchor: str
    """Wall clock time that periods are counted from, empty = as before; so are the two below."""
    time_zone: str
    interval: str


async def read_scheduled(conn: Connection, subscription_ids: Sequence[UUID]) -> dict[UUID, list[Scheduled]]:
    """Read what is to come of subscriptions, in order of time, up to their ends."""
    found: dict[UUID, list[Scheduled]] = {}
    for row in await store.read_scheduled(conn, subscription_ids):
        is_counted_anew = row["anchor"] is not None
        one = Scheduled(
            at=row["starts_at"],
            plan=row["plan"],
            plan_version=row["version"],
            quantity=row["quantity"],
            state=row["state"],
            anchor=row["anchor"].isoformat() if is_counted_anew else "",
            time_zone=row["time_zone"] or "",
            interval=f"{row['interval_count']} {row['interval_unit']}" if is_counted_anew else "",
        )
        of_it = found.setdefault(row["subscription_id"], [])
        if not of_it or of_it[-1].state != "cancelled":
            of_it.append(one)
    return found


async def take_back(conn: Connection, tenant_id: UUID, instant: datetime, *, act: Act) -> None:
    """Let a subscription go on as before at an instant for which a change is scheduled.

    All that was to change then is taken back, but a trial's end stays. Raises UnknownNameError: no running
    subscription; InvalidFieldError: nothing is scheduled for then, or something counts on it; what was used then is
    recorded already.
    """
    await lock_tenant(conn, tenant_id)
    await trials.lift(conn, tenant_id, now=act.now)
    schedule = await live_subscription(conn, tenant_id, now=act.now)
    changed = without(schedule, instant, now=act.now)
    if await has_segments_from(conn, tenant_id, schedule.subscription_id, instant):
        # A producer's clock may be ahead: what it recorded is stamped with what was to be in force.
        raise InvalidFieldError(
            FIELD, "has usage recorded already", value=instant.isoformat(), remedy="change it once it is in force"
        )
    await store.drop_eras(conn, schedule, [era for era in schedule.eras if era.started_at == instant])
    for phase in changed:
        await store.put_phase(conn, schedule, phase, applied=False)
    after = await drop_idle(conn, schedule, now=act.now)
    if schedule.started_at <= act.now:
        # A catalogue's move gives limits at once, prices later: they go back together.
        await store.follow_phase(conn, after, after.phase_at(act.now), after.era_at(act.now), now=act.now)
    before = {"scheduled": instant.isoformat()}
    await announce(conn, tenant_id, "UnscheduleSubscription", act, before=before, after={"scheduled": None})
