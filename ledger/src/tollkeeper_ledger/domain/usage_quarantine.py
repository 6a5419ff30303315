"""Records in quarantine as operators deal with them: read again, and what was done about each. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import BaseModel, Field, ValidationError

from tollkeeper_ledger.domain.pseudonyms import version_of
from tollkeeper_ledger.domain.usage import DAY_US, FLAG_SYSTEM_ID, SHIPPING_MAX_US, LevelChange, LevelName, Problem
from tollkeeper_ledger.domain.usage_audit import hash_of_refused, hashes_of
from tollkeeper_ledger.domain.usage_columns import Use, columns_of
from tollkeeper_ledger.domain.usage_hash import row_check, string_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.usage import UsageColumns
    from tollkeeper_ledger.domain.usage_audit import AuditedRecord, RefusedRecord

RELEASE_MAX_US = 45 * DAY_US
"""How long after its event a record may be released that came too long ago for an append.

The same record was committed a day and five minutes before its event at the earliest, and its id is kept for 49 days:
it is still there to be met. Of ids that the system made the event time says nothing.
"""

CHANGED = Problem("RECORD_CHANGED", "")
"""The row in quarantine is not what was committed, so nothing of it is believed."""

EXPIRED = Problem("DEDUP_EXPIRED", "event_time_us")

_ACT_TAG = b"tollkeeper.quarantine.act.v1"
_ACT_HEAD = len(_ACT_TAG).to_bytes(4, "little") + _ACT_TAG
_ACT_NUMBERS = struct.Struct("<qqqqq")


class ActOutcome(StrEnum):
    """What an operator's act led to."""

    RELEASED = "released"
    DUPLICATE = "duplicate"
    """The same record was stored already."""
    DISCARDED = "discarded"
    REFUSED = "refused"
    """It was to be released and can't be stored still."""


@dataclass(frozen=True, slots=True)
class QuarantineAct:
    """One act on one record, as it is stored."""

    tenant_id: UUID
    producer_id: UUID
    seq: int
    number: int
    """From 1, per record."""
    outcome: ActOutcome
    problem: Problem | None
    """Why it was refused again."""
    note: str
    actor: str
    at_us: int
    batch_id: int = 0
    """Batch of the stored record where there is one."""
    batch_seq: int = 0
    """Its number there."""

    @property
    def name(self) -> str:
        """Give its key for people."""
        return f"producer {self.producer_id.hex}, number {self.seq}, act {self.number}"

    @property
    def subject(self) -> str:
        """Give what the audit log calls it."""
        return f"quarantine/{self.producer_id.hex}/{self.seq}/{self.number}"

    def row_check(self) -> int:
        """Give what the row carries of the hash over all of it."""
        why = self.problem or Problem("", "")
        texts = (self.outcome, why.reason, why.field, self.note, self.actor)
        numbers = _ACT_NUMBERS.pack(self.seq, self.number, self.at_us, self.batch_id, self.batch_seq)
        told = b"".join(map(string_bytes, texts))
        return row_check(sha256(_ACT_HEAD + self.tenant_id.bytes + self.producer_id.bytes + numbers + told).digest())


_Number: TypeAlias = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Hex: TypeAlias = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2})*$")]


class _Described(BaseModel, strict=True, extra="forbid"):
    """What `usage_judgement.describe_records` writes."""

    attributes: list[tuple[str, str]]
    event_time_us: _Number
    flags: _Number
    id: str
    quantities: list[tuple[str, _Number]]
    received_us: _Number
    tenant: str
    home: _Hex = ""
    levels: list[tuple[str, str, _Hex, _Hex, _Number, _Number]] = []


@dataclass(frozen=True, slots=True)
class RefusedUse:
    """What a record in quarantine says."""

    use: Use
    received_us: int
    home: bytes
    """The producer whose reservation it ends; empty = none."""
    levels: tuple[LevelChange, ...]
    """With places of 0."""


def read_refused(record: bytes) -> RefusedUse | None:
    """Read a record as `usage_judgement.describe_records` wrote it; None = it was changed, and can't be read."""
    try:
        told = _Described.model_validate_json(record)
    except ValidationError:
        return None
    return RefusedUse(
        use=Use(
            tenant=told.tenant,
            id=told.id,
            event_us=told.event_time_us,
            quantities=told.quantities,
            attributes=told.attributes,
            flags=told.flags,
        ),
        received_us=told.received_us,
        home=bytes.fromhex(told.home),
        levels=tuple(
            LevelChange(0, LevelName(tenant, limit, bytes.fromhex(key)), bytes.fromhex(holder), units, over)
            for tenant, limit, key, holder, units, over in told.levels
        ),
    )


def columns_again(records: Sequence[RefusedUse]) -> UsageColumns:
    """Give records as a batch to be appended again, each with its own receive time."""
    columns = columns_of([one.use for one in records], received_us=0)
    times = [one.received_us for one in records]
    homes: dict[bytes, int] = {}
    home = [1 + homes.setdefault(one.home, len(homes)) if one.home else 0 for one in records]
    return replace(
        columns,
        received_us=[at - before for before, at in zip([0, *times], times, strict=False)],
        homes=list(homes),
        home=home if homes else (),
        level_changes=[replace(change, record=at) for at, one in enumerate(records) for change in one.levels],
    )


def release_problem(row: RefusedRecord, refused: RefusedUse | None, *, now_us: int) -> Problem | None:
    """Say why a record can't even be tried again: its row was changed, or an id like its own may have expired."""
    if refused is None or row_check(hash_of_refused(row)) != row.row_check:
        return CHANGED
    if now_us - refused.received_us <= SHIPPING_MAX_US:
        return None
    named_by_caller = not refused.use.flags & FLAG_SYSTEM_ID
    return None if named_by_caller and now_us - refused.use.event_us <= RELEASE_MAX_US else EXPIRED


def counted_as(counted: AuditedRecord, record: bytes) -> bytes:
    """Give the content hash that a stored record had when `record` of quarantine was refused.

    That is with what came where it is stored as a pseudonym: it was hidden since, or under another key. Of a `record`
    that can't be read nothing is taken.
    """
    refused = read_refused(record)
    came = dict(refused.use.attributes) if refused else {}
    hidden = {
        name: came[name]
        for name, value in counted.attributes.items()
        if name in came and version_of(value) not in (None, version_of(came[name]))
    }
    return hashes_of(counted._replace(attributes={**counted.attributes, **hidden}))[0]


def act_problem(
    act: QuarantineAct, *, stored_check: int, refused_hash: bytes | None, counted_hash: bytes | None, away: bool
) -> str:
    """Say what is wrong with an act; empty where nothing is.

    `stored_check`: what its row carries. `refused_hash`: content of the record in quarantine, None = there is none.
    `counted_hash`: content of the record that it says is stored, None = there is none; `away`: it may be in a file.
    """
    if act.row_check() != stored_check:
        return "its fields are not those that were committed"
    if refused_hash is None:
        return "is on no record in quarantine"
    if act.outcome not in (ActOutcome.RELEASED, ActOutcome.DUPLICATE):
        return ""
    if counted_hash is None:
        return "" if away else "the record that it says is stored is not"
    return "" if counted_hash == refused_hash else "stands for another record than the one in quarantine"
