# ruff: noqa: E501, S106 - a table reads best with one wrong request a line; page tokens are no passwords
"""AdminService and BillingService over gRPC: what operators and finance see, and every way to ask wrongly."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from billing_bench import catalogue
from google.protobuf import timestamp_pb2
from rpc_support import client_of, refused
from tollkeeper.ledger.v1 import admin_pb2, billing_pb2, decisions_pb2, limits_pb2
from tollkeeper.quota.v1 import decision_pb2

if TYPE_CHECKING:
    from tollkeeper_ledger.config import Settings

pytestmark = pytest.mark.asyncio


@pytest.fixture
def settings(ledger_settings: Settings, own_database_url: str) -> Settings:
    """Configure a ledger on a database of this test's own."""
    return ledger_settings.model_copy(update={"database_url": own_database_url})


async def test_a_catalogue_is_declared_shown_and_listed(settings: Settings) -> None:
    """Apply, diff and the listings agree; a repeated request_id gets the first answer."""
    async with client_of(settings) as client:
        yaml = catalogue(client.start, "code", "conv")
        diff = await client.admin.DiffCatalogue(admin_pb2.DiffCatalogueRequest(yaml=yaml, source_name="c.yaml"))
        applied = await client.apply(yaml)
        assert list(diff.changes) == list(applied.changes)
        assert applied == await client.apply(yaml)
        assert {"unchanged"} == {change.action for change in (await client.apply(yaml, "again")).changes}
        page = await client.admin.ListTenants(admin_pb2.ListTenantsRequest(page_size=1))
        assert [tenant.tenant for tenant in page.tenants] == ["code"]
        rest = await client.admin.ListTenants(
            admin_pb2.ListTenantsRequest(page_size=1, page_token=page.next_page_token)
        )
        assert ([tenant.tenant for tenant in rest.tenants], rest.next_page_token) == (["conv"], "")
        meters = await client.admin.ListMeters(admin_pb2.ListMetersRequest())
        assert [meter.name for meter in meters.meters] == ["context_tokens", "generated_tokens"]
        plans = await client.admin.ListPlans(admin_pb2.ListPlansRequest())
        assert [(plan.name, plan.version) for plan in plans.plans] == [("free", 1), ("hourly", 1)]
        (subscription,) = (
            await client.admin.ListSubscriptions(admin_pb2.ListSubscriptionsRequest(tenant="code"))
        ).subscriptions
        assert subscription.period_end.seconds - subscription.period_start.seconds == 3600
        assert (await client.admin.GetTenant(admin_pb2.GetTenantRequest(tenant="code"))).tenant.plan == "hourly"


async def test_overrides_change_limits_and_go_again(settings: Settings) -> None:
    """An override patches one limit, a whole rule adds one; deleting gives back what was hidden; versions only rise."""
    async with client_of(settings) as client:
        await client.apply(catalogue(client.start, "code"))
        set_request = admin_pb2.SetOverrideRequest(request_id="o1", tenant="code", limit="rate", amount=90, burst=30)
        first = await client.admin.SetOverride(set_request)
        limit = first.limit
        assert (
            limit.amount,
            limit.burst,
            limit.amount_version,
            limit.source,
            limit.meter,
        ) == (90, 30, 2, "override", "context_tokens")
        assert first == await client.admin.SetOverride(set_request)
        soft = await client.admin.SetOverride(
            admin_pb2.SetOverrideRequest(
                request_id="o2", tenant="code", limit="rate", enforcement=decision_pb2.ENFORCEMENT_SOFT
            )
        )
        assert (
            soft.limit.amount,
            soft.limit.enforcement,
            soft.limit.amount_version,
        ) == (90, decision_pb2.ENFORCEMENT_SOFT, 3)
        assert soft.change > first.change
        rule = limits_pb2.LimitRule(
            meter="context_tokens",
            kind=decision_pb2.LIMIT_KIND_WINDOW,
            amount=5,
            window_unit=limits_pb2.WINDOW_UNIT_MINUTE,
            match=[limits_pb2.AttributeMatch(attribute="model", exact="gpt")],
        )
        added = await client.admin.SetOverride(
            admin_pb2.SetOverrideRequest(request_id="o3", tenant="code", limit="extra", rule=rule)
        )
        assert (added.limit.amount, added.limit.window_count, added.limit.match[0].exact) == (5, 1, "gpt")
        names = [one.name for one in (await client.admin.ListLimits(admin_pb2.ListLimitsRequest(tenant="code"))).limits]
        assert names == ["day", "extra", "rate"]
        await client.admin.DeleteOverride(admin_pb2.DeleteOverrideRequest(request_id="d", tenant="code", limit="rate"))
        limits = (await client.admin.ListLimits(admin_pb2.ListLimitsRequest(tenant="code"))).limits
        assert [(one.amount, one.burst, one.amount_version, one.source) for one in limits if one.name == "rate"] == [
            (60, 20, 4, "plan")
        ]


