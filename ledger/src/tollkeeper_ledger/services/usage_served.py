"""Remember what Postgres knows of who serves whom, so that no append asks for it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

Pair: TypeAlias = "tuple[UUID, UUID]"
"""Producer, tenant."""

PAIRS_MAX = 200_000
"""About 50 MB; all are forgotten and learnt anew beyond it."""

_NONE: frozenset[UUID] = frozenset()


@dataclass(slots=True)
class Served:
    """Pairs that were committed to the Postgres that runs since then. They are never deleted there.

    Another start of a server may be a restore, and lack them: whatever it says is learnt anew.
    """

    _since: datetime | None = None
    _tenants: dict[UUID, set[UUID]] = field(default_factory=dict)
    """Per producer."""

    def begin(self) -> Serving:
        """Begin a transaction."""
        return Serving(self)

    def forget(self) -> None:
        """Forget everything: Postgres was set back."""
        self._since, self._tenants = None, {}

    def lacking(self, served: Mapping[UUID, set[UUID]], *, since: datetime | None) -> list[Pair]:
        """Give those of each producer's tenants that the server may not have."""
        known = self._tenants if since is not None and since == self._since else {}
        return [
            (producer_id, tenant_id)
            for producer_id, tenant_ids in served.items()
            for tenant_id in tenant_ids - known.get(producer_id, _NONE)
        ]

    def learn(self, pairs: Sequence[Pair], *, since: datetime | None) -> None:
        """Keep what was committed to the server."""
        if since is None:
            return
        if since != self._since:
            self._since, self._tenants = since, {}
        for producer_id, tenant_id in pairs:
            self._tenants.setdefault(producer_id, set()).add(tenant_id)
        if pairs and sum(map(len, self._tenants.values())) > PAIRS_MAX:
            self._tenants = {}


@dataclass(slots=True)
class Serving:
    """What one transaction wrote."""

    served: Served
    since: datetime | None = None
    written: list[Pair] = field(default_factory=list)

    def lacking(self, served: Mapping[UUID, set[UUID]], *, since: datetime | None) -> list[Pair]:
        """Give what this transaction has to write."""
        self.since = since
        self.written = self.served.lacking(served, since=since)
        return self.written

    def committed(self) -> None:
        """Note that the transaction was committed."""
        self.served.learn(self.written, since=self.since)
