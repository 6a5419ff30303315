# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""PaymentService: convert messages and call the services."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import payments_pb2, payments_pb2_grpc

from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate
from tollkeeper_ledger.domain.errors import InvalidFieldError, PreconditionError
from tollkeeper_ledger.payments.stripe_http import UnreadableError
from tollkeeper_ledger.rpc.acting import act_of, timestamp
from tollkeeper_ledger.rpc.idempotent import answer_once
from tollkeeper_ledger.rpc.invoice_items import InvoiceItems
from tollkeeper_ledger.rpc.invoice_messages import shown_invoice
from tollkeeper_ledger.rpc.paging import before_of, next_token, page_size
from tollkeeper_ledger.services.invoices import need_invoice
from tollkeeper_ledger.services.mail_queue import queue
from tollkeeper_ledger.services.profiles import set_profile
from tollkeeper_ledger.services.receivables import need_billed, pay_by_hand, write_off_invoice
from tollkeeper_ledger.services.reconciling import reconcile
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store.billing_profiles import read_profile
from tollkeeper_ledger.store.disputes import read_disputes
from tollkeeper_ledger.store.mails import read_mails
from tollkeeper_ledger.store.money import read_accounts, read_journal
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.provider_jobs import read_account, read_jobs
from tollkeeper_ledger.store.reconciliations import read_reconciliations

if TYPE_CHECKING:
    import grpc.aio

    from tollkeeper_ledger.services.provider import Provider
    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.store.pool import Row

    Context = grpc.aio.ServicerContext[Any, Any]

_MAILS_MAX = 1_000
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


def _profile_to_message(tenant: str, profile: BillingProfile, *, method: str = "") -> payments_pb2.BillingProfile:
    return payments_pb2.BillingProfile(
        tenant=tenant,
        email=profile.email,
        locale=profile.locale,
        paper=profile.paper,
        provider=profile.provider,
        due_days=profile.due_days,
        taxes=[payments_pb2.TaxRate(name=tax.name, percent=tax.percent, meters=tax.meters) for tax in profile.taxes],
        tax_mode=profile.tax_mode,
        review=profile.review,
        dunning_days=profile.dunning_days,
        dunning_policy=profile.dunning_policy,
        fallback_plan=profile.fallback_plan,
        pays_by=profile.pays_by,
        method=method,
    )


def _profile_from_message(message: payments_pb2.BillingProfile) -> BillingProfile:
    defaults = BillingProfile()
    return BillingProfile(
        email=message.email,
        locale=message.locale or defaults.locale,
        paper=message.paper or defaults.paper,
        provider=message.provider or defaults.provider,
        due_days=message.due_days,
        taxes=tuple(TaxRate(name=tax.name, percent=tax.percent, meters=tuple(tax.meters)) for tax in message.taxes),
        tax_mode=message.tax_mode or defaults.tax_mode,
        review=message.review,
        dunning_days=tuple(message.dunning_days) or defaults.dunning_days,
        dunning_policy=message.dunning_policy or defaults.dunning_policy,
        fallback_plan=message.fallback_plan,
        pays_by=message.pays_by,
    )


def _mail_to_message(row: Row) -> payments_pb2.Mail:
    return payments_pb2.Mail(
        mail_id=str(row["mail_id"]),
        tenant=row["wire_id"],
        kind=row["kind"],
        invoice=row["number"],
        recipient=row["recipient"],
        state=row["state"],
        attempts=row["attempts"],
        reply=row["reply"],
    )


