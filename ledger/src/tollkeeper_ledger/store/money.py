"""Receivables, accounts, the journal, payments and credit notes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.receivable import Receivable, State
from tollkeeper_ledger.store.literals import number_literal
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.receivable import Transfer
    from tollkeeper_ledger.store.billing_closes import CloseKey
    from tollkeeper_ledger.store.pool import Connection, Row


@dataclass(frozen=True, slots=True)
class AccountKey:
    """Name what a payer has with a seller in one currency."""

    payer_id: UUID
    seller_id: str
    currency: str


@dataclass(frozen=True, slots=True)
class Billed:
    """An invoice and whose it is."""

    tenant_id: UUID
    invoice_id: UUID
    account: AccountKey
    number: str
    subscription_id: UUID
    period_start: datetime
    issue: int
    document: bytes
    digest: bytes


async def read_billed(conn: Connection, invoice_id: UUID) -> Billed | None:
    """Read whose invoice it is."""
    row = await conn.fetchrow(sql("money.billed"), invoice_id)
    if row is None:
        return None
    return Billed(
        tenant_id=row["tenant_id"],
        invoice_id=row["invoice_id"],
        account=AccountKey(row["billing_tenant_id"], row["seller_id"], row["currency"]),
        number=row["number"],
        subscription_id=row["subscription_id"],
        period_start=row["period_start"],
        issue=row["issue"],
        document=row["document"],
        digest=row["digest"],
    )


async def lock_account(conn: Connection, key: AccountKey) -> int:
    """Lock a payer's account until the transaction ends and give its balance."""
    return (await lock_accounts(conn, [key]))[key]


async def lock_accounts(conn: Connection, keys: Iterable[AccountKey]) -> dict[AccountKey, int]:
    """Lock payers' accounts until the transaction ends, in one order whoever locks them, and give their balances."""
    wanted = sorted(set(keys), key=lambda key: (key.payer_id, key.seller_id, key.currency))
    columns = _account_columns(wanted)
    await conn.execute(sql("money.begin_accounts"), *columns)
    return {AccountKey(*key): balance for *key, balance in await conn.fetch(sql("money.lock_accounts"), *columns)}


async def add_to_balances(conn: Connection, changes: Mapping[AccountKey, int]) -> None:
    """Change payers' balances, in minor units; the accounts must be locked."""
    changed = {key: by_minor for key, by_minor in changes.items() if by_minor}
    if changed:
        await conn.execute(sql("money.add_to_balances"), *_account_columns(list(changed)), list(changed.values()))


def _account_columns(keys: Sequence[AccountKey]) -> tuple[list[UUID], list[str], list[str]]:
    return [key.payer_id for key in keys], [key.seller_id for key in keys], [key.currency for key in keys]


@dataclass(frozen=True, slots=True)
class NewReceivable:
    """What a new invoice owes, and until when it is paid in time."""

    billed: Billed
    receivable: Receivable
    due_at: datetime


async def add_receivables(conn: Connection, added: Sequence[NewReceivable], *, now: datetime) -> None:
    """Add what new invoices owe."""
    await conn.execute(
        sql("money.add_receivables"),
        now,
        [one.billed.tenant_id for one in added],
        [one.billed.invoice_id for one in added],
        [one.billed.account.payer_id for one in added],
        [one.receivable.state.value for one in added],
        [one.due_at for one in added],
        number_literal([one.receivable.subtotal_minor for one in added]),
        number_literal([one.receivable.tax_minor for one in added]),
        number_literal([one.receivable.balance_minor for one in added]),
    )


async def lock_receivable(conn: Connection, billed: Billed) -> Receivable:
    """Lock what an invoice owes until the transaction ends and give it; the account must be locked."""
    row = await conn.fetchrow(sql("money.lock_receivable"), billed.tenant_id, billed.invoice_id)
    if row is None:
        raise RuntimeError(f"invoice {billed.number} has no receivable")
    return receivable_of(row)


