"""Count what came of a replay."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_LIMIT = "-"


@dataclass(slots=True)
class TenantTally:
    """What one tenant's requests came to."""

    requests: int = 0
    admitted: int = 0
    units: Counter[str] = field(default_factory=Counter)
    """Units per meter that were settled and acknowledged."""
    refunded: Counter[str] = field(default_factory=Counter)
    """Units per meter that settling gave back."""
    denials: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Denials by (limit, reason)."""
    record_ids: list[str] = field(default_factory=list)
    """Ids of acknowledged records."""
    expired: int = 0
    """Settlements of reservations that had expired."""

    @property
    def denied(self) -> int:
        """Return how many requests were denied."""
        return self.denials.total()


@dataclass(slots=True)
class Tally:
    """What a replay came to, by tenant."""

    tenants: dict[str, TenantTally] = field(default_factory=dict)
    retries: int = 0
    """Calls that were made again."""
    braked_s: float = 0.0
    """Real time in which the replay ran slower than asked for, because the machine was busy."""
    late_max_us: int = 0
    """The furthest that a request was sent after its time, in real microseconds."""

    def of(self, tenant: str) -> TenantTally:
        """Return a tenant's counts, new ones at first."""
        return self.tenants.setdefault(tenant, TenantTally())

    @property
    def requests(self) -> int:
        """Return how many requests were made."""
        return sum(tenant.requests for tenant in self.tenants.values())

    @property
    def admitted(self) -> int:
        """Return how many were admitted."""
        return sum(tenant.admitted for tenant in self.tenants.values())

    @property
    def denied(self) -> int:
        """Return how many were denied."""
        return sum(tenant.denied for tenant in self.tenants.values())

    def units(self, meter: str) -> int:
        """Return the units of a meter that were settled, over all tenants."""
        return sum(tenant.units[meter] for tenant in self.tenants.values())

    def denials(self) -> Mapping[tuple[str, str, str], int]:
        """Return denials by (tenant, limit, reason), most first."""
        found = {
            (name, limit, reason): count
            for name, tenant in self.tenants.items()
            for (limit, reason), count in tenant.denials.items()
        }
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
