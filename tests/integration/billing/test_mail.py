# ruff: noqa: SIM300 - expected first, then actual
"""Mails with the invoice as PDF through a real SMTP server: each once, however often something fails on the way."""

from __future__ import annotations

import asyncio
import email
import email.policy
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from aiosmtpd.smtp import SMTP
from billing_bench import catalogue
from tollkeeper_ledger.domain.billing_profile import BillingProfile
from tollkeeper_ledger.payments.smtp import SmtpServer
from tollkeeper_ledger.services.mailing import TRIES_MAX, Mailer
from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.services.profiles import set_profile
from tollkeeper_ledger.services.receivables import credit_invoice
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from billing_bench import BillingBench

pytestmark = pytest.mark.asyncio

HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)


class Postbox:
    """A mail server's handler: keeps what it accepts, and answers as it is told."""

    def __init__(self) -> None:
        self.mails: list[email.message.EmailMessage] = []
        self.answers: dict[str, list[str]] = {"rcpt": [], "data": []}
        self.hangs_up_after_data = False
        self.address = ("", 0)

    async def handle_RCPT(  # noqa: N802 - the library's name
        self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        """Accept a recipient, or answer what is next."""
        if self.answers["rcpt"]:
            return self.answers["rcpt"].pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:  # noqa: N802 - the library's name
        """Keep a mail, or answer what is next."""
        if self.answers["data"]:
            return self.answers["data"].pop(0)
        parsed = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(parsed, email.message.EmailMessage)
        self.mails.append(parsed)
        if self.hangs_up_after_data:
            server.transport.abort()
        return "250 kept"


@asynccontextmanager
async def mail_server() -> AsyncIterator[Postbox]:
    """Run a mail server."""
    box = Postbox()
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(box, enable_SMTPUTF8=True), "127.0.0.1", 0)
    box.address = server.sockets[0].getsockname()
    async with server:
        yield box


class Post:
    """A ledger that sends to a mail server."""

    def __init__(self, bench: BillingBench, box: Postbox) -> None:
        self.bench, self.box = bench, box
        self.now = datetime(2026, 10, 1, tzinfo=UTC)
        url = f"smtp://{box.address[0]}:{box.address[1]}"
        log = structlog.wrap_logger(structlog.ReturnLogger())
        self.mailer = Mailer(bench.billing, SmtpServer.from_url(url), "billing@example.com", lambda: self.now, log)

    async def bill(self, locale: str = "en") -> Any:
        """Bill one hour to a payer with an address and give the invoice's id."""
        await self.bench.apply(catalogue(self.bench.start, "code"))
        (row,) = await self.bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'code'")
        async with transaction(self.bench.billing) as conn:
            profile = BillingProfile(email="ap@customer.example", locale=locale, paper="letter")
            await set_profile(conn, row["tenant_id"], profile, act=await self.act(conn))
        await self.bench.set_now(self.bench.start + HOUR + GRACE)
        await self.bench.run()
        (row,) = await self.bench.rows("SELECT invoice_id FROM invoice")
        return row["invoice_id"]

    async def act(self, conn: Any) -> Act:
        """Give who does it."""
        return Act(actor="test", request_id=uuid.uuid4().hex, now=await ledger_now(conn))

    async def states(self) -> list[tuple[str, str, int]]:
        """Give kind, state and number of tries of each mail."""
        rows = await self.bench.rows(
            "SELECT m.kind, m.state, (SELECT count(*) FROM mail_attempt a WHERE a.mail_id = m.mail_id) AS tries"
            " FROM mail m ORDER BY m.kind"
        )
        return [tuple(row) for row in rows]


async def test_an_invoice_and_its_credit_note_are_sent_with_their_pdfs(bench: BillingBench) -> None:
    """One mail each, in the payer's language, PDF attached, under an id of its own; two workers send none twice."""
    async with mail_server() as box:
        post = Post(bench, box)
        invoice_id = await post.bill(locale="de")
        async with transaction(bench.billing) as conn:
            await credit_invoice(conn, invoice_id, amount_minor=500, note="", refund=False, act=await post.act(conn))
        await asyncio.gather(post.mailer.run_all(), post.mailer.run_all())
        assert 0 == await post.mailer.run_all()
        assert [("credit_note", "sent", 1), ("invoice", "sent", 1)] == await post.states()
        subjects = sorted(mail["Subject"] for mail in box.mails)
        assert ["Gutschrift TK-CN-000001 von Example AI GmbH", "Rechnung TK-000001 von Example AI GmbH"] == subjects
        assert 2 == len({mail["Message-ID"] for mail in box.mails})
        for mail in box.mails:
            assert ("Example AI GmbH <billing@example.com>", "ap@customer.example") == (mail["From"], mail["To"])
            (pdf,) = mail.iter_attachments()
            assert b"%PDF-" == pdf.get_content()[:5]
            assert pdf.get_filename() in {"TK-000001.pdf", "TK-CN-000001.pdf"}
        (bill,) = [mail for mail in box.mails if mail["Subject"].startswith("Rechnung")]
        for subtype in ("plain", "html"):
            body = bill.get_body((subtype,))
            assert body is not None
            # The credit note came before the mail went out: what is still to pay is told.
            assert "15,00\N{NO-BREAK SPACE}$" in body.get_content()


