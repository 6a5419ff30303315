"""Answer `POST /webhooks/stripe`: 2xx only after what it says is committed, so that a lost answer is sent again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.payments.signature import UntrustedError
from tollkeeper_ledger.payments.stripe_http import UnreadableError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.services.provider_events import Events

PATH = b"/webhooks/stripe"
BODY_BYTES_MAX = 262_144


async def answer_event(
    events: Events | None, *, header: str, body: bytes, log: FilteringBoundLogger
) -> tuple[str, bytes]:
    """Take an event in and give status line and body. An untrusted one is told no reason."""
    if events is None:
        return "404 Not Found", b'{"error":"no provider is configured"}'
    try:
        await events.receive(header=header, body=body)
    except UntrustedError as error:
        log.warning("event refused", reason=str(error))
        return "400 Bad Request", b'{"error":"refused"}'
    except UnreadableError as error:
        log.warning("event put off", reason=str(error))
        return "503 Service Unavailable", b'{"error":"again later"}'
    return "200 OK", b"{}"
