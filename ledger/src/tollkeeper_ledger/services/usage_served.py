"""Remember what Postgres knows of who serves whom, so that no append asks for it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from uuid import UUID

Pair: TypeAlias = "tuple[UUID, UUID]"
"""Producer, tenant."""

PAIRS_MAX = 200_000
"""About 50 MB; all are forgotten and learnt anew beyond it."""


@dataclass(slots=True)
class Served:
    """Pairs that were committed to the Postgres that runs since then. They are never deleted there.

    Another start of a server may be a restore, and lack them: whatever it says is learnt anew.
    """

    _since: datetime | None = None
    _pairs: set[Pair] = field(default_factory=set)

    def begin(self) -> Serving:
        """Begin a transaction."""
        return Serving(self)

    def forget(self) -> None:
        """Forget everything: Postgres was set back."""
        self._since, self._pairs = None, set()

    def lacking(self, pairs: Iterable[Pair], *, since: datetime | None) -> list[Pair]:
        """Give those that the server may not have."""
        if since is None or since != self._since:
            return list(pairs)
        return [pair for pair in pairs if pair not in self._pairs]

    def learn(self, pairs: Iterable[Pair], *, since: datetime | None) -> None:
        """Keep what was committed to the server."""
        if since is None:
            return
        if since != self._since:
            self._since, self._pairs = since, set()
        self._pairs.update(pairs)
        if len(self._pairs) > PAIRS_MAX:
            self._pairs = set()


@dataclass(slots=True)
class Serving:
    """What one transaction wrote."""

    served: Served
    since: datetime | None = None
    written: list[Pair] = field(default_factory=list)

    def lacking(self, pairs: Iterable[Pair], *, since: datetime | None) -> list[Pair]:
        """Give what this transaction has to write."""
        self.since = since
        self.written = self.served.lacking(pairs, since=since)
        return self.written

    def committed(self) -> None:
        """Note that the transaction was committed."""
        self.served.learn(self.written, since=self.since)
