"""Answer `POST /webhooks/stripe`: 2xx only after what it says is committed, so that a lost answer is sent again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from tollkeeper_ledger.payments.signature import UntrustedError
from tollkeeper_ledger.payments.stripe_http import UnreadableError
from tollkeeper_ledger.web.body import BodyError

if TYPE_CHECKING:
    from starlette.requests import Request
    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.services.provider_events import Events
    from tollkeeper_ledger.web.body import Bodies

PATH = "/webhooks/stripe"
BODY_BYTES_MAX = 262_144


class Webhooks:
    """Take a provider's events in."""

    def __init__(self, events: Events | None, bodies: Bodies, log: FilteringBoundLogger) -> None:
        self._events = events
        self._bodies = bodies
        self._log = log

    async def answer(self, request: Request) -> JSONResponse:
        """Take one event in. An untrusted one is told no reason."""
        if self._events is None:
            return JSONResponse({"error": "no provider is configured"}, 404)
        header = request.headers.get("stripe-signature", "")
        try:
            body = await self._bodies.read(request, BODY_BYTES_MAX)
            await self._events.receive(header=header, body=body)
        except BodyError as error:
            return JSONResponse({"error": str(error)}, error.code)
        except UntrustedError as error:
            self._log.warning("event refused", reason=str(error))
            return JSONResponse({"error": "refused"}, 400)
        except UnreadableError as error:
            self._log.warning("event put off", reason=str(error))
            return JSONResponse({"error": "again later"}, 503)
        return JSONResponse({})