def receivable_of(row: Row) -> Receivable:
    """Give what a row of `receivable` says. Raises ValueError: there is no such state."""
    return Receivable(
        subtotal_minor=row["subtotal_minor"],
        tax_minor=row["tax_minor"],
        state=State(row["state"]),
        balance_minor=row["balance_minor"],
        paid_minor=row["paid_minor"],
        credited_minor=row["credited_minor"],
        credited_due_minor=row["credited_due_minor"],
        credited_tax_minor=row["credited_tax_minor"],
        written_off_minor=row["written_off_minor"],
        refunded_minor=row["refunded_minor"],
    )


async def save_receivable(conn: Connection, billed: Billed, receivable: Receivable, *, now: datetime) -> None:
    """Keep what an invoice owes now."""
    await conn.execute(
        sql("money.save_receivable"),
        billed.tenant_id,
        billed.invoice_id,
        receivable.state.value,
        receivable.balance_minor,
        receivable.paid_minor,
        receivable.credited_minor,
        receivable.credited_due_minor,
        receivable.credited_tax_minor,
        receivable.written_off_minor,
        receivable.refunded_minor,
        now,
    )


@dataclass(frozen=True, slots=True)
class NewTransfer:
    """A transfer to add to the journal: about which invoice, for which subject."""

    transfer_id: UUID
    billed: Billed
    transfer: Transfer
    subject: str


async def add_transfers(conn: Connection, added: Sequence[NewTransfer], *, now: datetime) -> None:
    """Add transfers to the journal."""
    if not added:
        return
    await conn.execute(
        sql("money.add_transfers"),
        now,
        [one.billed.account.payer_id for one in added],
        [one.transfer_id for one in added],
        [one.billed.account.seller_id for one in added],
        [one.transfer.kind for one in added],
        [one.transfer.debit.value for one in added],
        [one.transfer.credit.value for one in added],
        number_literal([one.transfer.amount_minor for one in added]),
        [one.billed.account.currency for one in added],
        [one.billed.invoice_id for one in added],
        [one.subject for one in added],
    )


async def read_accounts(conn: Connection, *, only: UUID | None) -> list[tuple[str, str, int]]:
    """Sum the journal: (currency, account, debits less credits)."""
    rows = await conn.fetch(sql("money.accounts"), only)
    return [(row["currency"], row["account"], row["sum_minor"]) for row in rows]


async def read_journal(
    conn: Connection, *, before: tuple[datetime, UUID] | None, count_max: int, only: UUID | None
) -> list[Row]:
    """Read transfers, newest first."""
    at, transfer_id = before or (None, None)
    return await conn.fetch(sql("money.journal"), at, transfer_id, count_max, only)


async def add_payment(
    conn: Connection,
    billed: Billed,
    *,
    payment_id: UUID,
    provider: str,
    reference: str,
    amount_minor: int,
    now: datetime,
) -> bool:
    """Add a payment; False where one of that reference exists."""
    added = await conn.fetchval(
        sql("money.add_payment"),
        billed.account.payer_id,
        payment_id,
        billed.invoice_id,
        provider,
        reference,
        amount_minor,
        billed.account.currency,
        now,
    )
    return added is not None


async def read_payments(
    conn: Connection, *, before: tuple[datetime, UUID] | None, count_max: int, only: UUID | None
) -> list[Row]:
    """Read payments, newest first."""
    at, payment_id = before or (None, None)
    return await conn.fetch(sql("money.payments"), at, payment_id, count_max, only)


async def lock_credit_notes(conn: Connection, seller_id: str) -> int:
    """Lock a seller's numbers until the transaction ends and give the next credit note's, not taken yet."""
    following: int = await conn.fetchval(sql("money.lock_credit_notes"), seller_id)
    return following


@dataclass(frozen=True, slots=True)
class NewCreditNote:
    """A credit note to add."""

    credit_note_id: UUID
    number: str
    serial: int
    amount_minor: int
    document: bytes