class PaymentService(InvoiceItems, payments_pb2_grpc.PaymentServiceServicer):
    """Serve what comes after an invoice was made."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._pool = resources.pools.billing

    async def SetBillingProfile(
        self, request: payments_pb2.SetBillingProfileRequest, context: Context
    ) -> payments_pb2.SetBillingProfileResponse:
        """Say how a payer is billed."""
        payer_id = await need_tenant(self._pool, request.profile.tenant)
        async with transaction(self._pool) as conn:

            async def work() -> payments_pb2.SetBillingProfileResponse:
                profile = _profile_from_message(request.profile)
                await set_profile(conn, payer_id, profile, act=await act_of(conn, request, context))
                shown = _profile_to_message(request.profile.tenant, profile)
                return payments_pb2.SetBillingProfileResponse(profile=shown)

            return await answer_once(conn, request, payments_pb2.SetBillingProfileResponse, work)

    async def GetBillingProfile(
        self, request: payments_pb2.GetBillingProfileRequest, context: Context
    ) -> payments_pb2.GetBillingProfileResponse:
        """Give how a payer is billed."""
        payer_id = await need_tenant(self._pool, request.tenant)
        async with transaction(self._pool) as conn:
            profile = await read_profile(conn, payer_id)
            account = await read_account(conn, payer_id, provider=profile.provider)
        method = account["method_label"] if account is not None else ""
        shown = _profile_to_message(request.tenant, profile, method=method)
        return payments_pb2.GetBillingProfileResponse(profile=shown)

    async def RecordPayment(
        self, request: payments_pb2.RecordPaymentRequest, context: Context
    ) -> payments_pb2.RecordPaymentResponse:
        """Record a bank transfer."""
        if request.amount_minor < 0:
            raise InvalidFieldError(
                "amount_minor",
                "is below zero",
                reason="FIELD_OUT_OF_RANGE",
                value=request.amount_minor,
                bound="0 or more; 0 = what is due",
            )
        invoice_id = (await need_invoice(self._pool, request.invoice)).invoice_id
        async with transaction(self._pool) as conn:

            async def work() -> payments_pb2.RecordPaymentResponse:
                await pay_by_hand(
                    conn,
                    invoice_id,
                    amount_minor=request.amount_minor,
                    reference=request.reference,
                    act=await act_of(conn, request, context),
                )
                return payments_pb2.RecordPaymentResponse(invoice=await shown_invoice(conn, invoice_id))

            return await answer_once(conn, request, payments_pb2.RecordPaymentResponse, work)

    async def WriteOffInvoice(
        self, request: payments_pb2.WriteOffInvoiceRequest, context: Context
    ) -> payments_pb2.WriteOffInvoiceResponse:
        """Give up what is due."""
        invoice_id = (await need_invoice(self._pool, request.invoice)).invoice_id
        async with transaction(self._pool) as conn:

            async def work() -> payments_pb2.WriteOffInvoiceResponse:
                act = await act_of(conn, request, context)
                await write_off_invoice(conn, invoice_id, note=request.note, act=act)
                return payments_pb2.WriteOffInvoiceResponse(invoice=await shown_invoice(conn, invoice_id))

            return await answer_once(conn, request, payments_pb2.WriteOffInvoiceResponse, work)

    async def ListJournal(
        self, request: payments_pb2.ListJournalRequest, context: Context
    ) -> payments_pb2.ListJournalResponse:
        """List what moved, newest first."""
        size = page_size(request.page_size)
        only = await need_tenant(self._pool, request.tenant) if request.tenant else None
        async with transaction(self._pool) as conn:
            rows = await read_journal(conn, before=before_of(request.page_token), count_max=size + 1, only=only)
        token = next_token(rows, size, lambda row: (row["at"], row["transfer_id"]))
        transfers = [
            payments_pb2.JournalTransfer(
                at=timestamp(row["at"]),
                tenant=row["wire_id"],
                kind=row["kind"],
                debit=row["debit"],
                credit=row["credit"],
                amount_minor=row["amount_minor"],
                currency=row["currency"],
                subject=row["subject"],
            )
            for row in rows[:size]
        ]
        return payments_pb2.ListJournalResponse(transfers=transfers, next_page_token=token)

    async def GetAccounts(
        self, request: payments_pb2.GetAccountsRequest, context: Context
    ) -> payments_pb2.GetAccountsResponse:
        """Sum the journal by account."""
        only = await need_tenant(self._pool, request.tenant) if request.tenant else None
        async with transaction(self._pool) as conn:
            sums = await read_accounts(conn, only=only)
        return payments_pb2.GetAccountsResponse(
            accounts=[
                payments_pb2.AccountSum(currency=currency, account=account, sum_minor=sum_minor)
                for currency, account, sum_minor in sums
            ]
        )

    async def CreateCardPage(
        self, request: payments_pb2.CreateCardPageRequest, context: Context
    ) -> payments_pb2.CreateCardPageResponse:
        """Make a page on which a payer enters or changes a card."""
        if not request.request_id:
            raise InvalidFieldError("request_id", "is required", reason="FIELD_REQUIRED", bound="1 to 128 bytes")
        payer_id = await need_tenant(self._pool, request.tenant)
        url = await self._provider().pages.card_page(
            payer_id,
            name=request.tenant,
            kind=request.kind or "checkout",
            return_url=request.return_url,
            request_id=request.request_id,
        )
        return payments_pb2.CreateCardPageResponse(url=url)

    async def RemovePaymentMethod(
        self, request: payments_pb2.RemovePaymentMethodRequest, context: Context
    ) -> payments_pb2.RemovePaymentMethodResponse:
        """Remove a payer's card at the provider."""
        payer_id = await need_tenant(self._pool, request.tenant)
        await self._provider().pages.remove_method(payer_id, request_id=request.request_id)
        return payments_pb2.RemovePaymentMethodResponse()

    async def ListProviderJobs(
        self, request: payments_pb2.ListProviderJobsRequest, context: Context
    ) -> payments_pb2.ListProviderJobsResponse:
        """List what is being done at the providers."""
        size = page_size(request.page_size)
        async with transaction(self._pool) as conn:
            rows = await read_jobs(conn, count_max=size + 1)
        return payments_pb2.ListProviderJobsResponse(
            jobs=[
                payments_pb2.ProviderJob(
                    job_id=str(row["job_id"]),
                    tenant=row["wire_id"],
                    kind=row["kind"],
                    invoice=row["number"],
                    step=row["step"],
                    state=row["state"],
                    error=row["error"],
                    next_at=timestamp(row["next_at"]),
                )
                for row in rows[:size]
            ],
            more=len(rows) > size,
        )

    async def Reconcile(
        self, request: payments_pb2.ReconcileRequest, context: Context
    ) -> payments_pb2.ReconcileResponse:
        """Compare with the provider in both directions."""
        since = request.since.ToDatetime(tzinfo=UTC) if request.HasField("since") else _LONG_AGO
        try:
            compared, found = await reconcile(self._pool, self._provider().stripe, since=since)
        except UnreadableError as error:
            raise PreconditionError(str(error), reason="PROVIDER_REFUSED") from error
        return payments_pb2.ReconcileResponse(
            compared=compared,
            differences=[payments_pb2.ProviderDifference(invoice=one.invoice, problem=one.problem) for one in found],
        )

    async def ListDisputes(
        self, request: payments_pb2.ListDisputesRequest, context: Context
    ) -> payments_pb2.ListDisputesResponse:
        """List disputes, open ones first."""
        size = page_size(request.page_size)
        async with transaction(self._pool) as conn:
            rows = await read_disputes(conn, count_max=size + 1)
        names = ("dispute_id", "amount_minor", "currency", "reason", "status", "stage")
        return payments_pb2.ListDisputesResponse(
            disputes=[
                payments_pb2.Dispute(
                    tenant=row["wire_id"],
                    invoice=row["number"],
                    evidence_by=None if row["evidence_by"] is None else timestamp(row["evidence_by"]),
                    opened_at=timestamp(row["opened_at"]),
                    **{name: row[name] for name in names},
                )
                for row in rows[:size]
            ],
            more=len(rows) > size,
        )

    async def ListReconciliations(
        self, request: payments_pb2.ListReconciliationsRequest, context: Context
    ) -> payments_pb2.ListReconciliationsResponse:
        """List what nightly comparisons found."""
        size = page_size(request.page_size)
        async with transaction(self._pool) as conn:
            rows = await read_reconciliations(conn, count_max=size + 1)
        return payments_pb2.ListReconciliationsResponse(
            reconciliations=[
                payments_pb2.Reconciliation(
                    provider=row["provider"],
                    at=timestamp(row["at"]),
                    since=timestamp(row["since"]),
                    compared=row["compared"],
                    differences=[payments_pb2.ProviderDifference(**one) for one in row["differences"]],
                    problem=row["problem"],
                )
                for row in rows[:size]
            ],
            more=len(rows) > size,
        )

    def _provider(self) -> Provider:
        if self._resources.provider is None:
            raise PreconditionError(
                "no payment provider is configured",
                reason="PROVIDER_REFUSED",
                metadata={"remedy": "set TOLLKEEPER_STRIPE_KEY"},
            )
        return self._resources.provider

    async def SendInvoice(
        self, request: payments_pb2.SendInvoiceRequest, context: Context
    ) -> payments_pb2.SendInvoiceResponse:
        """Queue a mail with an invoice to the payer's address as it is now."""
        invoice_id = (await need_invoice(self._pool, request.invoice)).invoice_id
        async with transaction(self._pool) as conn:

            async def work() -> payments_pb2.SendInvoiceResponse:
                billed = await need_billed(conn, invoice_id)
                mail_id = await queue(conn, billed, "invoice", stage=f"again/{request.request_id}")
                if mail_id is None:
                    raise PreconditionError(
                        "the payer has no address",
                        reason="INVOICE_STATE",
                        metadata={"invoice": billed.number, "remedy": "SetBillingProfile"},
                    )
                (row,) = [row for row in await read_mails(conn, count_max=_MAILS_MAX) if row["mail_id"] == mail_id]
                return payments_pb2.SendInvoiceResponse(mail=_mail_to_message(row))

            return await answer_once(conn, request, payments_pb2.SendInvoiceResponse, work)

    async def ListMails(
        self, request: payments_pb2.ListMailsRequest, context: Context
    ) -> payments_pb2.ListMailsResponse:
        """List mails, newest first."""
        size = page_size(request.page_size)
        async with transaction(self._pool) as conn:
            rows = await read_mails(conn, count_max=size + 1)
        return payments_pb2.ListMailsResponse(mails=map(_mail_to_message, rows[:size]), more=len(rows) > size)
