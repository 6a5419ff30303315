# ruff: noqa: SIM300 - expected first, then actual
"""What limits denied is stored as sidecars tell it: each batch once, in whatever order and however often it comes."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc.aio
import pytest
from rpc_support import error_info
from tollkeeper.ledger.v1 import decisions_pb2, limits_pb2_grpc, reports_pb2_grpc
from tollkeeper.quota.v1 import decision_pb2
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.pool import tenant_transaction, transaction

if TYPE_CHECKING:
    from limits_support import Serving

pytestmark = pytest.mark.asyncio
EXHAUSTED = decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED
SOFT = decision_pb2.DECISION_REASON_SOFT_LIMIT_EXCEEDED


class Teller:
    """A sidecar that tells what limits of names of this test's own decided."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.holder = secrets.token_bytes(16)
        self.limit = f"limit-{secrets.token_hex(4)}"

    def count(self, count: int, reason: Any = EXHAUSTED, **fields: Any) -> decisions_pb2.DecisionCount:
        """Give a count."""
        return decisions_pb2.DecisionCount(**{
            "tenant": "acme", "limit": self.limit, "reason": reason, "count": count, **fields
        })  # fmt: skip

    def entry(self, units: int, **fields: Any) -> decisions_pb2.DecisionEntry:
        """Give an entry; its units tell it apart."""
        return decisions_pb2.DecisionEntry(**{
            "tenant": "acme", "limit": self.limit, "reason": EXHAUSTED, "at_us": 1_700_000_000_000_000,
            "caller": "acme", "units": units, "amount": 100, "used": 98, "attributes": {"user": "u\u00a0v"}, **fields,
        })  # fmt: skip

    async def tell(self, batch_seq: int, *told: Any, holder: bytes = b"") -> decisions_pb2.ReportDecisionsResponse:
        """Send one batch."""
        request = decisions_pb2.ReportDecisionsRequest(
            holder=holder or self.holder,
            batch_seq=batch_seq,
            counts=[one for one in told if isinstance(one, decisions_pb2.DecisionCount)],
            entries=[one for one in told if isinstance(one, decisions_pb2.DecisionEntry)],
        )
        stub: Any = limits_pb2_grpc.LimitServiceStub(self.serving.channel)
        answer: decisions_pb2.ReportDecisionsResponse = await stub.ReportDecisions(request)
        return answer

    async def sums(self, **fields: Any) -> list[tuple[str, int, int]]:
        """Give reason, count and what was left out of the limit, page by page."""
        stub: Any = reports_pb2_grpc.ReportServiceStub(self.serving.channel)
        request = decisions_pb2.CountDecisionsRequest(page_size=1, limit=self.limit, **fields)
        found: list[tuple[str, int, int]] = []
        while True:
            page = await stub.CountDecisions(request)
            found += [(decision_pb2.DecisionReason.Name(one.reason), one.count, one.left_out) for one in page.sums]
            if not page.next_page_token:
                return [(name.removeprefix("DECISION_REASON_"), *figures) for name, *figures in found]
            request.page_token = page.next_page_token

    async def entries(self, **fields: Any) -> list[decisions_pb2.KeptDecision]:
        """Give what is kept of the limit, page by page."""
        stub: Any = reports_pb2_grpc.ReportServiceStub(self.serving.channel)
        request = decisions_pb2.ListDecisionsRequest(page_size=2, limit=self.limit, **fields)
        found: list[decisions_pb2.KeptDecision] = []
        while True:
            page = await stub.ListDecisions(request)
            found += page.decisions
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


async def test_a_batch_counts_once_however_often_it_comes(serving: Serving) -> None:
    """Ten copies at once, a late one after its successor, one after a gap: every batch adds what it says, once."""
    teller = Teller(serving)
    first = [teller.count(3, left_out=1), teller.count(2, SOFT), teller.entry(1), teller.entry(2)]
    answers = await asyncio.gather(*(teller.tell(1, *first) for _ in range(10)))
    assert [False] + [True] * 9 == sorted(answer.repeated for answer in answers)
    assert not (await teller.tell(2, teller.count(4), teller.entry(3))).repeated
    assert (await teller.tell(1, *first)).repeated
    assert not (await teller.tell(9, teller.count(1), teller.count(1))).repeated
    assert [("QUOTA_EXHAUSTED", 9, 1), ("SOFT_LIMIT_EXCEEDED", 2, 0)] == await teller.sums(tenant="acme")
    assert [3, 2, 1] == [one.units for one in await teller.entries(tenant="acme")]


