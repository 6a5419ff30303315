"""Health and metrics over HTTP/1: `GET /health` and `GET /metrics`, bounded in size, time and number."""

from __future__ import annotations

import asyncio
import contextlib
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import structlog

from tollkeeper_sidecar import metrics

if TYPE_CHECKING:
    from tollkeeper_sidecar.plane import DataPlane

REQUEST_BYTES_MAX: Final = 16_384
REQUEST_TIMEOUT_S: Final = 5.0
CONNECTIONS_MAX: Final = 64

_log = structlog.get_logger(__name__)


class HealthServer:
    """Tells orchestrators and Prometheus how the data plane is."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._open: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None

    async def start(self, address: str) -> str:
        """Listen on host:port and return the address really taken (port 0 takes a free one). Raises OSError."""
        host, _, port = address.rpartition(":")
        self._server = await asyncio.start_server(
            self._serve, host.strip("[]"), int(port), limit=REQUEST_BYTES_MAX, start_serving=True
        )
        name = self._server.sockets[0].getsockname()
        return f"{name[0]}:{name[1]}"

    async def stop(self) -> None:
        """Stop listening and break off open connections."""
        if self._server is not None:
            self._server.close()
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*(task for task in self._open if task is not None), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[None] | None = asyncio.current_task()
        self._open[task] = writer
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                if len(self._open) > CONNECTIONS_MAX:
                    status, kind, body = HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", "too many connections\n"
                else:
                    status, kind, body = self._answer(await reader.readuntil(b"\r\n\r\n"))
                payload = body.encode()
                writer.write(
                    f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}; charset=utf-8\r\n"
                    f"Content-Length: {len(payload)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n".encode()
                )
                writer.write(payload)
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # Whoever asks badly or slowly gets nothing.
        except Exception:  # noqa: BLE001 - top of a connection: the listener must go on
            _log.exception("health request failed")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            del self._open[task]

    def _answer(self, request: bytes) -> tuple[HTTPStatus, str, str]:
        line = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(line) != 3 or not line[2].startswith("HTTP/1."):  # noqa: PLR2004 - method, target, version
            return HTTPStatus.BAD_REQUEST, "text/plain", "not an HTTP/1 request\n"
        if line[0] != "GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", "only GET\n"
        target = line[1].split("?", 1)[0]
        if target == "/health":
            return self._health()
        if target == "/metrics":
            return HTTPStatus.OK, "text/plain; version=0.0.4", metrics.render(json.loads(self._plane.stats()))
        return HTTPStatus.NOT_FOUND, "text/plain", "there are /health and /metrics\n"

    def _health(self) -> tuple[HTTPStatus, str, str]:
        stats: dict[str, Any] = json.loads(self._plane.stats())
        is_serving = bool(stats.get("ready")) and not stats.get("draining")
        state = "serving" if is_serving else "draining" if stats.get("draining") else "starting"
        body = json.dumps({"status": state, "addresses": json.loads(self._plane.addresses()), "stats": stats})
        return (HTTPStatus.OK if is_serving else HTTPStatus.SERVICE_UNAVAILABLE), "application/json", body + "\n"
