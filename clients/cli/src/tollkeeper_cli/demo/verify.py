"""Compare what a replay was promised with what the ledger stored and billed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tollkeeper.ledger.v1 import billing_pb2, reports_pb2

    from tollkeeper_cli.replay.tally import TenantTally

TOKEN_METERS = ("context_tokens", "generated_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the ledger has of one tenant, from the records themselves and from its sums."""

    record_ids: Counter[str]
    units: Counter[str]
    """Sums over the records."""
    sums: Mapping[str, tuple[int, int]]
    """(sum, records) per meter as reports say."""

    @property
    def records(self) -> int:
        """Return how many records are stored."""
        return self.record_ids.total()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a tenant's stored usage agrees with what was acknowledged."""

    duplicates: int
    """Records stored more than once."""
    lost: int
    """Acknowledged records that are not stored."""
    unexpected: int
    """Stored records that nobody acknowledged."""
    problems: list[str] = field(default_factory=list)


def collect(records: Iterable[reports_pb2.StoredRecord], sums: Mapping[str, tuple[int, int]]) -> Stored:
    """Count stored records."""
    ids: Counter[str] = Counter()
    units: Counter[str] = Counter()
    for record in records:
        ids[record.id] += 1
        units.update(record.units)
    return Stored(record_ids=ids, units=units, sums=sums)


def judge(tenant: str, counts: TenantTally, stored: Stored) -> Verdict:
    """Compare one tenant's acknowledgements with the store."""
    acknowledged = Counter(counts.record_ids)
    duplicates = sum(count - 1 for count in stored.record_ids.values())
    lost = sum(1 for record_id in acknowledged if record_id not in stored.record_ids)
    unexpected = sum(1 for record_id in stored.record_ids if record_id not in acknowledged)
    problems: list[str] = []
    if repeated := sum(count - 1 for count in acknowledged.values()):
        problems.append(f"{tenant}: {repeated} settlements were acknowledged under another one's record id")
    for what, number in (("stored more than once", duplicates), ("lost", lost), ("not expected", unexpected)):
        if number:
            problems.append(f"{tenant}: {number:,} records {what}")
    for meter in sorted({*counts.units, *stored.units, *stored.sums}):
        problems += _compare(tenant, meter, counts, stored)
    return Verdict(duplicates=duplicates, lost=lost, unexpected=unexpected, problems=problems)


def judge_invoice(invoice: billing_pb2.Invoice, counts: TenantTally) -> list[str]:
    """Compare the quantities of an invoice with what was admitted, and its sums with its lines."""
    problems: list[str] = []
    for line in invoice.lines:
        if line.meter and line.quantity != counts.units[line.meter]:
            billed = f"invoice {invoice.number} bills {line.quantity:,} {line.meter}"
            problems.append(f"{invoice.tenant}: {billed}, admitted were {counts.units[line.meter]:,}")
    lines_minor = sum(line.amount_minor for line in invoice.lines)
    if lines_minor != invoice.subtotal_minor or invoice.total_minor != invoice.subtotal_minor + invoice.tax_minor:
        problems.append(
            f"{invoice.tenant}: invoice {invoice.number}: lines {lines_minor}, subtotal {invoice.subtotal_minor}, "
            f"tax {invoice.tax_minor} and total {invoice.total_minor} don't add up"
        )
    return problems


def _compare(tenant: str, meter: str, counts: TenantTally, stored: Stored) -> list[str]:
    """Compare one meter's three figures: admitted, in the records, in the ledger's sums."""
    admitted = counts.units[meter]
    summed, records = stored.sums.get(meter, (0, 0))
    problems: list[str] = []
    if stored.units[meter] != admitted:
        problems.append(f"{tenant}: {meter}: admitted {admitted:,}, stored records say {stored.units[meter]:,}")
    if summed != admitted:
        problems.append(f"{tenant}: {meter}: admitted {admitted:,}, the ledger's sum is {summed:,}")
    if records != stored.records:
        problems.append(f"{tenant}: {meter}: {stored.records:,} records stored, the ledger's sum counts {records:,}")
    return problems
