# ruff: noqa: SIM300 - expected first, then actual
"""What was given or added is listed and taken back: coupons, grants, items; credit notes are shown."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from billing_bench import catalogue, use
from served_billing import command_line, served
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc, billing_pb2, payments_pb2

if TYPE_CHECKING:
    from billing_bench import BillingBench
    from tollkeeper_ledger.config import Settings

pytestmark = pytest.mark.asyncio

HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)
MILLION = 1_000_000


async def audited(bench: BillingBench) -> list[str]:
    """Give which acts that take something back are in the audit log, in order."""
    rows = await bench.rows(
        "SELECT action FROM audit_log WHERE action ~ '^(Remove|Revoke)' AND before IS NOT NULL ORDER BY audit_id"
    )
    return [row["action"] for row in rows]


async def test_what_is_taken_back_is_on_no_later_invoice(
    bench: BillingBench, ledger_settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    """One hour has coupon, credit, recurring units and an item; taken back, the next one has none of them.

    A repeat changes nothing, each act is audited once, and a recurring grant does not come again.
    """
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    async with served(ledger_settings, bench.url) as (_, _, address):
        cli = command_line(address, capfd)
        of = ("--tenant", "code")
        coupon = (await cli("coupon", "add", "Spring", *of, "--percent", "50")).strip()
        units = await cli("grant", "create", str(MILLION), *of, "--meter", "context_tokens", "--recurs")
        credit = await cli("grant", "create", "100000", *of, "--currency", "USD")
        added = ("invoice", "add-item", "Setup", "--amount-minor", "700", "--currency", "USD", *of)
        item, kept = (await cli(*added)).strip(), (await cli(*added)).strip()
        await cli("invoice", "remove-item", item, *of, "--note", "twice")
        assert [kept] == [row["item_id"] for row in await cli("invoice", "items", "-o", "json")]
        # 5 million tokens, 1 included and 1 granted: 3 x 2.50 and 20.00 of fee; credit pays half, the item is due.
        await bench.set_now(bench.start + HOUR + GRACE)
        await bench.send(log, use("a", bench.start, context_tokens=5 * MILLION), watermark=bench.start + HOUR)
        await cli("invoice", "run")
        await cli("invoice", "remove-item", kept, *of, code=1)
        (billed,) = await cli("invoice", "items", "--billed", "-o", "json")
        assert ("billed", "TK-000001") == (billed["state"], billed["invoice"])
        for _ in range(2):
            await cli("coupon", "remove", coupon, *of, "--note", "over")
        taken = [await cli("grant", "revoke", grant.strip(), *of) for grant in (units, units, credit)]
        assert 700 == (await bench.documents("code"))[0]["total_minor"]
        assert [MILLION, 0, 100_000 - 1_375] == [int(one) for one in taken]
        assert [] == await cli("coupon", "list", "-o", "json")
        (past,) = await cli("coupon", "list", "--past", "-o", "json")
        assert ("removed", "50", None) == (past["state"], past["percent"], past["invoices_left"])
        await bench.set_now(bench.start + 2 * HOUR + GRACE)
        await bench.send(
            log, use("b", bench.start + HOUR, context_tokens=5 * MILLION), watermark=bench.start + 2 * HOUR
        )
        await cli("invoice", "run")
        assert 3_000 == (await bench.documents("code"))[1]["total_minor"]
        grants = await cli("grant", "list", *of, "-o", "json")
        assert [(0, True), (0, True)] == [(row["balance"], bool(row["revoked_at"])) for row in grants]
        moved = [row["kind"] for row in await cli("grant", "history", *of, "-o", "json")]
        assert 2 == moved.count("revoked")
    assert ["RemoveInvoiceItem", "RemoveCoupon", "RevokeGrant", "RevokeGrant"] == await audited(bench)


async def test_what_a_void_invoice_gives_a_revoked_grant_is_not_used(
    bench: BillingBench, ledger_settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    """Credit that was used, revoked and came back with a void invoice pays nothing: it expires with the next close."""
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    async with served(ledger_settings, bench.url) as (_, _, address):
        cli = command_line(address, capfd)
        credit = (await cli("grant", "create", "1000", "--tenant", "code", "--currency", "USD")).strip()
        await bench.set_now(bench.start + HOUR + GRACE)
        await bench.send(log, watermark=bench.start + HOUR, tenants=("code",))
        await cli("invoice", "run")
        assert "0" == (await cli("grant", "revoke", credit, "--tenant", "code")).strip()
        await cli("invoice", "void", "TK-000001")
        await bench.set_now(bench.start + 2 * HOUR + GRACE)
        await bench.send(log, watermark=bench.start + 2 * HOUR, tenants=("code",))
        await cli("invoice", "run")
        assert [1_000, 2_000] == [one["total_minor"] for one in await bench.documents("code")]
        moved = await cli("grant", "history", "--tenant", "code", "-o", "json")
        assert [("granted", 1000), ("used", 0), ("returned", 1000), ("expired", 0)] == [
            (row["kind"], row["balance"]) for row in moved
        ]


async def test_credit_notes_are_listed_and_shown(
    bench: BillingBench, ledger_settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    """Newest first, page after page, by payer and invoice; one by its number or its invoice's, with its taxes."""
    await bench.apply(catalogue(bench.start, "code", "conv"))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, watermark=bench.start + HOUR, tenants=("code", "conv"))
    async with served(ledger_settings, bench.url) as (billing, _, address):
        cli = command_line(address, capfd)
        await cli("payment", "set-profile", "--tenant", "code", "--tax", "VAT=19")
        await cli("invoice", "run")
        invoices = {row["tenant"]: row["number"] for row in await cli("invoice", "list", "-o", "json")}
        await cli("invoice", "credit", invoices["code"], "1190", "--note", "outage")
        for minutes, amount in enumerate(("100", "200"), 1):
            await bench.set_now(bench.start + HOUR + GRACE + timedelta(minutes=minutes))
            await cli("invoice", "credit", invoices["conv"], amount)
        notes = await cli("invoice", "credit-notes", "-o", "json")
        assert [("conv", 200), ("conv", 100), ("code", 1190)] == [(row["tenant"], row["amount_minor"]) for row in notes]
        paged, request = [], billing_pb2.ListCreditNotesRequest(page_size=1)
        while True:
            page = await billing.ListCreditNotes(request)
            paged += [note.number for note in page.credit_notes]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert [row["number"] for row in notes] == paged
        only = await cli("invoice", "credit-notes", "--invoice", invoices["conv"], "-o", "json")
        assert notes[:2] == only
        assert notes[2:] == await cli("invoice", "credit-notes", "--tenant", "code", "-o", "json")
        for name in (notes[2]["number"], invoices["code"]):
            shown = await cli("invoice", "credit-note", name, "-o", "json")
            assert ("outage", 190, [(1_000, 190)]) == (
                shown["note"],
                shown["tax_minor"],
                [(tax["base_minor"], tax["tax_minor"]) for tax in shown["taxes"]],
            )
        assert "TK-CN-00000" in await cli("invoice", "credit-note", notes[0]["number"])
        await cli("invoice", "credit-note", invoices["conv"], code=2)
        await cli("invoice", "credit-note", "TK-CN-999999", code=2)