async def test_an_override_replaces_a_whole_rule(settings: Settings) -> None:
    """A whole rule stands for the plan's of its name in everything, and going it leaves the plan's as it was."""
    async with client_of(settings) as client:
        await client.apply(catalogue(client.start, "code"))
        asked = admin_pb2.ListLimitsRequest(tenant="code")
        before = {one.name: one for one in (await client.admin.ListLimits(asked)).limits}
        rule = limits_pb2.LimitRule(
            meter="context_tokens",
            kind=decision_pb2.LIMIT_KIND_WINDOW,
            amount=7,
            window_unit=limits_pb2.WINDOW_UNIT_WEEK,
            window_count=2,
            time_zone="Europe/Berlin",
            anchor="2026-01-08",
            key=["model"],
            failure_policy=decision_pb2.FAILURE_POLICY_CLOSED,
        )
        request = admin_pb2.SetOverrideRequest(request_id="w1", tenant="code", limit="rate", rule=rule)
        answer = await client.admin.SetOverride(request)
        (found,) = [one for one in (await client.admin.ListLimits(asked)).limits if one.name == "rate"]
        assert answer.limit == found
        rule.name, rule.source, rule.amount_version = "rate", "override", 2
        rule.enforcement = decision_pb2.ENFORCEMENT_HARD
        rule.alignment = limits_pb2.WINDOW_ALIGNMENT_CALENDAR
        rule.after_restore = limits_pb2.AFTER_RESTORE_FREEZE
        rule.decision_log = decisions_pb2.DECISION_LOG_DENIED
        assert rule == found
        wrong = limits_pb2.LimitRule()
        wrong.CopyFrom(rule)
        wrong.anchor = "someday"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.admin.SetOverride(
                admin_pb2.SetOverrideRequest(request_id="w2", tenant="code", limit="rate", rule=wrong)
            )
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await client.admin.DeleteOverride(admin_pb2.DeleteOverrideRequest(request_id="w3", tenant="code", limit="rate"))
        (after,) = [one for one in (await client.admin.ListLimits(asked)).limits if one.name == "rate"]
        before["rate"].amount_version = after.amount_version
        assert before["rate"] == after


