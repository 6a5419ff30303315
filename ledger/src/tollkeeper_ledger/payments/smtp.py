"""Speak SMTP so that it is known, at each moment, whether the server can have taken a mail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import aiosmtplib

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_TIMEOUT_S = 60.0
_PERMANENT = 500
_REPLY_CHARS_MAX = 300


class NotSentError(Exception):
    """Say that the server has not taken a mail, and whether trying again may help."""

    def __init__(self, reply: str, *, is_final: bool) -> None:
        super().__init__(reply)
        self.is_final = is_final


class UnknownError(Exception):
    """Say that the server was given a mail and never answered."""


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """Where mails are given to."""

    host: str
    port: int
    user: str
    password: str
    is_tls: bool
    """TLS from the start; else STARTTLS where the server offers it."""

    @classmethod
    def from_url(cls, url: str) -> SmtpServer:
        """Read `smtp://USER:PASSWORD@HOST:PORT`, or smtps. Raises ValueError for anything else."""
        parts = urlsplit(url)
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise ValueError("not an smtp:// or smtps:// address")
        is_tls = parts.scheme == "smtps"
        return cls(
            host=parts.hostname,
            port=parts.port or (465 if is_tls else 587),
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            is_tls=is_tls,
        )

    async def send(self, *, sender: str, recipient: str, mail: bytes, hand_over: Callable[[], Awaitable[None]]) -> str:
        """Give the server a mail and give its answer; `hand_over` is awaited right before the mail's bytes go out.

        Raises NotSentError: it has not taken it; UnknownError: nobody knows.
        """
        client = aiosmtplib.SMTP(
            hostname=self.host,
            port=self.port,
            use_tls=self.is_tls,
            username=self.user or None,
            password=self.password or None,
            timeout=_TIMEOUT_S,
        )
        try:
            try:
                await client.connect()
                await client.mail(sender)
                await client.rcpt(recipient)
            except aiosmtplib.SMTPException as error:
                raise _not_sent(error) from error
            except OSError as error:
                raise NotSentError(str(error)[:_REPLY_CHARS_MAX], is_final=False) from error
            await hand_over()
            return await _give(client, mail)
        finally:
            client.close()


async def _give(client: aiosmtplib.SMTP, mail: bytes) -> str:
    try:
        answer = await client.data(mail)
    except aiosmtplib.SMTPDataError as error:
        raise _not_sent(error) from error
    except (aiosmtplib.SMTPException, OSError) as error:
        raise UnknownError(str(error)[:_REPLY_CHARS_MAX]) from error
    return f"{answer.code} {answer.message}"[:_REPLY_CHARS_MAX]


def _not_sent(error: aiosmtplib.SMTPException) -> NotSentError:
    code = error.code if isinstance(error, aiosmtplib.SMTPResponseException) else 0
    refused = getattr(error, "recipients", None)
    if refused:
        code = refused[0].code
    return NotSentError(str(error)[:_REPLY_CHARS_MAX], is_final=code >= _PERMANENT)
