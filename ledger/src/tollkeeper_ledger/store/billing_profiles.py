"""How payers are billed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.billing_profile import BillingProfile, taxes_from_json, taxes_to_json
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection, Row


async def read_profile(conn: Connection, payer_id: UUID) -> BillingProfile:
    """Read a payer's profile; the defaults where none was set."""
    return (await read_profiles(conn, [payer_id]))[payer_id]


async def read_profiles(conn: Connection, payer_ids: Collection[UUID]) -> dict[UUID, BillingProfile]:
    """Read payers' profiles; the defaults where none was set."""
    found = {row["tenant_id"]: _profile(row) for row in await conn.fetch(sql("money.profiles"), list(payer_ids))}
    default = BillingProfile()
    return {payer_id: found.get(payer_id, default) for payer_id in payer_ids}


def _profile(row: Row) -> BillingProfile:
    return BillingProfile(
        email=row["email"],
        locale=row["locale"],
        paper=row["paper"],
        provider=row["provider"],
        due_days=row["due_days"],
        taxes=taxes_from_json(row["taxes"]),
        tax_mode=row["tax_mode"],
        review=row["review"],
        dunning_days=tuple(row["dunning_days"]),
        dunning_policy=row["dunning_policy"],
        fallback_plan=row["fallback_plan"],
        pays_by=row["pays_by"],
    )


async def put_profile(conn: Connection, payer_id: UUID, profile: BillingProfile, *, now: datetime) -> None:
    """Set a payer's profile as a whole."""
    await conn.execute(
        sql("money.put_profile"),
        payer_id,
        profile.email,
        profile.locale,
        profile.paper,
        profile.provider,
        profile.due_days,
        taxes_to_json(profile.taxes),
        profile.tax_mode,
        profile.review,
        list(profile.dunning_days),
        profile.dunning_policy,
        profile.fallback_plan,
        profile.pays_by,
        now,
    )
