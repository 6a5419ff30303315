"""Hold the ledger's invoices against the provider's, in both directions, and name every difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.provider_jobs import read_collected

if TYPE_CHECKING:
    from datetime import datetime

    from tollkeeper_ledger.payments.stripe_http import StripeHttp
    from tollkeeper_ledger.store.pool import Pool, Row

PROVIDER = "stripe"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that the two sides disagree on."""

    invoice: str
    """The invoice's number, or the provider's id where the ledger has none."""
    problem: str


async def reconcile(pool: Pool, stripe: StripeHttp, *, since: datetime) -> tuple[int, list[Difference]]:
    """Compare every invoice finalised since then; give how many, and every difference. Changes nothing.

    Raises UnreadableError: the provider can't be read now.
    """
    async with transaction(pool) as conn:
        ours = {str(row["invoice_id"]): row for row in await read_collected(conn, provider=PROVIDER, since=since)}
    theirs: dict[str, list[dict[str, Any]]] = {}
    async for said in stripe.each("/v1/invoices", created_gte=max(0, int(since.timestamp()))):
        mark = (said.get("metadata") or {}).get("tollkeeper_invoice")
        if mark:
            theirs.setdefault(mark, []).append(said)
    found: list[Difference] = []
    for invoice_id, row in ours.items():
        found.extend(_differences(row, theirs.get(invoice_id, [])))
    for mark, strangers in theirs.items():
        if mark not in ours:
            found.extend(Difference(one["id"], "the ledger has no such invoice in this span") for one in strangers)
    return len(ours), found


def _differences(row: Row, said: list[dict[str, Any]]) -> list[Difference]:
    number = row["number"]
    living = [one for one in said if one.get("status") != "void"]
    if len(living) > 1:
        return [Difference(number, f"{len(living)} invoices at the provider: {', '.join(one['id'] for one in living)}")]
    if row["state"] == "void":
        return [Difference(number, f"void here, {one['status']} at the provider") for one in living]
    if not living:
        return [Difference(number, f"not at the provider; its job is {row['job_state']} at {row['step']}")]
    one = living[0]
    problems = []
    if row["object_id"] != one["id"]:
        problems.append(f"known here as {row['object_id']}, at the provider as {one['id']}")
    if one["total"] != row["amount_minor"]:
        problems.append(f"{row['amount_minor']} here, {one['total']} at the provider")
    paid = 0 if one.get("paid_out_of_band") else int(one.get("amount_paid") or 0)
    if paid != row["paid_minor"]:
        problems.append(f"{row['paid_minor']} paid here, {paid} at the provider")
    if one["status"] == "open" and row["due_minor"] == 0:
        problems.append(f"{row['state']} here, open at the provider")
    if one["status"] == "draft":
        problems.append("still a draft at the provider")
    return [Difference(number, problem) for problem in problems]
