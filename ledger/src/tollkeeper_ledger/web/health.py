"""Answer `GET /health` for probes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.clock import from_us
from tollkeeper_ledger.web.webhooks import BODY_BYTES_MAX, PATH, answer_event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.services.provider_events import Events
    from tollkeeper_ledger.services.resources import Resources

_REQUEST_BYTES_MAX = 8192
_REQUEST_SECONDS_MAX = 30.0
_CHECK_SECONDS_MAX = 2.0


class HealthServer:
    """Serve /health: 200 while Postgres answers, 503 otherwise; and the provider's events. Every other path is 404."""

    def __init__(self, resources: Resources, *, events: Events | None = None) -> None:
        self._resources = resources
        self._events = events

    async def start(self) -> asyncio.Server:
        """Listen on `ledger_http`."""
        host, _, port = self._resources.settings.ledger_http.rpartition(":")
        return await asyncio.start_server(self._serve, host, int(port), limit=_REQUEST_BYTES_MAX, backlog=20)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS_MAX):
                head = await reader.readuntil(b"\r\n\r\n")
                status, body = await self._answer(head, reader)
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                    "Connection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader) -> tuple[str, bytes]:
        request_line, *lines = head.split(b"\r\n")
        method, _, rest = request_line.partition(b" ")
        path, _, _ = rest.partition(b" ")
        if method == b"POST" and path.split(b"?")[0] == PATH:
            return await self._event(_headers(lines), reader)
        if method != b"GET" or path.split(b"?")[0] != b"/health":
            return "404 Not Found", b'{"error":"only GET /health is served here"}'
        postgres = await self._postgres()
        body = {
            "status": "ok" if postgres else "failing",
            "postgres": postgres,
            "redis": self._resources.redis.is_up(),
            "ledger_time": from_us(self._resources.clock.reading().now_us).isoformat(),
        }
        return ("200 OK" if postgres else "503 Service Unavailable"), json.dumps(body).encode()

    async def _event(self, headers: dict[bytes, bytes], reader: asyncio.StreamReader) -> tuple[str, bytes]:
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            return "413 Content Too Large", b'{"error":"the body has no length, or is too long"}'
        body = await reader.readexactly(int(length))
        header = headers.get(b"stripe-signature", b"").decode("ascii", "replace")
        return await answer_event(self._events, header=header, body=body, log=self._resources.log)

    async def _postgres(self) -> bool:
        try:
            async with asyncio.timeout(_CHECK_SECONDS_MAX), self._resources.pools.ingest.acquire() as conn:
                await conn.fetchval("SELECT 1")
        except Exception:  # noqa: BLE001 - whatever is wrong, the answer is no
            return False
        return True


def _headers(lines: Sequence[bytes]) -> dict[bytes, bytes]:
    pairs = (line.partition(b":") for line in lines)
    return {name.strip().lower(): value.strip() for name, colon, value in pairs if colon}
