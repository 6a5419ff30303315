"""Records in quarantine in Postgres, and what operators did about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.domain.usage import Problem
from tollkeeper_ledger.domain.usage_audit import RefusedRecord
from tollkeeper_ledger.domain.usage_quarantine import ActOutcome, QuarantineAct
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from tollkeeper_ledger.store.pool import Connection, Row

_PAGE = 1_000
_LONG_READ_S = 3_600.0
_START = (UUID(int=0), UUID(int=0), 0, 0)


class RefusedKey(NamedTuple):
    """Name a record in quarantine."""

    producer_id: UUID
    seq: int

    def __str__(self) -> str:
        """Give it as operators write it."""
        return f"{self.producer_id.hex}-{self.seq}"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A record in quarantine with where it stands."""

    row: RefusedRecord
    acts: int
    """How many acts there are on it."""
    outcome: ActOutcome | None
    """What the last one led to; None where there is none."""
    problem: Problem
    """Why it is not stored: what was found last."""

    @property
    def key(self) -> RefusedKey:
        """Give its name."""
        return RefusedKey(self.row.producer_id, self.row.seq)

    @property
    def is_over(self) -> bool:
        """Say whether it no longer waits."""
        return self.outcome not in (None, ActOutcome.REFUSED)


class AuditedAct(NamedTuple):
    """An act as it is stored, and what should go with it."""

    act: QuarantineAct
    row_check: int
    content_hash: bytes | None
    """Of the record in quarantine; None where there is none."""
    record: bytes | None
    """That record."""
    noted: bool
    """Whether the audit log tells the same."""


async def lock_quarantine(conn: Connection) -> None:
    """Wait until no other transaction acts on records in quarantine; ends with the transaction."""
    await conn.execute(sql("quarantine.lock"))


async def read_page(
    conn: Connection,
    *,
    after: RefusedKey,
    tenant_ids: Sequence[UUID] | None,
    ending: bytes | None,
    ended: bool,
    reason: str | None,
    count_max: int,
) -> list[Waiting]:
    """Give records in order of their keys; `tenant_ids` and `ending` are those of one tenant, None = all."""
    rows = await conn.fetch(
        sql("quarantine.page"), after.producer_id, after.seq, tenant_ids, ending, ended, reason, count_max
    )
    return [_waiting(row) for row in rows]


async def read_refused(conn: Connection, keys: Sequence[RefusedKey]) -> dict[RefusedKey, Waiting]:
    """Give those records that are there, by key."""
    rows = await conn.fetch(sql("quarantine.records"), [key.producer_id for key in keys], [key.seq for key in keys])
    return {one.key: one for one in map(_waiting, rows)}


async def read_acts(conn: Connection, record: RefusedRecord) -> list[QuarantineAct]:
    """Give what was done about a record, oldest first."""
    rows = await conn.fetch(sql("quarantine.acts"), record.tenant_id, record.producer_id, record.seq)
    return [_act(row) for row in rows]


async def add_acts(conn: Connection, acts: Sequence[QuarantineAct]) -> None:
    """Add acts; one on a record that no longer waits is refused by Postgres."""
    problems = [act.problem or Problem("", "") for act in acts]
    await conn.execute(
        sql("quarantine.add_acts"),
        [act.tenant_id for act in acts],
        [act.producer_id for act in acts],
        [act.seq for act in acts],
        [act.number for act in acts],
        [act.outcome.value for act in acts],
        [problem.reason for problem in problems],
        [problem.field for problem in problems],
        [act.note for act in acts],
        [act.actor for act in acts],
        [from_us(act.at_us) for act in acts],
        [act.batch_id for act in acts],
        [act.batch_seq for act in acts],
        [act.row_check() for act in acts],
    )


async def find_places(conn: Connection, ids: Iterable[tuple[UUID, str]]) -> dict[tuple[UUID, str], tuple[int, int]]:
    """Give batch and number of stored records, by tenant and id."""
    wanted = list(ids)
    rows = await conn.fetch(
        sql("quarantine.places"), [tenant_id for tenant_id, _ in wanted], [name for _, name in wanted]
    )
    return {(row["tenant_id"], row["id"]): (row["batch_id"], row["seq"]) for row in rows}


async def all_acts(conn: Connection) -> AsyncIterator[list[AuditedAct]]:
    """Give every act in pages, in order of their records."""
    after: tuple[UUID, UUID, int, int] = _START
    while True:
        rows = await conn.fetch(sql("quarantine.all_acts"), *after, _PAGE, timeout=_LONG_READ_S)
        page = [
            AuditedAct(_act(row), row["row_check"], row["content_hash"], row["record"], row["noted"]) for row in rows
        ]
        if page:
            yield page
        if len(page) < _PAGE:
            return
        last = page[-1].act
        after = (last.tenant_id, last.producer_id, last.seq, last.number)


async def lost_acts(conn: Connection, *, count_max: int) -> list[str]:
    """Name acts that the audit log tells of and that are not there."""
    return [row["subject"] for row in await conn.fetch(sql("quarantine.lost_acts"), count_max, timeout=_LONG_READ_S)]


def _waiting(row: Row) -> Waiting:
    return Waiting(
        row=RefusedRecord(
            tenant_id=row["tenant_id"],
            producer_id=row["producer_id"],
            seq=row["seq"],
            batch_id=row["batch_id"],
            reason=row["reason"],
            field=row["field"],
            content_hash=row["content_hash"],
            record=row["record"],
            at_us=to_us(row["quarantined_at"]),
            row_check=row["row_check"],
        ),
        acts=row["number"],
        outcome=ActOutcome(row["outcome"]) if row["outcome"] else None,
        problem=Problem(row["last_reason"] or row["reason"], row["last_field"] if row["last_reason"] else row["field"]),
    )


def _act(row: Row) -> QuarantineAct:
    problem = Problem(row["reason"], row["field"])
    return QuarantineAct(
        tenant_id=row["tenant_id"],
        producer_id=row["producer_id"],
        seq=row["seq"],
        number=row["number"],
        outcome=ActOutcome(row["outcome"]),
        problem=problem if problem != Problem("", "") else None,
        note=row["note"],
        actor=row["actor"],
        at_us=to_us(row["at"]),
        batch_id=row["batch_id"],
        batch_seq=row["batch_seq"],
    )