async def add_credit_note(conn: Connection, billed: Billed, note: NewCreditNote, *, now: datetime) -> None:
    """Take the number that `lock_credit_notes` gave and add the credit note."""
    await conn.execute(sql("money.take_credit_note"), billed.account.seller_id)
    await conn.execute(
        sql("money.add_credit_note"),
        billed.account.payer_id,
        note.credit_note_id,
        billed.account.seller_id,
        note.number,
        note.serial,
        billed.invoice_id,
        now,
        billed.account.currency,
        note.amount_minor,
        note.document,
    )


async def find_credit_note(conn: Connection, number: str) -> tuple[bytes, bytes] | None:
    """Find a credit note by its number: its canonical bytes and their digest."""
    row = await conn.fetchrow(sql("money.find_credit_note"), number)
    return None if row is None else (row["document"], row["digest"])


async def read_credit_notes(
    conn: Connection,
    *,
    before: tuple[datetime, UUID] | None,
    count_max: int,
    only: UUID | None,
    invoice_id: UUID | None,
) -> list[Row]:
    """Read credit notes, newest first: of one payer, of one invoice, or all."""
    at, credit_note_id = before or (None, None)
    return await conn.fetch(sql("money.credit_notes"), at, credit_note_id, count_max, only, invoice_id)


async def add_refund(
    conn: Connection, billed: Billed, *, refund_id: UUID, provider: str, amount_minor: int, state: str, now: datetime
) -> None:
    """Add a refund."""
    await conn.execute(
        sql("money.add_refund"),
        billed.account.payer_id,
        refund_id,
        billed.invoice_id,
        provider,
        amount_minor,
        billed.account.currency,
        state,
        now,
    )


async def read_past_due(conn: Connection, *, now: datetime, count_max: int) -> list[UUID]:
    """Read open invoices whose day has come."""
    return [row["invoice_id"] for row in await conn.fetch(sql("money.past_due"), now, count_max)]


async def add_item(
    conn: Connection,
    tenant_id: UUID,
    *,
    item_id: UUID,
    description: str,
    amount_minor: int,
    currency: str,
    now: datetime,
) -> None:
    """Add an item to a tenant's next invoice."""
    await conn.execute(sql("money.add_item"), tenant_id, item_id, description, amount_minor, currency, now)


async def read_items(
    conn: Connection, *, before: tuple[datetime, UUID] | None, count_max: int, only: UUID | None, with_billed: bool
) -> list[Row]:
    """Read items, newest first; with those that a close took where asked."""
    at, item_id = before or (None, None)
    return await conn.fetch(sql("money.items"), at, item_id, count_max, only, with_billed)


async def remove_item(conn: Connection, tenant_id: UUID, item_id: UUID) -> Row | None:
    """Remove an item that no close has taken and give what it was; None where there is no such one."""
    return await conn.fetchrow(sql("money.remove_item"), tenant_id, item_id)


async def read_waiting_items(
    conn: Connection, tenant_ids: Iterable[UUID]
) -> dict[tuple[UUID, str], tuple[dict[str, Any], ...]]:
    """Read items that no close has taken, as they stand in inputs, by tenant and currency."""
    found: dict[tuple[UUID, str], tuple[dict[str, Any], ...]] = {}
    for row in await conn.fetch(sql("money.waiting_items"), list(tenant_ids)):
        key = (row["tenant_id"], row["currency"])
        item = {"item_id": str(row["item_id"]), "description": row["description"], "amount_minor": row["amount_minor"]}
        found[key] = (*found.get(key, ()), item)
    return found


async def take_items(conn: Connection, taken: Sequence[tuple[UUID, CloseKey]]) -> None:
    """Mark items, each by its id, as taken by closes."""
    if taken:
        await conn.execute(
            sql("money.take_items"),
            [item_id for item_id, _ in taken],
            [key.tenant_id for _, key in taken],
            [key.subscription_id for _, key in taken],
            [key.period_start for _, key in taken],
        )


async def return_items(conn: Connection, billed: Billed) -> None:
    """Let the items of an invoice wait again: it is void and nothing replaces it."""
    await conn.execute(sql("money.return_items"), billed.tenant_id, billed.subscription_id, billed.period_start)
