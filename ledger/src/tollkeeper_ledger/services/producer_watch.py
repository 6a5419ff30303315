"""Say in the log which producers and topics are behind or gone: the alarm for those that ring none themselves."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from tollkeeper_ledger.services.reports import ingest_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.services.reports import IngestStatus
    from tollkeeper_ledger.store.pool import Pools

LAG_ALARM = timedelta(seconds=60)
LAG_PAGE = timedelta(minutes=10)
NAMED_MAX = 20
"""Lines of one look; the rest is counted."""


class ProducerWatch:
    """Look each time `tick` is called. What is behind is told each time, who is gone once."""

    def __init__(self, pools: Pools, log: FilteringBoundLogger) -> None:
        self._pools = pools
        self._log = log
        self._gone: set[str] = set()

    async def tick(self) -> None:
        """Look once."""
        self.look(await ingest_status(self._pools))

    def look(self, status: IngestStatus) -> None:
        """Tell of what is behind or gone in this status."""
        found = list(_sources(status))
        gone = {name: state for name, state, _ in found if state in ("silent", "lost")}
        lines: list[tuple[Callable[..., object], str, dict[str, object]]] = [
            (self._log.error, "producer is gone; what it had not sent is missing", {"producer": name, "state": state})
            for name, state in gone.items()
            if name not in self._gone
        ]
        self._gone = set(gone)
        for name, state, lag in found:
            if state == "open" and lag is not None and lag >= LAG_ALARM:
                tell = self._log.error if lag >= LAG_PAGE else self._log.warning
                lines.append((tell, "usage lags", {"producer": name, "lag_s": lag // timedelta(seconds=1)}))
        for tell, what, fields in lines[:NAMED_MAX]:
            tell(what, **fields)
        if len(lines) > NAMED_MAX:
            self._log.error("more producers are behind or gone", count=len(lines) - NAMED_MAX)


def _sources(status: IngestStatus) -> Iterator[tuple[str, str, timedelta | None]]:
    """Give name, state and lag of each."""
    for one in status.producers:
        lag = None if one.row.watermark is None else status.now - one.row.watermark
        yield one.row.producer_id.hex, one.state, lag
    for topic in status.topics:
        lag = None if topic.row.watermark is None else status.now - topic.row.watermark
        yield topic.row.name, topic.state, lag