async def test_a_server_that_says_later_is_tried_again_and_one_that_says_no_is_not(bench: BillingBench) -> None:
    """4xx: again after a minute, then two; 5xx: failed. Each try is a row with the server's words."""
    async with mail_server() as box:
        post = Post(bench, box)
        await post.bill()
        box.answers["rcpt"], box.answers["data"] = ["451 later"], ["452 full"]
        assert 1 == await post.mailer.run_all()
        post.now += timedelta(seconds=59)
        assert 0 == await post.mailer.run_all()
        post.now += timedelta(seconds=1)
        assert 1 == await post.mailer.run_all()
        post.now += timedelta(seconds=120)
        assert 1 == await post.mailer.run_all()
        assert [("invoice", "sent", 3)] == await post.states()
        assert 1 == len(box.mails)
        rows = await bench.rows("SELECT reply, handed_at IS NULL AS unhanded FROM mail_attempt ORDER BY attempt")
        assert [True, False, False] == [row["unhanded"] for row in rows]
        assert all(text in row["reply"] for text, row in zip(("later", "full", "kept"), rows, strict=True))
        await bench.rows("UPDATE mail SET state = 'queued'")
        box.answers["rcpt"] = ["550 no such user"]
        post.now += timedelta(days=1)
        await post.mailer.run_all()
        assert [("invoice", "failed", 4)] == await post.states()


async def test_what_the_server_may_have_taken_is_never_sent_again(bench: BillingBench) -> None:
    """The line breaks after the mail's bytes, or the worker dies then: unknown, not again; dying before: again."""
    async with mail_server() as box:
        post = Post(bench, box)
        await post.bill()
        box.hangs_up_after_data = True
        await post.mailer.run_all()
        box.hangs_up_after_data = False
        assert [("invoice", "unknown", 1)] == await post.states()
        post.now += timedelta(days=3)
        assert 0 == await post.mailer.run_all()
        assert 1 == len(box.mails)
        for handed, expected in (("now()", "unknown"), ("NULL", "sent")):
            await bench.rows(f"UPDATE mail_attempt SET handed_at = {handed}, ended_at = NULL")  # noqa: S608 - above
            await bench.rows("UPDATE mail SET state = 'queued'")
            post.now += timedelta(hours=1)
            await post.mailer.run_all()
            ((_, state, _),) = await post.states()
            assert expected == state
        assert 2 == len(box.mails)


async def test_a_server_that_is_away_is_tried_for_days_and_then_given_up(bench: BillingBench) -> None:
    """Nobody listens: queued with doubled waits until the last try, then failed."""
    async with mail_server() as box:
        post = Post(bench, box)
        await post.bill()
    for _ in range(TRIES_MAX):
        assert 1 == await post.mailer.run_all()
        post.now += timedelta(days=4)
    assert 0 == await post.mailer.run_all()
    assert [("invoice", "failed", TRIES_MAX)] == await post.states()


async def test_a_mail_that_cant_be_made_is_given_up(bench: BillingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails while a mail is made, it is tried as often as one that no server takes, and then is `failed`."""

    def fails(*_: object, **__: object) -> None:
        raise LookupError("no such letter")

    monkeypatch.setattr("tollkeeper_ledger.services.mailing.render_pdf", fails)
    async with mail_server() as box:
        post = Post(bench, box)
        await post.bill()
        for _ in range(TRIES_MAX):
            with pytest.raises(LookupError):
                await post.mailer.run_all()
            assert [("invoice", "queued")] == [state[:2] for state in await post.states()]
            post.now += HOUR
        assert 1 == await post.mailer.run_all()
        assert 0 == await post.mailer.run_all()
        assert [("invoice", "failed", TRIES_MAX)] == await post.states()
