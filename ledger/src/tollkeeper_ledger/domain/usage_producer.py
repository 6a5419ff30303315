"""Decide about a producer: who may speak for it, and what of a batch is new. Pure."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain import usage
from tollkeeper_ledger.domain.errors import InvalidFieldError, LedgerError, PreconditionError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from tollkeeper_ledger.domain.usage_batch import UsageBatch

HOLDER_BYTES = 16
"""Length of a process' name in leases."""

ENDED_MAX = 1_000
"""Ended processes that one announcement names."""


@dataclass(frozen=True, slots=True)
class Producer:
    """What the ledger holds of a producer."""

    producer_id: UUID
    incarnation: int
    holder: bytes
    committed_seq: int
    h: bytes
    server_started_at: datetime | None = None
    """Since when the Postgres runs that says so; None = it was not asked."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Say what of a batch is new."""

    skip: int
    """Records that an earlier batch has committed."""
    behind: bool
    """The batch ends below what is committed, so nothing of it can be compared and nothing of it counts."""


def check_format(version: int) -> None:
    """Refuse formats that this ledger can't read. Raises PreconditionError VERSION_UNSUPPORTED."""
    if version != usage.FORMAT:
        raise PreconditionError(
            f"format {version} of usage is not known here",
            reason="VERSION_UNSUPPORTED",
            metadata={"field": "format", "value": str(version), "bound": str(usage.FORMAT)},
        )


def check_opening(*, incarnation: int, holder: bytes) -> None:
    """Refuse an announcement that names no process. Raises InvalidFieldError."""
    if not 1 <= incarnation <= usage.SEQ_MAX:
        raise InvalidFieldError(
            "incarnation",
            "is out of range",
            reason="FIELD_OUT_OF_RANGE",
            value=incarnation,
            bound=f"1 to {usage.SEQ_MAX}",
        )
    if not 1 <= len(holder) <= usage.HOLDER_BYTES_MAX:
        raise InvalidFieldError(
            "holder",
            "has the wrong length",
            reason="FIELD_INVALID",
            value=len(holder),
            bound=f"1 to {usage.HOLDER_BYTES_MAX} bytes",
        )


def check_holder(known: Producer, *, incarnation: int, holder: bytes) -> None:
    """Refuse an older process, and a second one of the same incarnation. Raises PreconditionError PRODUCER_FENCED."""
    if incarnation < known.incarnation or (incarnation == known.incarnation and holder != known.holder):
        raise _fenced(known, incarnation)


def place(known: Producer, batch: UsageBatch) -> Placement:
    """Say what of the batch is new, or refuse it.

    Raises PreconditionError: PRODUCER_FENCED for an older incarnation, PRODUCER_UNKNOWN for one that was not opened,
    PRODUCER_GAP where numbers are missing before it, PRODUCER_FORKED where its history is not the committed one.
    """
    incarnation = batch.source.incarnation
    if incarnation < known.incarnation:
        raise _fenced(known, incarnation)
    if incarnation > known.incarnation:
        raise unknown(known.producer_id)
    if batch.source.first_seq > known.committed_seq + 1:
        raise PreconditionError(
            f"entries {known.committed_seq + 1} to {batch.source.first_seq - 1} are missing",
            reason="PRODUCER_GAP",
            metadata={
                "field": "first_seq",
                "value": str(batch.source.first_seq),
                "expected": str(known.committed_seq + 1),
                "remedy": "send from `expected` on",
            },
        )
    if batch.last_seq < known.committed_seq:
        return Placement(skip=len(batch.records), behind=True)
    if batch.h_at(known.committed_seq) != known.h:
        raise PreconditionError(
            f"the history of this producer differs from what was committed up to {known.committed_seq}",
            reason="PRODUCER_FORKED",
            metadata={
                "field": "h_before",
                "committed_seq": str(known.committed_seq),
                "remedy": "make a new producer and send unacknowledged records under it with the same ids",
            },
        )
    return Placement(skip=bisect_right(batch.records.seqs, known.committed_seq), behind=False)


def unknown(producer_id: UUID) -> LedgerError:
    """Give the error for a producer, or an incarnation of one, that was never opened."""
    return PreconditionError(
        f"producer {producer_id.hex} was not opened in this incarnation",
        reason="PRODUCER_UNKNOWN",
        metadata={"field": "producer_id", "value": producer_id.hex, "remedy": "call OpenProducer"},
    )


def state_now(stored: str, *, quiet: timedelta, silent_after: timedelta, lost_after: timedelta) -> str:
    """Give `open`, `closed`, `silent` or `lost` from what is stored and how long nothing was heard, in real time."""
    if stored != "open" or quiet < silent_after:
        return stored
    return "lost" if quiet >= lost_after else "silent"


def _fenced(known: Producer, incarnation: int) -> PreconditionError:
    return PreconditionError(
        f"incarnation {incarnation} of producer {known.producer_id.hex} is fenced by {known.incarnation}",
        reason="PRODUCER_FENCED",
        metadata={
            "field": "incarnation",
            "value": str(incarnation),
            "bound": str(known.incarnation),
            "remedy": "make a new producer and send unacknowledged records under it with the same ids",
        },
    )


def check_ended(ended: Sequence[bytes], *, ended_seq: int) -> None:
    """Check which processes a producer says have ended. Raises InvalidFieldError."""
    if len(ended) > ENDED_MAX:
        raise InvalidFieldError(
            "ended_holders", "are too many", reason="FIELD_TOO_LONG", value=len(ended), bound=f"up to {ENDED_MAX}"
        )
    if any(len(holder) != HOLDER_BYTES for holder in ended):
        raise InvalidFieldError("ended_holders", "holds what is no holder's name", bound=f"{HOLDER_BYTES} bytes each")
    if not 0 <= ended_seq <= usage.SEQ_MAX:
        raise InvalidFieldError("ended_seq", "is out of range", reason="FIELD_OUT_OF_RANGE", value=ended_seq)
