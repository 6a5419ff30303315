"""Send frozen requests to Stripe's HTTP API. Repeats nothing by itself: what to repeat is the job's decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from tollkeeper_ledger.payments.wire import Meaning, Reply, meaning_of, read_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tollkeeper_ledger.payments.wire import Request

API_VERSION = "2024-06-20"
"""Pinned: requests that were frozen before an upgrade mean the same after it."""

_TIMEOUT_S = 30.0
_PAGE = 100
_PAGES_MAX = 10_000


class UnreadableError(Exception):
    """Say that a read got no usable answer; it may be asked again."""


@dataclass(frozen=True, slots=True)
class StripeHttp:
    """Sends requests with one account's key."""

    client: httpx.AsyncClient

    @classmethod
    def connect(cls, url: str, *, api_key: str) -> StripeHttp:
        """Make a client; nothing is sent yet."""
        headers = {"Authorization": f"Bearer {api_key}", "Stripe-Version": API_VERSION}
        return cls(client=httpx.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=False))

    async def send(self, request: Request) -> Reply | None:
        """Send a request once; None where no answer came, so that its effect is unknown."""
        # Also without a body: a POST that does not say what it carries is refused.
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if request.method == "POST" else {}
        if request.key:
            headers["Idempotency-Key"] = request.key
        try:
            found = await self.client.request(request.method, request.path, content=request.body, headers=headers)
        except httpx.TransportError:
            return None
        after = found.headers.get("Retry-After", "")
        return Reply(
            status=found.status_code,
            body=found.content,
            retry_after_s=int(after) if after.isascii() and after.isdigit() else 0,
        )

    async def read(self, path: str, **fields: object) -> dict[str, Any]:
        """Read one object or page. Raises UnreadableError."""
        reply = await self.send(read_request(path, **fields))
        if reply is None or meaning_of(reply) is not Meaning.DONE:
            raise UnreadableError(f"{path}: {reply.problem() if reply else 'no answer'}")
        return reply.read()

    async def each(self, path: str, **fields: object) -> AsyncIterator[dict[str, Any]]:
        """Read a listing to its end. Raises UnreadableError."""
        after: dict[str, object] = {}
        for _ in range(_PAGES_MAX):
            page = await self.read(path, limit=_PAGE, **fields, **after)
            for one in page.get("data", ()):
                yield one
            if not page.get("has_more") or not page.get("data"):
                return
            after = {"starting_after": page["data"][-1]["id"]}
        raise UnreadableError(f"{path}: more than {_PAGES_MAX} pages")

    async def aclose(self) -> None:
        """Close connections."""
        await self.client.aclose()
