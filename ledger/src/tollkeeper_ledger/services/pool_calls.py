"""What Redis has to be told of a window after its transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.store.pool_functions import close_pool_call, extend_pool_call, open_pool_call, pool_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tollkeeper_ledger.store.limits import WindowRow
    from tollkeeper_ledger.store.pool_functions import Call


def calls_for(row: WindowRow, *, expire_at_unix_s: int) -> Iterator[Call]:
    """Give the calls that bring Redis to the window's newest generation; none where nothing is to be told."""
    generation = row.state.generation
    if generation is None or not generation.publish:
        return
    keys = pool_keys(row.identity, row.window_id)
    if generation.lost:
        return
    standing: dict[str, Any] = {
        "window_id": row.window_id,
        "generation": generation.number,
        "allotted_cum": generation.allotted_cum,
        "amount_version": row.state.amount_version,
        "final": row.state.final,
    }
    if generation.opened_now:
        yield open_pool_call(keys, expire_at_unix_s=expire_at_unix_s, **standing)
    if generation.closing:
        yield close_pool_call(keys, generation=generation.number)
    elif not generation.opened_now:
        yield extend_pool_call(keys, **standing)
