"""Answer `GET /health` for probes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from tollkeeper_ledger.domain.periods import from_us

if TYPE_CHECKING:
    from starlette.requests import Request

    from tollkeeper_ledger.services.resources import Resources

_CHECK_SECONDS_MAX = 2.0


class Health:
    """Tell 200 while Postgres answers, 503 otherwise."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    async def answer(self, _request: Request) -> JSONResponse:
        """Answer one probe."""
        postgres = await self._postgres()
        body = {
            "status": "ok" if postgres else "failing",
            "postgres": postgres,
            "redis": self._resources.redis.is_up(),
            "ledger_time": from_us(self._resources.clock.reading().now_us).isoformat(),
        }
        return JSONResponse(body, 200 if postgres else 503)

    async def _postgres(self) -> bool:
        try:
            async with asyncio.timeout(_CHECK_SECONDS_MAX), self._resources.pools.ingest.acquire() as conn:
                await conn.fetchval("SELECT 1")
        except Exception:  # noqa: BLE001 - whatever is wrong, the answer is no
            return False
        return True