REFUSED: list[tuple[str, Any, str]] = [
    ("RemoveCoupon", admin_pb2.RemoveCouponRequest(request_id="a", tenant="code", coupon_id="x"), "coupon_id"),
    ("RemoveCoupon", admin_pb2.RemoveCouponRequest(request_id="b", tenant="code", coupon_id="0" * 32), "coupon_id"),
    ("RevokeGrant", admin_pb2.RevokeGrantRequest(request_id="c", tenant="code", grant_id="x"), "grant_id"),
    ("RevokeGrant", admin_pb2.RevokeGrantRequest(request_id="d", tenant="code", grant_id="0" * 32), "grant_id"),
    (
        "RevokeGrant",
        admin_pb2.RevokeGrantRequest(request_id="e", tenant="code", grant_id="0" * 32, note="n" * 501),
        "note",
    ),
    ("ListCoupons", admin_pb2.ListCouponsRequest(page_token="x"), "page_token"),  # noqa: S106 - not a secret
]


async def test_what_is_not_there_is_not_taken_back(bench: BillingBench, ledger_settings: Settings) -> None:
    """Ids of nothing, or of another tenant's, are refused by field; the other tenant's stay."""
    await bench.apply(catalogue(bench.start, "code", "conv"))
    async with (
        served(ledger_settings, bench.url) as (_, payments, address),
        grpc.aio.insecure_channel(address) as other,
    ):
        admin: Any = admin_pb2_grpc.AdminServiceStub(other)
        for name, request, field in REFUSED:
            with pytest.raises(grpc.aio.AioRpcError, match=field) as refused:
                await getattr(admin, name)(request)
            assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()
        add = admin_pb2.AddCouponRequest(request_id="f", tenant="conv", name="c", percent="10", periods=2)
        coupon_id = (await admin.AddCoupon(add)).coupon_id
        foreign = admin_pb2.RemoveCouponRequest(request_id="g", tenant="code", coupon_id=coupon_id)
        with pytest.raises(grpc.aio.AioRpcError, match="coupon_id"):
            await admin.RemoveCoupon(foreign)
        item = payments_pb2.AddInvoiceItemRequest(
            request_id="h", tenant="conv", description="d", amount_minor=1, currency="USD"
        )
        item_id = (await payments.AddInvoiceItem(item)).item_id
        with pytest.raises(grpc.aio.AioRpcError, match="waits"):
            await payments.RemoveInvoiceItem(
                payments_pb2.RemoveInvoiceItemRequest(request_id="i", tenant="code", item_id=item_id)
            )
        (coupon,) = (await admin.ListCoupons(admin_pb2.ListCouponsRequest())).coupons
        assert ("conv", "good", 2) == (coupon.tenant, coupon.state, coupon.periods_left)
        assert item_id == (await payments.ListInvoiceItems(payments_pb2.ListInvoiceItemsRequest())).items[0].item_id
