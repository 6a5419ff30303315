"""Hold the ledger's invoices against the provider's, in both directions, and name every difference."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.payments.stripe_http import UnreadableError
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.provider_jobs import read_collected
from tollkeeper_ledger.store.reconciliations import begin_reconciliation, end_reconciliation, read_known_invoices

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.payments.stripe_http import StripeHttp
    from tollkeeper_ledger.store.pool import Pool, Row

PROVIDER = "stripe"
_NEVER = datetime(9999, 1, 1, tzinfo=UTC)
_CLOCKS_APART_S = 86_400
_SPAN = timedelta(days=40)
_ON_ITS_WAY = timedelta(hours=3)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that the two sides disagree on."""

    invoice: str
    """The invoice's number, or the provider's id where the ledger has none."""
    problem: str


async def reconcile(
    pool: Pool, stripe: StripeHttp, *, since: datetime, before: datetime = _NEVER
) -> tuple[int, list[Difference]]:
    """Compare every invoice finalised in a span; give how many, and every difference. Changes nothing.

    Raises UnreadableError: the provider can't be read now.
    """
    async with transaction(pool) as conn:
        rows = await read_collected(conn, provider=PROVIDER, since=since, before=before)
    ours = {str(row["invoice_id"]): row for row in rows}
    theirs: dict[str, list[dict[str, Any]]] = {}
    # The provider's clock may be behind: what it made a day before is read as well.
    async for said in stripe.each("/v1/invoices", created_gte=max(0, int(since.timestamp()) - _CLOCKS_APART_S)):
        mark = (said.get("metadata") or {}).get("tollkeeper_invoice")
        if mark:
            theirs.setdefault(mark, []).append(said)
    found: list[Difference] = []
    for invoice_id, row in ours.items():
        found.extend(_differences(row, theirs.get(invoice_id, [])))
    async with transaction(pool) as conn:
        known = await read_known_invoices(conn, theirs.keys() - ours.keys())
    for mark, strangers in theirs.items():
        if mark not in ours and mark not in known:
            found.extend(Difference(one["id"], "the ledger has no such invoice") for one in strangers)
    return len(ours), found


@dataclass(frozen=True, slots=True)
class Nightly:
    """Compares with the provider once a night, keeps what it found, and says so loudly."""

    pool: Pool
    stripe: StripeHttp
    now: Callable[[], datetime]
    """Real time."""
    log: FilteringBoundLogger

    async def reconcile(self) -> bool:
        """Compare the last weeks' invoices; False where that was done within the day, by whomever.

        What was finalised within the last hours may still be on its way and is left to the next night. A provider that
        can't be read is kept as a comparison that failed; the next call tries again.
        """
        at = self.now()
        since, compared, found, problem = at - _SPAN, 0, list[Difference](), ""
        async with transaction(self.pool) as conn:
            begun = await begin_reconciliation(conn, PROVIDER, at=at, since=since)
        if begun is None:
            return False
        try:
            compared, found = await reconcile(self.pool, self.stripe, since=since, before=at - _ON_ITS_WAY)
        except UnreadableError as error:
            problem = str(error)
        told = [{"invoice": one.invoice, "problem": one.problem} for one in found]
        async with transaction(self.pool) as conn:
            await end_reconciliation(conn, begun, compared=compared, differences=told, problem=problem)
        for one in found:
            self.log.error("provider disagrees", invoice=one.invoice, problem=one.problem)
        if problem:
            self.log.error("provider not compared", problem=problem)
        return True


def _differences(row: Row, said: list[dict[str, Any]]) -> list[Difference]:
    number = row["number"]
    living = [one for one in said if one.get("status") != "void"]
    if len(living) > 1:
        return [Difference(number, f"{len(living)} invoices at the provider: {', '.join(one['id'] for one in living)}")]
    if row["state"] == "void":
        return [Difference(number, f"void here, {one['status']} at the provider") for one in living]
    if not living:
        return [Difference(number, f"not at the provider; its job is {row['job_state']} at {row['step']}")]
    return [Difference(number, problem) for problem in _problems(row, living[0])]


def _problems(row: Row, one: dict[str, Any]) -> list[str]:
    """Say what an invoice of the ledger's is otherwise at the provider."""
    problems = []
    if row["object_id"] != one["id"]:
        problems.append(f"known here as {row['object_id']}, at the provider as {one['id']}")
    if one["total"] != row["amount_minor"]:
        problems.append(f"{row['amount_minor']} here, {one['total']} at the provider")
    paid = 0 if one.get("paid_out_of_band") else int(one.get("amount_paid") or 0)
    if paid != row["paid_minor"]:
        problems.append(f"{row['paid_minor']} paid here, {paid} at the provider")
    elif one["status"] == "paid" and row["due_minor"] and not row["is_lost"]:
        # Less than it charges, or out of a balance that the payer has there. A lost dispute took its payment back.
        problems.append(f"paid at the provider without a payment, {row['due_minor']} due here")
    if one["status"] == "open" and row["due_minor"] == 0:
        problems.append(f"{row['state']} here, open at the provider")
    if one["status"] == "draft":
        problems.append("still a draft at the provider")
    if one["status"] not in ("draft", "open", "paid", row["state"]):
        problems.append(f"{row['state']} here, {one['status']} at the provider")
    return problems
