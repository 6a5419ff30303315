# ruff: noqa: PYI021  # a native module has no other place where its readers look
"""Types of the native functions over columns, written in Rust (ledger/native): no rule lives there.

What a function is given is read before it computes; it computes without the GIL where hashing takes most of the time.
Every one raises ValueError where columns don't fit each other, OverflowError for a number that its form can't hold, and
TypeError for what is no column.
"""

from collections.abc import Sequence

from tollkeeper_ledger.domain.usage import UsageColumns

def hash_records(
    columns: UsageColumns, event_us: Sequence[int], timeless: int
) -> tuple[
    list[tuple[int, ...]],
    list[int],
    list[tuple[int, ...]],
    list[tuple[tuple[int, ...], tuple[int, ...]]],
    list[int],
    list[bytes],
]:
    """Hash what records say: `usage_hash.content_hash` of each; records with a flag of `timeless` have no event time.

    Returns the shapes (indexes into meters, in bytewise order of their names), each record's shape, its units in that
    order, the attributes that records have (indexes of names, and of values), which of these each has, and the hashes.
    """

def chain(h: bytes, entries: Sequence[bytes]) -> list[bytes]:
    """Return h after each entry: `usage_hash.h_next`, one after the other."""

def merkle_root(tenants: Sequence[str], tenant: Sequence[int], hashes: Sequence[bytes]) -> bytes:
    """Return `usage_hash.merkle_root_by_tenant` of records: per record its place in tenants, and its hash."""

def row_hashes(
    content_hashes: Sequence[bytes],
    record_ids: Sequence[str],
    batch_id: int,
    seqs: Sequence[int],
    events_us: Sequence[int],
    received_us: Sequence[int],
    flags: Sequence[int],
    segments: Sequence[bytes],
    segment: Sequence[int],
) -> bytes:
    """Return `usage_hash.row_hash` of each row of a batch, one behind the other; rows name segments by place."""

def number_literal(values: Sequence[int]) -> str:
    """Return integers as a Postgres array literal."""

def number_literals(rows: Sequence[tuple[int, ...]]) -> str:
    """Return rows of integers as array literals, in lines."""
