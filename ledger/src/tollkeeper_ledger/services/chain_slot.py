"""Which stream of the chain this process adds to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.store.usage_chain import claim_stream

if TYPE_CHECKING:
    from tollkeeper_ledger.store.pool import Connection

STREAMS_MAX = 64


class ChainSlot:
    """Have a stream of one's own for as long as a session of Postgres lives, so that replicas don't queue at one head.

    Nothing rests on it but speed: links of a stream are added under its head's lock, whoever adds them. Before the
    first session, and where all streams are taken, it is the first stream; after a lost one it stays until the next.
    """

    def __init__(self, stream: int = 0) -> None:
        self.stream = stream

    async def take(self, conn: Connection) -> None:
        """Take the first stream that no other session has; `conn` keeps it until it is closed."""
        for stream in range(STREAMS_MAX):
            if await claim_stream(conn, stream):
                self.stream = stream
                return
        self.stream = 0
