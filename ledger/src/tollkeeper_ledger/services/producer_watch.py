"""Say in the log which producers and topics are behind or gone: the alarm for those that ring none themselves."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from tollkeeper_ledger.services.reports import ingest_status

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        untold = [name for name in gone if name not in self._gone]
        behind = sorted(
            ((lag, name) for name, state, lag in found if state == "open" and lag is not None and lag >= LAG_ALARM),
            reverse=True,
        )
        # Each kind has its half at least: those that were gone long ago hide nobody who is behind now, nor the reverse.
        lagging = sorted(behind[: max(NAMED_MAX // 2, NAMED_MAX - len(untold))])
        named = untold[: NAMED_MAX - len(lagging)]
        for name in named:
            self._log.error("producer is gone; what it had not sent is missing", producer=name, state=gone[name])
        for lag, name in lagging:
            tell = self._log.error if lag >= LAG_PAGE else self._log.warning
            tell("usage lags", producer=name, lag_s=lag // timedelta(seconds=1))
        # Who was not named is named by a later look.
        self._gone = (self._gone & gone.keys()) | set(named)
        left = len(untold) + len(behind) - len(named) - len(lagging)
        if left:
            self._log.error("more producers are behind or gone", count=left)


def _sources(status: IngestStatus) -> Iterator[tuple[str, str, timedelta | None]]:
    """Give name, state and lag of each."""
    for one in status.producers:
        lag = None if one.row.watermark is None else status.now - one.row.watermark
        yield one.row.producer_id.hex, one.state, lag
    for topic in status.topics:
        lag = None if topic.row.watermark is None else status.now - topic.row.watermark
        yield topic.row.name, topic.state, lag