async def test_an_override_says_which_decisions_are_kept(settings: Settings) -> None:
    """Alone or in a whole rule; how often goes with `sampled`, and what does not fit together is refused."""
    async with client_of(settings) as client:
        await client.apply(catalogue(client.start, "code"))

        async def set_log(name: str, log: int, one_in: int, **fields: Any) -> tuple[int, int]:
            request = admin_pb2.SetOverrideRequest(
                request_id=name, tenant="code", limit="rate", decision_log=log, decision_log_one_in=one_in, **fields
            )
            limit = (await client.admin.SetOverride(request)).limit
            return limit.decision_log, limit.decision_log_one_in

        off, denied, sampled = (
            decisions_pb2.DecisionLog.Value(f"DECISION_LOG_{name}") for name in ("OFF", "DENIED", "SAMPLED")
        )
        assert (off, 0) == await set_log("l1", off, 0)
        assert (off, 0) == await set_log("l2", 0, 0, amount=7)
        assert (sampled, 50) == await set_log("l3", sampled, 50)
        assert (sampled, 9) == await set_log("l4", 0, 9)
        (rule,) = [
            one
            for one in (await client.admin.ListLimits(admin_pb2.ListLimitsRequest(tenant="code"))).limits
            if one.name == "rate"
        ]
        assert (denied, 0) == await set_log("l5", denied, 0)
        assert (sampled, 9) == await set_log("l6", 0, 0, rule=rule)
        assert (off, 0) == await set_log("l7", off, 0, rule=rule)
        for name, log, one_in in (
            ("l8", sampled, 0),
            ("l9", 0, 5),
            ("l10", off, 5),
            ("l11", sampled, 1_000_001),
            ("l12", 9, 0),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await set_log(name, log, one_in)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_tenant_is_suspended_and_comes_back(settings: Settings) -> None:
    """The state changes with an audit entry, and a repeat of the same state changes nothing."""
    async with client_of(settings) as client:
        await client.apply(catalogue(client.start, "code"))
        for request_id, state in (("s1", 2), ("s2", 2), ("s3", 1)):
            answer = await client.admin.SetTenantState(
                admin_pb2.SetTenantStateRequest(request_id=request_id, tenant="code", state=state)  # type: ignore[arg-type]
            )
            assert state == answer.tenant.state
            found = await client.admin.GetTenant(admin_pb2.GetTenantRequest(tenant="code"))
            assert state == found.tenant.state


async def test_a_run_streams_and_its_invoices_are_served(settings: Settings) -> None:
    """A run tells how far it is; invoices are listed newest first, found by number and id, and come as PDF."""
    async with client_of(settings) as client:
        await client.apply(catalogue(client.start, "code", "conv"))
        preview = await client.billing.PreviewInvoice(billing_pb2.PreviewInvoiceRequest(tenant="code"))
        assert (preview.invoice.state, preview.invoice.number, preview.invoice.total_minor) == ("preview", "", 2000)
        now = timestamp_pb2.Timestamp(seconds=int(client.start.timestamp()) + 3900)
        await client.admin.SetClock(admin_pb2.SetClockRequest(request_id="c", now=now))
        steps = [step async for step in client.billing.RunInvoices(billing_pb2.RunInvoicesRequest(request_id="r"))]
        assert [(step.due, step.done) for step in steps] == [(2, 0), (2, 1), (2, 2)]
        assert [step.invoice.number for step in steps[1:]] == ["TK-000001", "TK-000002"]
        assert [len(step.invoice.lines) for step in steps[1:]] == [1, 1]
        page = await client.billing.ListInvoices(billing_pb2.ListInvoicesRequest(page_size=1))
        rest = await client.billing.ListInvoices(billing_pb2.ListInvoicesRequest(page_token=page.next_page_token))
        assert [one.number for one in [*page.invoices, *rest.invoices]] == ["TK-000002", "TK-000001"]
        assert not page.invoices[0].lines
        own = await client.billing.ListInvoices(billing_pb2.ListInvoicesRequest(tenant="conv"))
        assert [one.tenant for one in own.invoices] == ["conv"]
        by_number = await client.billing.GetInvoice(billing_pb2.GetInvoiceRequest(invoice="TK-000001"))
        by_id = await client.billing.GetInvoice(billing_pb2.GetInvoiceRequest(invoice=by_number.invoice.invoice_id))
        assert by_number == by_id
        assert (
            by_id.invoice.state,
            by_id.invoice.plan,
            by_id.invoice.total_minor,
            len(by_id.invoice.lines),
        ) == ("finalised", "hourly v1", 2000, 1)
        assert len(by_id.invoice.digest) == 64
        later = timestamp_pb2.Timestamp(seconds=now.seconds + 3600)
        await client.admin.SetClock(admin_pb2.SetClockRequest(request_id="d", now=later))
        brief = billing_pb2.RunInvoicesRequest(request_id="s", without_lines=True)
        steps = [step async for step in client.billing.RunInvoices(brief)]
        assert [step.invoice.number for step in steps[1:]] == ["TK-000003", "TK-000004"]
        assert not any(step.invoice.lines for step in steps)
        later = timestamp_pb2.Timestamp(seconds=now.seconds + 7200)
        await client.admin.SetClock(admin_pb2.SetClockRequest(request_id="e", now=later))
        brief = billing_pb2.RunInvoicesRequest(request_id="t", without_lines=True, together=True)
        steps = [step async for step in client.billing.RunInvoices(brief)]
        assert [(step.due, step.done) for step in steps] == [(2, 0), (2, 2)]
        assert [[one.number for one in step.invoices] for step in steps] == [[], ["TK-000005", "TK-000006"]]
        assert not any(step.HasField("invoice") or one.lines for step in steps for one in step.invoices)
        for paper in ("", "a4", "letter"):
            pdf = await client.billing.GetInvoicePdf(billing_pb2.GetInvoicePdfRequest(invoice="TK-000001", paper=paper))
            assert pdf.pdf.startswith(b"%PDF-")
            assert pdf.file_name == "TK-000001.pdf"


async def test_an_invoice_is_told_whole(settings: Settings) -> None:
    """Over gRPC a line has its scale, period, dimensions and steps; the invoice its parties, taxes and zone."""
    async with client_of(settings) as client:
        yaml = catalogue(client.start, "code").replace("name: base, amount", "name: base, timing: advance, amount")
        await client.apply(yaml)
        preview = await client.billing.PreviewInvoice(billing_pb2.PreviewInvoiceRequest(tenant="code"))
        told = preview.invoice
        assert (told.seller_name, told.billing_name, told.time_zone, told.tax_mode) == (
            "Example AI GmbH", "code", "UTC", "exclusive",
        )  # fmt: skip
        fee = next(line for line in told.lines if line.kind == "fee")
        assert (fee.quantity, fee.scale, fee.late) == (1, 0, False)
        assert fee.period_end.seconds - fee.period_start.seconds == 3600
        assert sum(line.amount_minor for line in told.lines) == told.total_minor


INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
SET = admin_pb2.SetOverrideRequest
RULE = limits_pb2.LimitRule
WRONG = [
    ("ApplyCatalogue", admin_pb2.ApplyCatalogueRequest(yaml="version: 1"), INVALID, "FIELD_REQUIRED", "request_id"),
    (
        "ApplyCatalogue",
        admin_pb2.ApplyCatalogueRequest(request_id="x" * 129, yaml="version: 1"),
        INVALID,
        "FIELD_TOO_LONG",
        "request_id",
    ),
    (
        "ApplyCatalogue",
        admin_pb2.ApplyCatalogueRequest(request_id="bad", yaml="version: 1\nplanz: 1", source_name="f"),
        INVALID,
        "CATALOGUE_INVALID",
        "planz",
    ),
    (
        "ApplyCatalogue",
        admin_pb2.ApplyCatalogueRequest(request_id="apply", yaml="version: 1"),
        INVALID,
        "REQUEST_ID_REUSED",
        "request_id",
    ),
    ("ListTenants", admin_pb2.ListTenantsRequest(page_size=1001), INVALID, "FIELD_OUT_OF_RANGE", "page_size"),
    ("ListTenants", admin_pb2.ListTenantsRequest(page_token="!"), INVALID, "FIELD_INVALID", "page_token"),
    ("ListSubscriptions", admin_pb2.ListSubscriptionsRequest(tenant="no"), MISSING, "TENANT_UNKNOWN", ""),
    ("GetTenant", admin_pb2.GetTenantRequest(tenant=""), INVALID, "FIELD_REQUIRED", "tenant"),
    ("GetTenant", admin_pb2.GetTenantRequest(tenant="a\u202eb"), INVALID, "FIELD_INVALID", "tenant"),
    ("GetTenant", admin_pb2.GetTenantRequest(tenant="../x"), INVALID, "FIELD_INVALID", "tenant"),
    ("GetTenant", admin_pb2.GetTenantRequest(tenant="no"), MISSING, "TENANT_UNKNOWN", ""),
    ("SetTenantState", admin_pb2.SetTenantStateRequest(request_id="s", tenant="code"), INVALID, "FIELD_REQUIRED", "state"),
    ("SetOverride", SET(request_id="1", tenant="code", limit="rate"), INVALID, "FIELD_REQUIRED", "amount"),
    ("SetOverride", SET(request_id="2", tenant="code", limit="no", amount=1), MISSING, "LIMIT_UNKNOWN", ""),
    ("SetOverride", SET(request_id="3", tenant="code", limit="day", amount=-2), INVALID, "FIELD_OUT_OF_RANGE", "amount"),
    (
        "SetOverride",
        SET(request_id="4", tenant="code", limit="day", amount=2**53),
        INVALID,
        "FIELD_OUT_OF_RANGE",
        "amount",
    ),
    ("SetOverride", SET(request_id="5", tenant="code", limit="day", burst=1), INVALID, "FIELD_INVALID", "burst"),
    (
        "SetOverride",
        SET(request_id="6", tenant="code", limit="day", amount=1, note="x" * 501),
        INVALID,
        "FIELD_TOO_LONG",
        "note",
    ),
    (
        "SetOverride",
        SET(request_id="7", tenant="code", limit="day", enforcement=99),  # type: ignore[arg-type]
        INVALID,
        "ENUM_UNKNOWN",
        "enforcement",
    ),
    ("SetOverride", SET(request_id="8", tenant="code", limit="new", rule=RULE()), INVALID, "FIELD_REQUIRED", "rule.kind"),
    (
        "SetOverride",
        SET(request_id="9", tenant="code", limit="new", rule=RULE(kind=2, meter="no", window_unit=1)),  # type: ignore[arg-type]
        MISSING,
        "METER_UNKNOWN",
        "",
    ),
    (
        "SetOverride",
        SET(request_id="10", tenant="code", limit="new", rule=RULE(kind=1, meter="context_tokens")),  # type: ignore[arg-type]
        INVALID,
        "FIELD_OUT_OF_RANGE",
        "rule.refill_interval_us",
    ),
    ("DeleteOverride", admin_pb2.DeleteOverrideRequest(request_id="d", tenant="code", limit="day"), MISSING,
     "LIMIT_UNKNOWN", ""),
    ("SetClock", admin_pb2.SetClockRequest(), INVALID, "FIELD_REQUIRED", "request_id"),
    ("SetClock", admin_pb2.SetClockRequest(request_id="c", speed_milli=-1), INVALID, "FIELD_OUT_OF_RANGE", "speed_milli"),
    ("PreviewInvoice", billing_pb2.PreviewInvoiceRequest(tenant="bare"), MISSING, "SUBSCRIPTION_UNKNOWN", ""),
    ("RunInvoices", billing_pb2.RunInvoicesRequest(), INVALID, "FIELD_REQUIRED", "request_id"),
    ("RunInvoices", billing_pb2.RunInvoicesRequest(request_id="r", tenant="no"), MISSING, "TENANT_UNKNOWN", ""),
    ("ListInvoices", billing_pb2.ListInvoicesRequest(page_token="WyJhIiwiYiJd"), INVALID, "FIELD_INVALID", "page_token"),
    ("GetInvoice", billing_pb2.GetInvoiceRequest(), INVALID, "FIELD_REQUIRED", "invoice"),
    ("GetInvoice", billing_pb2.GetInvoiceRequest(invoice="TK-999999"), MISSING, "INVOICE_UNKNOWN", ""),
    ("GetInvoicePdf", billing_pb2.GetInvoicePdfRequest(invoice="x", paper="napkin"), INVALID, "FIELD_INVALID", "paper"),
    ("ListRateCards", billing_pb2.ListRateCardsRequest(page_token="x"), INVALID, "FIELD_INVALID", "page_token"),
    ("VoidInvoice", billing_pb2.VoidInvoiceRequest(request_id="r", invoice="TK-9"), grpc.StatusCode.NOT_FOUND, "INVOICE_UNKNOWN", ""),
    ("CreateCreditNote", billing_pb2.CreateCreditNoteRequest(request_id="r", invoice="TK-9"), grpc.StatusCode.INVALID_ARGUMENT, "FIELD_OUT_OF_RANGE", "amount_minor"),
    ("ListPayments", billing_pb2.ListPaymentsRequest(page_token="x"), grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", "page_token"),
    ("GetOverage", billing_pb2.GetOverageRequest(), INVALID, "FIELD_REQUIRED", "tenant"),
]  # fmt: skip


async def test_rate_cards_are_listed_with_own_prices(settings: Settings) -> None:
    """Each plan's newest version page by page: what it costs and nothing of limits; a tenant's own stand beside."""
    async with client_of(settings) as client:
        file = catalogue(client.start, "code", extra=", fees: [{name: base, amount: '3.00'}]")
        await client.apply(file.replace('"20.00"', '"19.00"'))
        await client.apply(file, "again")
        cards: list[dict[str, Any]] = []
        request = billing_pb2.ListRateCardsRequest(page_size=2)
        while True:
            answer = await client.billing.ListRateCards(request)
            cards += map(json.loads, answer.rate_cards)
            if not answer.next_page_token:
                break
            assert len(answer.rate_cards) == 2
            request.page_token = answer.next_page_token
        assert [(card["plan"], card["version"], [fee["amount"] for fee in card["fees"]]) for card in cards] == [
            ("free", 1, []),
            ("hourly", 2, ["20.00"]),
            ("hourly@code", 1, ["3.00"]),
        ]
        hourly = cards[1]
        assert {"plan", "version", "currency", "billing_interval", "fees", "prices"} == set(hourly)
        assert [(price["meter"], price["unit_price"]) for price in hourly["prices"]] == [
            ("context_tokens", "2.50"),
            ("generated_tokens", "10.00"),
        ]


async def test_wrong_requests_get_their_reason(settings: Settings) -> None:
    """Each wrong request is answered with its code, reason and field, and changes nothing that is stored."""
    async with client_of(settings) as client:
        await client.apply(catalogue(client.start, "code") + "  - {id: bare}\n")
        before = await client.admin.ListLimits(admin_pb2.ListLimitsRequest(tenant="code"))
        for method, request, code, reason, field in WRONG:
            stub = client.admin if hasattr(client.admin, method) else client.billing
            found, info = await refused(getattr(stub, method)(request))
            assert (code, reason, field) == (found, info.reason, info.metadata["field"]), (method, request)
        assert before == await client.admin.ListLimits(admin_pb2.ListLimitsRequest(tenant="code"))
