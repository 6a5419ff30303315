"""Send queued mails: each try is a row; what the server may have taken is never sent again by itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from tollkeeper_ledger.payments.smtp import NotSentError, UnknownError
from tollkeeper_ledger.services.alert_mail import make_alert_message
from tollkeeper_ledger.services.pdf.mail_texts import WARNINGS, mail_texts
from tollkeeper_ledger.services.pdf.render import render_pdf
from tollkeeper_ledger.store import mails
from tollkeeper_ledger.store.alerts import read_alert
from tollkeeper_ledger.store.logos import logo_of
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.payments.smtp import SmtpServer
    from tollkeeper_ledger.store.mails import Mail
    from tollkeeper_ledger.store.pool import Connection, Pool, Row

TRIES_MAX = 12
"""With doubled waits from a minute on: two days and a half."""

_FIRST_WAIT_S = 60


@dataclass(frozen=True, slots=True)
class Mailer:
    """Sends what is queued. Any number may run at once."""

    pool: Pool
    server: SmtpServer
    sender: str
    """Empty: the seller's address."""
    now: Callable[[], datetime]
    log: FilteringBoundLogger
    fonts: str = ""
    """Folder of fonts for letters that the shipped ones lack; empty: none."""
    cards_at: str = ""
    """Page on which payers log in to change their cards; empty: there is none."""

    async def run_all(self) -> int:
        """Try every mail that waits; give how many were tried."""
        tried = 0
        while await self.run_once():
            tried += 1
        return tried

    async def run_once(self) -> bool:
        """Try the mail that waits longest; False where none waits."""
        async with transaction(self.pool) as conn:
            mail = await mails.claim_mail(conn, now=self.now())
            if mail is None:
                return False
            last = await mails.last_try(conn, mail)
            if last is not None and last.is_handed and not last.is_ended:
                # A worker died after the server may have taken it: a second one is worse than a question to a person.
                await mails.set_state(conn, mail, "unknown", next_at=self.now())
                return True
            number = 1 if last is None else last.attempt + 1
            if number > TRIES_MAX:
                # Whoever tried last died, or found nothing that could be sent: else it would have ended there.
                await mails.set_state(conn, mail, "failed", next_at=self.now())
                self.log.error("mail not sent", mail=str(mail.mail_id), state="failed", reply="")
                return True
            await mails.begin_try(conn, mail, number, now=self.now())
            make = await self._content_of(conn, mail)
        await self._send(mail, number, await asyncio.to_thread(make))
        return True

    async def _content_of(self, conn: Connection, mail: Mail) -> Callable[[], EmailMessage]:
        """Read what a mail is made of; what is given makes it."""
        if mail.kind == "alert":
            return partial(make_alert_message, mail, await read_alert(conn, mail.stage), sender=self.sender)
        content = await mails.read_content(
            conn, mail.invoice_id, credit_note=mail.stage if mail.kind == "credit_note" else ""
        )
        logo = await logo_of(conn, content["document"])
        return partial(
            make_message, mail, content, sender=self.sender, logo=logo, fonts=self.fonts, cards_at=self.cards_at
        )

    async def _send(self, mail: Mail, number: int, message: EmailMessage) -> None:

        async def hand_over() -> None:
            async with transaction(self.pool) as conn:
                await mails.hand_over(conn, mail, number, now=self.now())

        state, reply = "sent", ""
        try:
            reply = await self.server.send(
                sender=str(message["From"].addresses[0].addr_spec),
                recipient=mail.recipient,
                mail=message.as_bytes(policy=SMTP),
                hand_over=hand_over,
            )
        except NotSentError as error:
            state, reply = "failed" if error.is_final or number >= TRIES_MAX else "queued", str(error)
        except UnknownError as error:
            state, reply = "unknown", str(error)
        if state != "sent":
            self.log.warning("mail not sent", mail=str(mail.mail_id), state=state, reply=reply)
        async with transaction(self.pool) as conn:
            await mails.end_try(conn, mail, number, now=self.now(), reply=reply)
            wait = timedelta(seconds=_FIRST_WAIT_S * 2 ** (number - 1))
            await mails.set_state(conn, mail, state, next_at=self.now() + wait)


def make_message(
    mail: Mail, content: Row, *, sender: str, logo: str, fonts: str = "", cards_at: str = ""
) -> EmailMessage:
    """Give a mail with its PDF, a warning without: the same bytes on every try but for the boundary, one Message-ID."""
    texts = mail_texts(
        mail.kind,
        content["document"],
        due_at=content["due_at"],
        due_minor=content["due_minor"],
        pay_url=content["pay_url"],
        card_url=_login_of(cards_at, mail.recipient),
        stage=mail.stage,
    )
    address = sender or texts.seller_email
    message = EmailMessage(policy=SMTP)
    message["From"] = Address(display_name=texts.seller, addr_spec=address)
    if texts.seller_email and texts.seller_email != address:
        message["Reply-To"] = texts.seller_email
    message["To"] = mail.recipient
    message["Subject"] = texts.subject
    message["Message-ID"] = f"<{mail.mail_id}@{address.rpartition('@')[2] or 'localhost'}>"
    warned_at = mail.queued_at if mail.kind in WARNINGS else None
    message["Date"] = texts.date if warned_at is None else format_datetime(warned_at)
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(texts.body)
    message.add_alternative(texts.html, subtype="html")
    if warned_at is not None:
        return message
    pdf = render_pdf(content["document"], digest=content["digest"], paper=texts.paper, logo=logo, fonts=fonts)
    message.add_attachment(pdf, maintype="application", subtype="pdf", filename=f"{texts.number}.pdf")
    return message


def _login_of(page: str, address: str) -> str:
    """Give the page on which cards are changed, with the payer's address filled in; empty where there is none."""
    if not page:
        return ""
    return f"{page}{'&' if '?' in page else '?'}{urlencode({'prefilled_email': address})}"
