# ruff: noqa: SIM300 - expected first, then actual
"""What a closed period was billed for is held against the raw records by the audit of everything."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from billing_bench import catalogue, superuser, use
from tollkeeper_ledger.domain.usage_audit import Checked, Finding
from tollkeeper_ledger.services.usage_audit import verify_usage
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from billing_bench import BillingBench

pytestmark = pytest.mark.asyncio
HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)


async def audit(bench: BillingBench) -> tuple[list[Finding], Checked]:
    """Give what the audit finds, and how much it checked."""
    findings, checked = [], Checked()
    async with transaction(bench.billing) as conn:
        async for found in verify_usage(conn):
            if isinstance(found, Finding):
                findings.append(found)
            else:
                checked = found
    return findings, checked


async def test_the_audit_sums_every_closed_period_again(bench: BillingBench) -> None:
    """All is well with late usage in a later period; an input that was changed behind the ledger's back is named."""
    await bench.apply(catalogue(bench.start, "code", "chat"))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    for tenant in ("code", "chat"):
        await bench.send(log, use(f"{tenant}-1", bench.start, tenant=tenant, context_tokens=700), watermark=bench.start)
    await bench.send(log, use("code-2", bench.start, generated_tokens=40), watermark=bench.start + HOUR)
    await bench.run()
    await bench.set_now(bench.start + 2 * (HOUR + GRACE))
    late = use("code-late", bench.start + GRACE, context_tokens=11)
    await bench.send(log, late, watermark=bench.start + 2 * HOUR)
    await bench.run()
    closes = await bench.rows("SELECT inputs FROM billing_close")
    assert ([], len(closes)) == ((await audit(bench))[0], (await audit(bench))[1].periods)
    assert len(closes) >= 4
    for old, new, problem in (
        ('"units":700', '"units":701', "billed 701, the records sum to 700"),
        ('"units":701', "", "its inputs can't be read: JSONDecodeError("),
    ):
        async with superuser(bench.url) as conn:
            await conn.execute("SET session_replication_role = replica")
            changed = await conn.execute(
                """
                UPDATE billing_close c SET inputs = convert_to(replace(convert_from(inputs, 'UTF8'), $2, $3), 'UTF8')
                FROM tenant t
                WHERE t.tenant_id = c.tenant_id AND t.wire_id = 'chat' AND c.period_start = $1""",
                bench.start,
                old,
                new,
            )
        assert "UPDATE 1" == changed
        (finding,), _ = await audit(bench)
        assert ("billing_close", f"tenant chat, period from {bench.start.isoformat()}") == (finding.table, finding.row)
        assert problem in finding.problem
