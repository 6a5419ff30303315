"""Bill batches for another process: `python -m tollkeeper_ledger.biller FD`, where FD is a socket to it."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from typing import TYPE_CHECKING

from tollkeeper_ledger.services.billing_processes import (
    BATCHES_PER_PROCESS,
    Answer,
    Batch,
    Opening,
    receive,
    send,
    told,
)
from tollkeeper_ledger.services.invoice_batches import BatchBiller
from tollkeeper_ledger.services.tasks import end_all
from tollkeeper_ledger.store.pool import open_pool

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

_YOUNG_OBJECTS = 50_000
"""A batch makes thousands of objects that live as long as it does: collecting every 700 would go through all of them
again and again."""


async def bill(reader: StreamReader, writer: StreamWriter) -> None:
    """Bill what is asked for until nobody is there to ask; what is under way then is rolled back."""
    opening = await receive(reader)
    if not isinstance(opening, Opening):
        return
    pool = await open_pool(opening.database_url, role="tollkeeper_billing", size=BATCHES_PER_PROCESS)
    biller = BatchBiller(pool, opening.run)
    running: set[asyncio.Task[None]] = set()
    try:
        while isinstance(batch := await receive(reader), Batch):
            task = asyncio.create_task(_answer(writer, biller, batch, with_lines=opening.with_lines))
            running.add(task)
            task.add_done_callback(running.discard)
    finally:
        await end_all(running)
        pool.terminate()


async def _answer(writer: StreamWriter, biller: BatchBiller, batch: Batch, *, with_lines: bool) -> None:
    outcome = await biller.close(batch.heads)
    if outcome.broke is not None:
        # The other process bills the rest by itself, and meets the error there.
        error = f"{type(outcome.broke).__name__}: {outcome.broke}"
        sys.stderr.write(
            f"tollkeeper-ledger: {len(batch.heads) - len(outcome.steps)} periods are given back: {error}\n"
        )
    await send(writer, Answer(batch.number, [told(step, with_lines=with_lines) for _, step in outcome.steps]))


async def main(fd: int) -> None:
    """Serve the socket `fd` until it ends."""
    gc.set_threshold(_YOUNG_OBJECTS)
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
    try:
        await bill(reader, writer)
    except Exception as error:  # noqa: BLE001 - the other process bills all by itself
        sys.exit(f"tollkeeper-ledger: no billing beside: {type(error).__name__}: {error}")
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
