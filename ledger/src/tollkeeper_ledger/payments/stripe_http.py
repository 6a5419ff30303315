"""Send frozen requests to Stripe's HTTP API. Repeats nothing by itself: what to repeat is the job's decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from tollkeeper_ledger.payments.pace import Gate, Pace
from tollkeeper_ledger.payments.wire import Meaning, Reply, is_too_many, meaning_of, read_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tollkeeper_ledger.payments.wire import Request

API_VERSION = "2024-06-20"
"""Pinned: requests that were frozen before an upgrade mean the same after it."""

REQUESTS_PER_S_LIVE, REQUESTS_PER_S_TEST = 80, 20
"""Four fifths of what Stripe takes of an account in a second, live or not: others have requests, too.

Source: https://docs.stripe.com/rate-limits
"""

_TIMEOUT_S = 30.0
_KEPT_OPEN = 100
_PAGE = 100
_PAGES_MAX = 10_000


class UnreadableError(Exception):
    """Say that a read got no usable answer; it may be asked again."""


@dataclass(frozen=True, slots=True)
class StripeHttp:
    """Sends requests with one account's key, all of them at one pace."""

    client: httpx.AsyncClient
    gate: Gate

    @classmethod
    def connect(cls, url: str, *, api_key: str, requests_per_s: float = REQUESTS_PER_S_TEST) -> StripeHttp:
        """Make a client that sends so many requests a second at most; nothing is sent yet."""
        client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}", "Stripe-Version": API_VERSION},
            timeout=_TIMEOUT_S,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=_KEPT_OPEN),
        )
        return cls(client=client, gate=Gate(Pace.of(requests_per_s)))

    async def send(self, request: Request) -> Reply | None:
        """Send a request once, when it is its turn; None where no answer came, so that its effect is unknown."""
        # Also without a body: a POST that does not say what it carries is refused.
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if request.method == "POST" else {}
        if request.key:
            headers["Idempotency-Key"] = request.key
        await self.gate.wait()
        try:
            found = await self.client.request(request.method, request.path, content=request.body, headers=headers)
        except httpx.TransportError:
            return None
        after = found.headers.get("Retry-After", "")
        reply = Reply(
            status=found.status_code,
            body=found.content,
            retry_after_s=int(after) if after.isascii() and after.isdigit() else 0,
        )
        if is_too_many(reply):
            self.gate.pace.was_too_many(self.gate.now(), wait_s=reply.retry_after_s)
        else:
            self.gate.pace.was_taken()
        return reply

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
