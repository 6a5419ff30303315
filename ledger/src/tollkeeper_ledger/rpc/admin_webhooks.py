# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""AdminService's part about receivers of alerts."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import admin_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.webhooks import SECRET_BYTES, secret_text, url_fault
from tollkeeper_ledger.rpc.acting import act_of, timestamp
from tollkeeper_ledger.rpc.fields import id_of
from tollkeeper_ledger.rpc.idempotent import answer_once
from tollkeeper_ledger.rpc.paging import before_of, next_token, page_size
from tollkeeper_ledger.services.sealing import SealedError, webhook_sealer
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store import webhooks as store
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from uuid import UUID

    import grpc.aio

    from tollkeeper_ledger.rpc.idempotent import Mutation
    from tollkeeper_ledger.services.limits import Limits
    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.store.pool import Connection, Row

    Context = grpc.aio.ServicerContext[Any, Any]

_STATES = ("queued", "sent", "dead")


class AdminWebhooks:
    """Serve operators what concerns receivers."""

    def __init__(self, resources: Resources, limits: Limits) -> None:
        self._webhook_pool = resources.pools.billing
        self._webhook_private = resources.settings.webhook_private
        self._webhook_sealer = webhook_sealer(resources.settings)

    async def CreateWebhook(
        self, request: admin_pb2.CreateWebhookRequest, context: Context
    ) -> admin_pb2.CreateWebhookResponse:
        """Add a receiver; its secret is told to this call alone, and its repeats while it signs."""
        fault = url_fault(request.url, private=self._webhook_private)
        if fault:
            bound = "https, without user, password and fragment, up to 2,000 characters"
            raise InvalidFieldError("url", fault, value=ascii(request.url[:64]), bound=bound)
        only = await need_tenant(self._webhook_pool, request.tenant) if request.tenant else None

        async def work() -> admin_pb2.CreateWebhookResponse:
            webhook_id, secret = uuid.uuid4(), secret_text(secrets.token_bytes(SECRET_BYTES))
            sealed = self._webhook_sealer.seal(secret, about=webhook_id)
            await store.add_webhook(conn, webhook_id, url=request.url, only=only, secret=sealed)
            await _audit(conn, request, context, webhook_id, after={"url": request.url, "tenant": request.tenant})
            return admin_pb2.CreateWebhookResponse(webhook_id=str(webhook_id), secret=_digest(secret))

        async with transaction(self._webhook_pool) as conn:
            answer = await answer_once(conn, request, admin_pb2.CreateWebhookResponse, work)
            answer.secret = await self._told(conn, uuid.UUID(answer.webhook_id), answer.secret)
            return answer

    async def ListWebhooks(
        self, request: admin_pb2.ListWebhooksRequest, context: Context
    ) -> admin_pb2.ListWebhooksResponse:
        """List receivers, oldest first; their secrets are not told again."""
        async with transaction(self._webhook_pool) as conn:
            rows = await store.read_webhooks(conn)
        return admin_pb2.ListWebhooksResponse(
            webhooks=[
                admin_pb2.Webhook(
                    webhook_id=str(row["webhook_id"]),
                    url=row["url"],
                    tenant=row["tenant"],
                    secrets=row["secrets"],
                    queued=row["queued"],
                    dead=row["dead"],
                )
                for row in rows
            ]
        )

    async def RotateWebhookSecret(
        self, request: admin_pb2.RotateWebhookSecretRequest, context: Context
    ) -> admin_pb2.RotateWebhookSecretResponse:
        """Sign with another secret beside the newest one."""
        webhook_id = id_of(request.webhook_id, "webhook")

        async def work() -> admin_pb2.RotateWebhookSecretResponse:
            secret = secret_text(secrets.token_bytes(SECRET_BYTES))
            if not await store.rotate_secret(
                conn, webhook_id, secret=self._webhook_sealer.seal(secret, about=webhook_id)
            ):
                raise _unknown(request.webhook_id)
            await _audit(conn, request, context, webhook_id, after={"secrets": 2})
            return admin_pb2.RotateWebhookSecretResponse(secret=_digest(secret))

        async with transaction(self._webhook_pool) as conn:
            answer = await answer_once(conn, request, admin_pb2.RotateWebhookSecretResponse, work)
            answer.secret = await self._told(conn, webhook_id, answer.secret)
            return answer

    async def _told(self, conn: Connection, webhook_id: UUID, digest: str) -> str:
        """Give the secret of this digest where it still signs, else nothing: answers are kept without secrets."""
        stored = await store.read_secrets(conn, webhook_id)
        try:
            opened = self._webhook_sealer.open_some(stored, about=webhook_id)
        except SealedError:
            return ""
        return next((secret for secret in opened if _digest(secret) == digest), "")

    async def RemoveWebhook(
        self, request: admin_pb2.RemoveWebhookRequest, context: Context
    ) -> admin_pb2.RemoveWebhookResponse:
        """Send to a receiver no more, and forget its secrets."""
        webhook_id = id_of(request.webhook_id, "webhook")

        async def work() -> admin_pb2.RemoveWebhookResponse:
            if not await store.remove_webhook(conn, webhook_id):
                raise _unknown(request.webhook_id)
            await _audit(conn, request, context, webhook_id, after=None)
            return admin_pb2.RemoveWebhookResponse()

        async with transaction(self._webhook_pool) as conn:
            return await answer_once(conn, request, admin_pb2.RemoveWebhookResponse, work)

    async def ListWebhookMessages(
        self, request: admin_pb2.ListWebhookMessagesRequest, context: Context
    ) -> admin_pb2.ListWebhookMessagesResponse:
        """List messages, newest first."""
        if request.state and request.state not in _STATES:
            raise InvalidFieldError("state", "is not known", value=ascii(request.state[:32]), bound=", ".join(_STATES))
        size = page_size(request.page_size)
        async with transaction(self._webhook_pool) as conn:
            rows = await store.list_messages(
                conn, before=before_of(request.page_token), count_max=size + 1, state=request.state or None
            )
        token = next_token(rows, size, lambda row: (row["queued_at"], row["message_id"]))
        return admin_pb2.ListWebhookMessagesResponse(messages=map(_message, rows[:size]), next_page_token=token)

    async def ReplayWebhookMessages(
        self, request: admin_pb2.ReplayWebhookMessagesRequest, context: Context
    ) -> admin_pb2.ReplayWebhookMessagesResponse:
        """Queue messages again under the ids that they had."""
        message_id = id_of(request.message_id, "message") if request.message_id else None
        webhook_id = None if message_id else id_of(request.webhook_id, "webhook")

        async def work() -> admin_pb2.ReplayWebhookMessagesResponse:
            now = datetime.now(UTC)
            count = await store.replay(conn, now=now, message_id=message_id, webhook_id=webhook_id)
            await _audit(conn, request, context, message_id or webhook_id, after={"messages": count})
            return admin_pb2.ReplayWebhookMessagesResponse(messages=count)

        async with transaction(self._webhook_pool) as conn:
            return await answer_once(conn, request, admin_pb2.ReplayWebhookMessagesResponse, work)


async def _audit(
    conn: Connection, request: Mutation, context: Context, subject: UUID | None, *, after: dict[str, Any] | None
) -> None:
    act = await act_of(conn, request, context)
    entry = AuditEntry(subject=f"webhook/{subject}", tenant_id=None, before=None, after=after)
    action = type(request).__name__.removesuffix("Request")
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action=action, request_id=act.request_id)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _unknown(webhook_id: str) -> InvalidFieldError:
    return InvalidFieldError(
        "webhook_id", "names no receiver", value=ascii(webhook_id[:64]), remedy="ListWebhooks gives the ids"
    )


def _message(row: Row) -> admin_pb2.WebhookMessage:
    return admin_pb2.WebhookMessage(
        message_id=str(row["message_id"]),
        webhook_id=str(row["webhook_id"]),
        url=row["url"],
        tenant=row["wire_id"],
        alert_id=str(row["alert_id"]),
        state=row["state"],
        tries=row["tries"],
        status=row["status"],
        reply=row["reply"],
        queued_at=timestamp(row["queued_at"]),
        next_at=timestamp(row["next_at"]) if row["state"] == "queued" else None,
    )
