"""What a producer sends: a contiguous run of usage records and holes, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

FORMAT = 1
"""Version of the batch format that this ledger reads."""

UNITS_MAX = 2**53 - 1
QUANTITIES_MAX = 16
ATTRIBUTES_MAX = 16
ID_BYTES_MAX = 128
NAME_BYTES_MAX = 128
HOLDER_BYTES_MAX = 64
RECORDS_MAX = 10_000
"""Records of one batch. Producers send at most 5,000; this bounds the work of one transaction."""
TENANTS_SERVED_MAX = 20_000
HOLES_MAX = 1_000
"""Holes of one batch."""
HOLE_REASON_BYTES_MAX = 128
SEQ_MAX = 2**63 - 1
HASH_BYTES = 32
PRODUCER_BYTES = 16

FLAG_SYSTEM_ID = 1
FLAG_EXCESS = 2
FLAG_EXPIRED = 4
FLAG_DECREASE = 16
"""The quantities went down: sums subtract them."""
FLAG_VOID = 32
"""The record takes back another one, whose id follows the prefix `v/`. Only the ledger itself writes such records."""
FLAGS_KNOWN = 31
"""Flags that a producer may set."""
VOID_PREFIX = "v/"
"""Ids of records that void others begin so; no other record's id does."""

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
DAY_US = 86_400_000_000
LATENESS_MAX_US = 35 * DAY_US
"""How long before its receive time an event may lie."""
EARLINESS_MAX_US = 5 * MINUTE_US
"""How long after its receive time an event may lie."""
SHIPPING_MAX_US = 14 * DAY_US
"""How long after its receive time a record may be committed; ids are kept for lateness plus this."""
CLOCK_AHEAD_MAX_US = DAY_US
"""How far a producer's clock may run ahead of the ledger's before its records are refused."""


@dataclass(frozen=True, slots=True)
class TimeSpan:
    """How far an event may lie from its receive time, before it and after it."""

    late_us: int = LATENESS_MAX_US
    early_us: int = EARLINESS_MAX_US

    def and_of(self, other: TimeSpan) -> TimeSpan:
        """Give what lies within both."""
        return TimeSpan(min(self.late_us, other.late_us), min(self.early_us, other.early_us))


WIDEST = TimeSpan()
"""No meter may allow more."""


@dataclass(frozen=True, slots=True)
class LevelName:
    """Name one key of one limit of kind level: wire id of the limit's tenant, limit, key hash."""

    tenant: str
    limit: str
    key_hash: bytes


@dataclass(frozen=True, slots=True)
class LevelChange:
    """Say what a record changes of a level: a rise from a holder's lease, or a fall where it has FLAG_DECREASE."""

    record: int
    level: LevelName
    holder: bytes
    units: int
    over: int


@dataclass(frozen=True, slots=True)
class UsageColumns:
    """Records as columns: dictionaries, then one value per record, quantity or attribute. As it came, unchecked."""

    tenants: Sequence[str]
    meters: Sequence[str]
    attribute_names: Sequence[str]
    attribute_values: Sequence[str]
    ids: Sequence[str]
    tenant: Sequence[int]
    event_time_us: Sequence[int]
    """Each as the difference to the record before it."""
    received_us: Sequence[int]
    """Likewise."""
    flags: Sequence[int]
    quantity_count: Sequence[int]
    attribute_count: Sequence[int]
    meter: Sequence[int]
    units: Sequence[int]
    attribute_name: Sequence[int]
    attribute_value: Sequence[int]
    homes: Sequence[bytes] = ()
    """Dictionary of producers, 16 bytes each."""
    home: Sequence[int] = ()
    """1 + index into homes of the reservation that the record ends, 0 = none; empty where all are 0."""
    level_changes: Sequence[LevelChange] = ()


@dataclass(frozen=True, slots=True)
class Hole:
    """Sequence numbers whose records are damaged; both ends belong to it."""

    first_seq: int
    last_seq: int
    reason: str
    content_hash: bytes = b""
    """32 bytes where one intact entry is skipped: what stands for it in h."""


@dataclass(frozen=True, slots=True)
class UsageAppend:
    """One AppendUsage as it came."""

    producer_id: UUID
    incarnation: int
    first_seq: int
    h_before: bytes
    columns: UsageColumns
    holes: Sequence[Hole]
    watermark_us: int
    tenants_served: Sequence[str]
    closing: bool
    shipping_max_us: int = SHIPPING_MAX_US
    """How long after its receive time a record may be committed here."""


@dataclass(frozen=True, slots=True)
class ProducerPosition:
    """Say where the ledger stands with a producer."""

    committed_seq: int
    h: bytes
    safe_seq: int


@dataclass(frozen=True, slots=True)
class AppendOutcome:
    """Say what one append did."""

    position: ProducerPosition
    stored: int = 0
    duplicates: int = 0
    conflicts: int = 0
    quarantined: int = 0
    trimmed: int = 0
    verdicts: Sequence[Verdict] = ()
    """Of the records that are not stored under their number, ascending."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Say why a record is not stored: a stable reason and the path of the field, empty for the whole record."""

    reason: str
    field: str


CONFLICT = Problem("CONFLICT", "id")
"""Another record has the id."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Say why a record is not stored under its number."""

    seq: int
    problem: Problem | None
    """None: the same record is stored already, under another number."""


def malformed(field: str, problem: str, *, value: object = None, bound: str = "") -> InvalidFieldError:
    """Give the error that refuses a batch which can't be read as entries at all."""
    return InvalidFieldError(
        field,
        problem,
        reason="BATCH_MALFORMED",
        value=value,
        bound=bound,
        remedy="send the batch in halves and skip the bad record as a hole",
    )
