"""Read request bodies within bounds of size, time and memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request

BODY_SECONDS_MAX = 30.0
BODIES_BYTES_MAX = 64 * 1024 * 1024
"""What the bodies of all requests of the process take together."""


class BodyError(Exception):
    """A body that is not taken: HTTP code, the status' name, and why."""

    def __init__(self, code: int, status: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class Bodies:
    """Count what is held in bodies while they are read, and refuse what would be too much."""

    def __init__(self, bytes_max: int = BODIES_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._held = 0

    async def read(self, request: Request, bytes_max: int) -> bytes:
        """Give the whole body. Raises BodyError for one that is too long or too slow, or when memory is short."""
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS_MAX):
                async for chunk in request.stream():
                    self._held += len(chunk)
                    body += chunk
                    if len(body) > bytes_max:
                        raise BodyError(413, "INVALID_ARGUMENT", f"the body is longer than {bytes_max:,} bytes")
                    if self._held > self._bytes_max:
                        raise BodyError(503, "UNAVAILABLE", "too many bodies at once; send it again in a second")
        except TimeoutError:
            raise BodyError(408, "DEADLINE_EXCEEDED", f"the body took longer than {BODY_SECONDS_MAX:g} s") from None
        finally:
            self._held -= len(body)
        return bytes(body)
