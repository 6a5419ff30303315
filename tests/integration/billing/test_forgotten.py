# ruff: noqa: SIM300 - expected first, then actual
"""Invoices of pseudonyms whose key is destroyed, and who may see a key."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest
from billing_bench import amounts, catalogue, use
from tollkeeper_ledger.services.invoice_verify import reproduce_invoice, verify_invoice
from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.services.pseudonyms import forget_pseudonyms
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import connection, open_pool, tenant_transaction, transaction
from tollkeeper_ledger.store.pseudonyms import read_keys

if TYPE_CHECKING:
    from uuid import UUID

    from billing_bench import BillingBench
    from tollkeeper_ledger.domain.pseudonyms import PseudonymKey

pytestmark = pytest.mark.asyncio
HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)
USERS = ("ann", "bob", "cleo")
METER = (
    "  - {name: users, unit: users, aggregation: unique, value_attribute: who, attributes: [who], pseudonymise: [who]}"
)


async def key_of(bench: BillingBench, tenant_id: UUID) -> PseudonymKey:
    """Give a tenant's key as Postgres has it."""
    async with connection(bench.ingest_pool) as conn:
        return (await read_keys(conn, [tenant_id]))[tenant_id]


async def forget(bench: BillingBench, tenant_id: UUID) -> int:
    """Destroy a tenant's key as an operator does, with the rights that operators' calls have."""
    admin = await open_pool(bench.url, role="tollkeeper_admin", size=1)
    try:
        async with tenant_transaction(admin, tenant_id) as conn:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with conn.transaction():
                    await conn.fetch("SELECT secret FROM pseudonym_key")
            act = Act(actor="test", request_id="forget", now=await ledger_now(conn))
            return await forget_pseudonyms(conn, tenant_id, note="they asked", act=act)
    finally:
        await admin.close()


async def test_an_invoice_verifies_after_its_key_is_destroyed(bench: BillingBench) -> None:
    """Three users are billed as three; after the key's end every check holds, and records give the same bytes.

    Repeats under the next key are duplicates, also of a record in the same transaction; another user of the same key is
    a conflict.
    """
    text = catalogue(bench.start, "code").replace("plans:\n", f"{METER}\nplans:\n", 1)
    text = text.replace("    prices:\n", '    prices:\n      - {meter: users, unit_price: "2.00"}\n', 1)
    await bench.apply(text)
    (row,) = await bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'code'")
    tenant_id = row["tenant_id"]
    assert 0 == await forget(bench, tenant_id)
    old = await key_of(bench, tenant_id)
    assert (1, 32) == (old.version, len(old.secret))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    sent = [(f"r{at}", bench.start + timedelta(minutes=at), USERS[at % len(USERS)]) for at in range(2 * len(USERS))]
    records = [use(name, at, users=1, attributes=(("who", old.pseudonym("who", who)),)) for name, at, who in sent]
    await bench.send(log, *records, watermark=bench.start + HOUR)
    await bench.run()
    version = await forget(bench, tenant_id)
    new = await key_of(bench, tenant_id)
    assert 1 < version == new.version <= 1_001
    assert old.secret != new.secret
    (row,) = await bench.rows("SELECT invoice_id, document FROM invoice")
    assert 600 == sum(amount for name, amount in amounts(json.loads(row["document"])).items() if "users" in name)
    async with transaction(bench.billing) as conn:
        assert [] == [check for check in await verify_invoice(conn, row["invoice_id"]) if not check.ok]
        assert row["document"] == (await reproduce_invoice(conn, row["invoice_id"], from_records=True)).document
    again = [use(name, at, users=1, attributes=(("who", new.pseudonym("who", who)),)) for name, at, who in sent[:2]]
    at = bench.start + HOUR
    both = [use("both", at, users=1, attributes=(("who", key.pseudonym("who", "ann")),)) for key in (new, old)]
    other = use("both", at, users=1, attributes=(("who", new.pseudonym("who", "bob")),))
    log.record(*again, *both, other)
    outcome = await bench.ingest.append(log.cut(bench.logs[log.producer_id]))
    assert (1, 3, 1) == (outcome.stored, outcome.duplicates, outcome.conflicts)


async def test_a_restored_ledgers_next_key_has_another_version(bench: BillingBench) -> None:
    """Set back and destroyed again, a key is not taken for the one that was lost: versions rise by a random step.

    The audit log says which one was destroyed and which one follows.
    """
    await bench.apply(catalogue(bench.start, "code").replace("plans:\n", f"{METER}\nplans:\n", 1))
    (row,) = await bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'code'")
    before = await key_of(bench, row["tenant_id"])
    versions = []
    for _ in range(20):
        versions.append(await forget(bench, row["tenant_id"]))
        async with connection(bench.ingest_pool) as conn:
            made_again = await read_keys(conn, [row["tenant_id"]])
        assert versions[-1] == made_again[row["tenant_id"]].version
        await bench.rows(
            "UPDATE pseudonym_key SET version = $2, secret = $3 WHERE tenant_id = $1",
            row["tenant_id"], before.version, before.secret,
        )  # fmt: skip
    assert len(set(versions)) > 1
    assert min(versions) > before.version
    acts = await bench.rows("SELECT before, after FROM audit_log WHERE subject = 'pseudonyms' ORDER BY audit_id")
    told = [(json.loads(act["before"])["version"], json.loads(act["after"])["version"]) for act in acts]
    assert [(before.version, version) for version in versions] == told
