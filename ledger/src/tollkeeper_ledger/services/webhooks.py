"""Send alerts to receivers: signed, under one id however often, for three days; what was given up can be sent again."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.catalogue.canonical import canonical_json
from tollkeeper_ledger.domain.webhooks import signatures, wait_s
from tollkeeper_ledger.store import webhooks as store
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.domain.alerts import Json
    from tollkeeper_ledger.payments.webhook_http import WebhookHttp
    from tollkeeper_ledger.services.sealing import Sealer
    from tollkeeper_ledger.store.alerts import Alert
    from tollkeeper_ledger.store.pool import Connection, Pool
    from tollkeeper_ledger.store.webhooks import Claimed

RECEIVERS_AT_ONCE = 16
"""Receivers that one ledger sends to at a time, a message each: a slow one holds up itself alone."""

LOOK_S = 1.0
"""Real seconds between looks while nothing waits."""

_AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)


async def queue_webhooks(conn: Connection, alerts: Sequence[Alert], told: Callable[[str, Alert], Json]) -> None:
    """Queue a message to each receiver of each alert, in the transaction that adds the alerts.

    `told` gives what is told of an alert of a tenant, named by its wire id.
    """
    receivers = await store.read_receivers(conn, {one.figure.tenant_id for one in alerts}) if alerts else []
    queued = [
        store.NewMessage(
            tenant_id=one.figure.tenant_id,
            webhook_id=row["webhook_id"],
            alert_id=one.alert_id,
            body=_body(one, told(row["wire_id"], one)),
        )
        for one in alerts
        for row in receivers
        if row["tenant_id"] == one.figure.tenant_id
    ]
    await store.queue_messages(conn, queued, now=_AT_ONCE)


def _body(alert: Alert, told: Json) -> bytes:
    kind = "trial.ending" if alert.figure.kind == "trial" else "alert.reached"
    return canonical_json({"type": kind, "timestamp": alert.fired_at.isoformat(), "data": told})


@dataclass(frozen=True, slots=True)
class WebhookSender:
    """Sends what is queued. Any number may run at once."""

    pool: Pool
    http: WebhookHttp
    now: Callable[[], datetime]
    log: FilteringBoundLogger
    sealer: Sealer
    _busy: set[UUID] = field(default_factory=set)
    """Receivers that are being sent to."""
    _done: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Send what is queued until cancelled: to each receiver one message at a time, to many receivers at once."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._done.clear()
                message = None
                try:
                    message = await self._claim() if len(self._busy) < RECEIVERS_AT_ONCE else None
                except Exception as error:  # noqa: BLE001 - a loop's top: the next look may succeed
                    self.log.warning("webhooks can't be read", error=str(error), kind=type(error).__name__)
                if message is not None:
                    tasks.create_task(self._sent(message))
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._done.wait()

    async def run_all(self) -> int:
        """Send until nothing waits, one after the other; give how many tries were made."""
        count = 0
        while (message := await self._claim()) is not None:
            await self._sent(message)
            count += 1
        return count

    async def _claim(self) -> Claimed | None:
        async with transaction(self.pool) as conn:
            message = await store.claim_message(conn, now=self.now(), but=self._busy)
        if message is not None:
            self._busy.add(message.webhook_id)
        return message

    async def _sent(self, message: Claimed) -> None:
        try:
            await self._send(message)
        except Exception as error:  # noqa: BLE001 - it is claimed anew in two minutes, under the same id
            self.log.warning("webhook not kept", webhook=str(message.webhook_id), error=str(error))
        finally:
            self._busy.discard(message.webhook_id)
            self._done.set()

    async def _send(self, message: Claimed) -> None:
        name, at_s = f"msg_{message.message_id}", int(self.now().timestamp())
        # Of a key that is lost: what was rotated since signs alone.
        opened = self.sealer.open_some(message.secrets, about=message.webhook_id)
        headers = {
            "webhook-id": name,
            "webhook-timestamp": str(at_s),
            "webhook-signature": signatures(opened, message_id=name, at_s=at_s, body=message.body),
        }
        posted = await self.http.post(message.url, message.body, headers)
        wait = wait_s(message.tries)
        state = "sent" if posted.is_taken else "queued" if wait is not None else "dead"
        if not posted.is_taken:
            self.log.warning(
                "webhook not taken", message=name, webhook=str(message.webhook_id), state=state, status=posted.status
            )
        async with transaction(self.pool) as conn:
            await store.end_try(
                conn,
                message,
                state=state,
                next_at=self.now() + timedelta(seconds=wait or 0),
                status=posted.status,
                reply=posted.reply,
            )