async def test_what_can_not_be_read_leaves_nothing_behind(serving: Serving) -> None:
    """A batch is refused as a whole, by field, and its number is free for what is right."""
    teller = Teller(serving)
    wrong = [
        (teller.count(0), "counts[0].count"),
        (teller.count(1, left_out=2), "counts[0].left_out"),
        (teller.count(1, 99), "counts[0].reason"),
        (teller.count(1, tenant=""), "counts[0].tenant"),
        (teller.entry(1, at_us=2**62), "entries[0].at_us"),
        (teller.entry(1, amount=-2), "entries[0].amount"),
        (teller.entry(1, attributes={"user": "a\0b"}), "entries[0].attributes"),
        (teller.entry(1, attributes={"user": "x" * 1_025}), "entries[0].attributes"),
    ]
    for told, field in wrong:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await teller.tell(1, told, teller.count(5) if isinstance(told, decisions_pb2.DecisionEntry) else told)
        assert (grpc.StatusCode.INVALID_ARGUMENT, field) == (
            refused.value.code(),
            error_info(refused.value).metadata["field"],
        )
    for batch_seq, holder in ((0, teller.holder), (2**63, teller.holder), (1, b"short")):
        with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT"):
            await teller.tell(batch_seq, teller.count(1), holder=holder)
    assert not (await teller.tell(1, teller.count(1))).repeated
    assert [("QUOTA_EXHAUSTED", 1, 0)] == await teller.sums()


async def test_many_tell_of_the_same_limits_at_once(serving: Serving) -> None:
    """In whatever order each names them, nobody waits for somebody who waits for it, and all is counted."""
    tellers = [Teller(serving) for _ in range(6)]

    async def tell(sender: Teller, step: int) -> None:
        for batch_seq in range(1, 6):
            await sender.tell(batch_seq, *(other.count(1) for other in tellers[::step]))

    await asyncio.gather(*(tell(sender, 1 if place % 2 else -1) for place, sender in enumerate(tellers)))
    assert [[("QUOTA_EXHAUSTED", 30, 0)]] * 6 == [await teller.sums() for teller in tellers]


async def test_decisions_are_found_by_tenant_limit_reason_and_day(serving: Serving) -> None:
    """Newest first; a tenant that does not exist is left and told of; figures and attributes are as they were told."""
    teller = Teller(serving)
    answer = await teller.tell(
        1,
        teller.count(2),
        teller.count(4, tenant="other"),
        teller.count(5, tenant="nobody"),
        teller.entry(1),
        teller.entry(2, reason=SOFT, caller="group"),
        teller.entry(3, tenant="other"),
        teller.entry(4, tenant="nobody"),
    )
    assert (False, 2) == (answer.repeated, answer.unknown)
    assert [("QUOTA_EXHAUSTED", 2, 0), ("QUOTA_EXHAUSTED", 4, 0)] == await teller.sums()
    assert [("QUOTA_EXHAUSTED", 4, 0)] == await teller.sums(tenant="other", from_day="2020-01-01")
    assert [] == await teller.sums(to_day="2020-01-01")
    assert [3, 2, 1] == [one.units for one in await teller.entries()]
    (soft,) = await teller.entries(tenant="acme", reason=SOFT)
    expected = decisions_pb2.KeptDecision(
        tenant="acme", limit=teller.limit, reason=SOFT, caller="group", units=2, amount=100, used=98,
        attributes={"user": "u\u00a0v"},
    )  # fmt: skip
    expected.at.FromMicroseconds(1_700_000_000_000_000)
    assert expected == soft


async def test_what_is_kept_stays_as_it_is(serving: Serving) -> None:
    """Nobody changes an entry, nor deletes one before its time; a tenant sees its own ones only."""
    teller = Teller(serving)
    await teller.tell(1, teller.count(1), teller.entry(1))
    pools = serving.ledger.resources.pools
    async with transaction(pools.ingest) as conn:
        assert "DELETE 0" == await conn.execute("DELETE FROM decision_entry WHERE limit_name = $1", teller.limit)
    for pool, statement in (
        (pools.ingest, "UPDATE decision_entry SET units = 0"),
        (pools.billing, "DELETE FROM decision_entry"),
        (pools.reader, "UPDATE decision_count SET count = 1"),
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with transaction(pool) as conn:
                await conn.execute(statement)
    seen = {}
    async with transaction(pools.billing) as conn:
        tenants = await find_tenant_ids(conn, ["acme", "other"])
    for name in ("acme", "other"):
        async with tenant_transaction(pools.reader, tenants[name], readonly=True) as conn:
            query = "SELECT count(*) FROM decision_entry WHERE limit_name = $1"
            seen[name] = await conn.fetchval(query, teller.limit)
    assert {"acme": 1, "other": 0} == seen
