"""Post to receivers that somebody else named: only to public addresses, and to the very address that was judged."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from tollkeeper_ledger.domain.webhooks import is_public

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT_S = 15.0
"""For all of one try, the name's address included."""

_REPLY_BYTES_MAX = 300


@dataclass(frozen=True, slots=True)
class Posted:
    """What became of one try."""

    is_taken: bool
    status: int
    """0: no answer."""
    reply: str


@dataclass(frozen=True, slots=True)
class WebhookHttp:
    """Sends one request per try; follows no redirect and reads little of the answer."""

    client: httpx.AsyncClient
    private: bool
    """Addresses of one's own network are allowed."""
    timeout_s: float = TIMEOUT_S

    @classmethod
    def connect(cls, *, private: bool, timeout_s: float = TIMEOUT_S) -> WebhookHttp:
        """Make a client; nothing is sent yet. No proxy is used: it would connect by a name of its own reading."""
        limits = httpx.Limits(max_keepalive_connections=0)
        client = httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=timeout_s, limits=limits)
        return cls(client=client, private=private, timeout_s=timeout_s)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Posted:
        """Post once. Whether a receiver took what it did not answer is unknown; it is sent again under the same id."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._post(httpx.URL(url), body, headers)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return Posted(is_taken=False, status=0, reply=f"{type(error).__name__}: {error}"[:_REPLY_BYTES_MAX])

    async def _post(self, url: httpx.URL, body: bytes, headers: Mapping[str, str]) -> Posted:
        port = url.port or (443 if url.scheme == "https" else 80)
        found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if not self.private and not all(map(is_public, addresses)):
            return Posted(is_taken=False, status=0, reply=f"{url.host} leads to an address that is not public")
        # To the address that was judged: asked again, the name could lead elsewhere.
        request = self.client.build_request(
            "POST",
            url.copy_with(host=addresses[0]),
            content=body,
            headers={**headers, "Host": url.netloc.decode("ascii"), "Content-Type": "application/json"},
            extensions={"sni_hostname": url.host},
        )
        answer = await self.client.send(request, stream=True)
        try:
            reply = b""
            async for chunk in answer.aiter_raw():
                reply += chunk
                if len(reply) >= _REPLY_BYTES_MAX:
                    break
        finally:
            await answer.aclose()
        text = reply[:_REPLY_BYTES_MAX].decode("utf-8", "replace").replace("\0", "")
        return Posted(is_taken=answer.is_success, status=answer.status_code, reply=text)

    async def aclose(self) -> None:
        """Close connections."""
        await self.client.aclose()
