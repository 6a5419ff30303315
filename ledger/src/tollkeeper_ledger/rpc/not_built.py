"""Methods that the contract has and this version does not serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.errors import NotBuiltError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def not_built(rpc: str) -> Callable[..., Awaitable[Any]]:
    """Give a method that answers UNIMPLEMENTED with an ErrorInfo that says so."""

    async def refuse(_servicer: object, _request: object, _context: object) -> None:
        raise NotBuiltError(rpc)

    return refuse
