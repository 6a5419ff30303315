# ruff: noqa: N802 - gRPC names its methods
"""A ledger and a sidecar that answer from memory, for tests of commands."""

from __future__ import annotations

import json
from concurrent import futures
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from tollkeeper.ledger.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    billing_pb2,
    billing_pb2_grpc,
    decisions_pb2,
    limits_pb2,
    payments_pb2,
    payments_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
)
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 2
AT = Timestamp(seconds=1_700_158_623, nanos=5_000)


def refuse(context: grpc.ServicerContext, code: int, message: str, reason: str, **metadata: str) -> None:
    """Fail as our servers fail."""
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="tollkeeper", metadata=metadata))
    context.abort_with_status(rpc_status.to_status(status_pb2.Status(code=code, message=message, details=[detail])))


def subscription_of(request: Any) -> admin_pb2.Subscription:
    """Give the subscription that a request asks for."""
    return admin_pb2.Subscription(
        tenant=request.tenant, plan=request.plan, state="active", quantity=request.quantity, started_at=AT
    )


class FakeLedger(admin_pb2_grpc.AdminServiceServicer):
    """Remembers requests; lists five tenants, two to a page."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.reports = FakeReports()

    def ListTenants(self, request: Any, context: Any) -> Any:
        """List tenants in pages."""
        assert request.page_size == 1_000
        start = int(request.page_token or 0)
        names = ["acme", "=evil", "code", "conv", "probe"]
        return admin_pb2.ListTenantsResponse(
            tenants=[
                admin_pb2.Tenant(tenant=name, display_name=name.title(), state=limits_pb2.TENANT_STATE_ACTIVE)
                for name in names[start : start + PAGE]
            ],
            next_page_token=str(start + PAGE) if start + PAGE < len(names) else "",
        )

    def ListLimits(self, request: Any, context: Any) -> Any:
        """List none."""
        return admin_pb2.ListLimitsResponse()

    def CreateWebhook(self, request: Any, context: Any) -> Any:
        """Remember what was asked."""
        self.requests.append(request)
        return admin_pb2.CreateWebhookResponse(webhook_id="w", secret="whsec_AA==")  # noqa: S106 - the fake's

    def ListWebhookMessages(self, request: Any, context: Any) -> Any:
        """List one message that was given up."""
        self.requests.append(request)
        message = admin_pb2.WebhookMessage(message_id="m", state="dead", tries=10, status=503, reply="=x", queued_at=AT)
        return admin_pb2.ListWebhookMessagesResponse(messages=[message])

    def ReplayWebhookMessages(self, request: Any, context: Any) -> Any:
        """Remember what was asked."""
        self.requests.append(request)
        return admin_pb2.ReplayWebhookMessagesResponse(messages=3)

    def CreateSubscription(self, request: Any, context: Any) -> Any:
        """Remember what was asked."""
        self.requests.append(request)
        return admin_pb2.CreateSubscriptionResponse(subscription=subscription_of(request))

    def ChangeSubscription(self, request: Any, context: Any) -> Any:
        """Remember what was asked."""
        self.requests.append(request)
        return admin_pb2.ChangeSubscriptionResponse(subscription=subscription_of(request))

    def ActivateSubscription(self, request: Any, context: Any) -> Any:
        """Remember what was asked."""
        self.requests.append(request)
        subscription = admin_pb2.Subscription(tenant=request.tenant, state="active")
        return admin_pb2.ActivateSubscriptionResponse(subscription=subscription)

    def UnscheduleSubscription(self, request: Any, context: Any) -> Any:
        """Remember what was asked."""
        self.requests.append(request)
        subscription = admin_pb2.Subscription(tenant=request.tenant, state="active")
        return admin_pb2.UnscheduleSubscriptionResponse(subscription=subscription)

    def ListSubscriptions(self, request: Any, context: Any) -> Any:
        """List one that is to change."""
        self.requests.append(request)
        to_come = admin_pb2.ScheduledChange(at_time=AT, plan="big", plan_version=2, quantity=3, state="active")
        subscription = admin_pb2.Subscription(tenant="code", plan="pro", state="active", scheduled=[to_come])
        return admin_pb2.ListSubscriptionsResponse(subscriptions=[subscription])

    def CancelSubscription(self, request: Any, context: Any) -> Any:
        """Remember what was asked."""
        self.requests.append(request)
        subscription = admin_pb2.Subscription(tenant=request.tenant, state="active", ends_at=AT)
        return admin_pb2.CancelSubscriptionResponse(subscription=subscription)

    def AddCoupon(self, request: Any, context: Any) -> Any:
        """Remember what was asked."""
        self.requests.append(request)
        return admin_pb2.AddCouponResponse(coupon_id="coupon-1")

    def CreateGrant(self, request: Any, context: Any) -> Any:
        """Remember what was asked."""
        self.requests.append(request)
        return admin_pb2.CreateGrantResponse(grant_id="grant-1")

    def ListGrants(self, request: Any, context: Any) -> Any:
        """List one grant that was used once."""
        return admin_pb2.ListGrantsResponse(
            grants=[admin_pb2.Grant(grant_id="grant-1", name="Prepaid", currency="USD", amount=500, balance=200)],
            entries=[
                admin_pb2.GrantEntry(grant_id="grant-1", at=AT, kind="granted", amount=500, balance=500),
                admin_pb2.GrantEntry(grant_id="grant-1", at=AT, kind="used", amount=-300, balance=200),
            ],
        )

    def ApplyCatalogue(self, request: Any, context: Any) -> Any:
        """Refuse what says so, else tell one change."""
        self.requests.append(request)
        if "wrong" in request.yaml:
            refuse(
                context,
                code_pb2.INVALID_ARGUMENT,
                f"{request.source_name}:3: unknown meter",
                "CATALOGUE_INVALID",
                remedy="declare the meter",
            )
        return admin_pb2.ApplyCatalogueResponse(
            changes=[admin_pb2.CatalogueChange(action="create", kind="meter", name="tokens")]
        )

    def SetOverride(self, request: Any, context: Any) -> Any:
        """Take the limit as asked."""
        self.requests.append(request)
        rule = limits_pb2.LimitRule(name=request.limit, amount=request.amount, enforcement=request.enforcement)
        return admin_pb2.SetOverrideResponse(limit=rule, change=1)


class FakeReports(reports_pb2_grpc.ReportServiceServicer):
    """Has three records, one with an attribute that a spreadsheet would run, and one tenant near its limit."""

    def __init__(self) -> None:
        self.spans: list[str] = []
        self.decisions: list[Any] = []

    def ListAlerts(self, request: Any, context: Any) -> Any:
        """List one alert."""
        alert = {
            "id": "a", "tenant": "acme", "kind": "limit", "subject": "day", "key_values": ["u", "v"],
            "threshold": "90%", "base": "100", "value": "91", "starts_at": "", "ends_at": "", "fired_at": "",
        }  # fmt: skip
        return reports_pb2.ListAlertsResponse(alerts=[json.dumps(alert)])

    def ListViolations(self, request: Any, context: Any) -> Any:
        """List one window that was used beyond its limit."""
        violation = {
            "tenant": "acme", "limit": "day", "key_values": ["u"], "enforcement": "soft", "amount": 100,
            "consumed": 120, "over": 20, "starts_at": "", "ends_at": "", "first_at": "", "last_at": "",
        }  # fmt: skip
        return reports_pb2.ListViolationsResponse(violations=[json.dumps(violation)])

    def ListDecisions(self, request: Any, context: Any) -> Any:
        """List one call that was denied, with an attribute that a spreadsheet would run."""
        self.decisions.append(request)
        denied = decisions_pb2.KeptDecision(
            tenant="acme", limit="day", reason=decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED, at=AT, caller="team",
            units=5, amount=100, used=98, attributes={"user": "=cmd()"},
        )  # fmt: skip
        return decisions_pb2.ListDecisionsResponse(decisions=[denied])

    def CountDecisions(self, request: Any, context: Any) -> Any:
        """Count two reasons, one to a page."""
        self.decisions.append(request)
        reasons = (decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED, decision_pb2.DECISION_REASON_SOFT_LIMIT_EXCEEDED)
        place = int(request.page_token or 0)
        one = decisions_pb2.DecisionSum(tenant="acme", limit="day", reason=reasons[place], count=7, left_out=place)
        return decisions_pb2.CountDecisionsResponse(sums=[one], next_page_token="" if place else "1")

    def CheckAlerts(self, request: Any, context: Any) -> Any:
        """Tell of a limit of everybody, which one tenant has used up to 91 %, and of its spend."""
        day = reports_pb2.AlertState(kind="limit", subject="day", base="100", value="0", at=["90%"])
        if request.tenant != "acme":
            return reports_pb2.CheckAlertsResponse(states=[day])
        day.value, day.reached[:] = "91", ["90%"]
        spend = reports_pb2.AlertState(kind="spend", subject="USD", base="50.00", value="2.00", at=["75%"])
        return reports_pb2.CheckAlertsResponse(states=[day, spend])

    def ListUsageRecords(self, request: Any, context: Any) -> Any:
        """Stream records in two messages."""
        self.spans.append(getattr(request, "from").ToJsonString())
        if request.tenant == "broken":
            yield reports_pb2.ListUsageRecordsResponse(records=[reports_pb2.StoredRecord(id="r/1", event_time=AT)])
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        for ids in (("r/1", "r/2"), ("r/3",)):
            yield reports_pb2.ListUsageRecordsResponse(
                records=[
                    reports_pb2.StoredRecord(
                        id=record_id, event_time=AT, units={"tokens": 5}, attributes={"user": "=cmd()"}, seq=1
                    )
                    for record_id in ids
                ]
            )

    def QueryUsage(self, request: Any, context: Any) -> Any:
        """Answer a sum beyond 64 bits."""
        return reports_pb2.QueryUsageResponse(
            buckets=[
                reports_pb2.UsageBucket(meter="tokens", unit="tokens", sum=str(10**30), records=3, aggregation="sum"),
                reports_pb2.UsageBucket(
                    meter="duration",
                    unit="ms",
                    start=AT,
                    sum="7",
                    records=2,
                    aggregation="percentile",
                    value="3",
                    group={"status": "2xx"},
                    percentiles=[reports_pb2.Percentile(permille=at, units=at) for at in request.percentiles_permille],
                ),
            ],
            time_zone=request.time_zone or "Asia/Kathmandu",
        )

    def VerifyUsage(self, request: Any, context: Any) -> Any:
        """Find one wrong row on the first call, none later."""
        self.audits = getattr(self, "audits", 0) + 1
        if self.audits == 1:
            finding = reports_pb2.AuditFinding(table="usage_record", row="tenant code, id 'x'", problem="changed")
            yield reports_pb2.VerifyUsageResponse(links=1, finding=finding)
        yield reports_pb2.VerifyUsageResponse(links=2, records=3, hours=4, periods=6, roots=5, done=True)

    def ProveUsage(self, request: Any, context: Any) -> Any:
        """Give a proof of nothing."""
        return reports_pb2.ProveUsageResponse(record=reports_pb2.StoredRecord(id=request.id))

    def GetUsageSummary(self, request: Any, context: Any) -> Any:
        """Give a period with one figure."""
        bucket = reports_pb2.UsageBucket(meter="tokens", unit="tokens", sum="1", records=1, value="1")
        return reports_pb2.GetUsageSummaryResponse(buckets=[bucket], period_start=AT, period_end=AT, plan="hourly")

    def GetUsageTrend(self, request: Any, context: Any) -> Any:
        """Give as many spans as were asked for; all but the first say how they changed."""
        buckets = [
            reports_pb2.UsageBucket(meter="tokens", start=AT, sum="1", value="1", change_permille=at or None)
            for at in range(request.spans)
        ]
        return reports_pb2.GetUsageTrendResponse(buckets=buckets)


class FakeBilling(billing_pb2_grpc.BillingServiceServicer):
    """Has one invoice; holds one tenant's period."""

    def RunInvoices(self, request: Any, context: Any) -> Any:
        """Finalise one, hold another; break off where a tenant is named `breaks`."""
        yield billing_pb2.RunInvoicesResponse(due=2, done=0, held_tenant="conv", held_reason="producer ab is behind")
        yield billing_pb2.RunInvoicesResponse(
            due=2,
            done=1,
            invoices=[billing_pb2.Invoice(number="TK-000001", tenant="code", currency="USD", total_minor=123)],
        )
        if request.tenant == "breaks":
            refuse(context, code_pb2.UNAVAILABLE, "the database is away", "UNAVAILABLE")

    def SimulatePlans(self, request: Any, context: Any) -> Any:
        """Make one tenant's month dearer and another's cheaper."""
        if "plans" not in request.yaml:
            refuse(context, code_pb2.INVALID_ARGUMENT, "yaml: declares no plan", "FIELD_INVALID", field="yaml")
        for tenant, before, after in (("code", 5_000, 8_600), ("conv", 2_100, 2_000)):
            yield billing_pb2.SimulatePlansResponse(
                tenant=tenant, plan="pro", currency="USD", before_minor=before, after_minor=after
            )

    def GetInvoicePdf(self, request: Any, context: Any) -> Any:
        """Give a PDF whose name would leave the folder."""
        return billing_pb2.GetInvoicePdfResponse(pdf=b"%PDF-1.7", file_name="../../TK-000001.pdf")


class FakePayments(payments_pb2_grpc.PaymentServiceServicer):
    """Keeps one profile, with a tax on one meter."""

    def __init__(self) -> None:
        self.profile = payments_pb2.BillingProfile(email="a@example.com", dunning_days=[1, 3, 5, 7])
        self.profile.taxes.add(name="VAT", percent="7", meters=["books"])

    def GetBillingProfile(self, request: Any, context: Any) -> Any:
        """Show the profile."""
        return payments_pb2.GetBillingProfileResponse(profile=self.profile)

    def SetBillingProfile(self, request: Any, context: Any) -> Any:
        """Keep the profile."""
        self.profile = request.profile
        return payments_pb2.SetBillingProfileResponse(profile=self.profile)


class FakeQuota(quota_pb2_grpc.QuotaServiceServicer):
    """Denies costs above 100, calls those above 50 a soft excess."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def CheckQuota(self, request: Any, context: Any) -> Any:
        """Decide by the first cost."""
        self.requests.append(request)
        units = request.costs[0].units
        if units < 0:
            refuse(context, code_pb2.INVALID_ARGUMENT, "costs[0].units is -1", "FIELD_OUT_OF_RANGE", bound="0")
        reason = decision_pb2.DECISION_REASON_ALLOWED
        if units > 50:
            reason = decision_pb2.DECISION_REASON_SOFT_LIMIT_EXCEEDED
        if units > 100:
            reason = decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED
        return quota_pb2.CheckQuotaResponse(
            decision=decision_pb2.Decision(
                allowed=units <= 100,
                reason=reason,
                binding=decision_pb2.LimitState(name="tokens-per-minute"),
                remaining=0,
                retry_after=Duration(seconds=1, nanos=500_000_000),
            )
        )

    def GetQuota(self, request: Any, context: Any) -> Any:
        """Show one limit."""
        return quota_pb2.GetQuotaResponse(
            tenant=request.tenant,
            limits=[
                decision_pb2.LimitState(
                    name="tokens-per-minute",
                    meter="tokens",
                    kind=decision_pb2.LIMIT_KIND_WINDOW,
                    enforcement=decision_pb2.ENFORCEMENT_HARD,
                    amount=-1,
                    key=request.attributes,
                )
            ],
        )


@contextmanager
def serving(ledger: FakeLedger, quota: FakeQuota) -> Iterator[str]:
    """Serve everything on one port and give its address."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    admin_pb2_grpc.add_AdminServiceServicer_to_server(ledger, server)
    reports_pb2_grpc.add_ReportServiceServicer_to_server(ledger.reports, server)
    billing_pb2_grpc.add_BillingServiceServicer_to_server(FakeBilling(), server)
    payments_pb2_grpc.add_PaymentServiceServicer_to_server(FakePayments(), server)
    quota_pb2_grpc.add_QuotaServiceServicer_to_server(quota, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
