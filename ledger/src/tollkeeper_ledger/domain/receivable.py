"""What an invoice still owes, and the transfers that each change of it makes. Pure.

Every change gives the receivable as it is afterwards and its transfers: amounts above zero, each from one account to
another, so that all accounts always sum to zero. The balance of the account `receivable` over an invoice's transfers is
what is due on it, void invoices included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum

from tollkeeper_ledger.domain.money import EXACT, exact, round_minor


class Account(StrEnum):
    """Where money is, per payer, seller and currency."""

    RECEIVABLE = "receivable"
    REVENUE = "revenue"
    TAX = "tax"
    CASH = "cash"
    BALANCE = "balance"
    BAD_DEBT = "bad_debt"
    DISPUTED = "disputed"
    """Money that a payer's bank holds back until a dispute is over."""
    FEES = "fees"
    """What the provider kept for disputes."""


class State(StrEnum):
    """What became of an invoice."""

    FINALISED = "finalised"
    PAID = "paid"
    PAST_DUE = "past_due"
    UNCOLLECTIBLE = "uncollectible"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Transfer:
    """One amount moved: `debit` goes up by it, `credit` down."""

    kind: str
    debit: Account
    credit: Account
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Receivable:
    """What an invoice came to and what has happened to it, all in minor units."""

    subtotal_minor: int
    tax_minor: int
    state: State = State.FINALISED
    balance_minor: int = 0
    """Settled from the payer's balance; below zero where the invoice itself owed the payer."""
    paid_minor: int = 0
    credited_minor: int = 0
    credited_due_minor: int = 0
    """The part of the credits that made less due; the rest went into the payer's balance."""
    credited_tax_minor: int = 0
    written_off_minor: int = 0
    refunded_minor: int = 0

    @property
    def total_minor(self) -> int:
        """Give what the invoice says."""
        return self.subtotal_minor + self.tax_minor

    @property
    def open_minor(self) -> int:
        """Give what nobody has paid or taken off: what is still to pay, and what was given up."""
        return self.due_minor + self.written_off_minor

    @property
    def due_minor(self) -> int:
        """Give what is still to pay; nothing where it is void."""
        if self.state is State.VOID:
            return 0
        settled = self.balance_minor + self.paid_minor + self.credited_due_minor + self.written_off_minor
        return self.total_minor - settled


@dataclass(frozen=True, slots=True)
class Change:
    """A receivable after something happened, and what moved."""

    receivable: Receivable
    transfers: tuple[Transfer, ...]


class RefusedError(ValueError):
    """Say why a receivable can't change so."""


def _moved(kind: str, debit: Account, credit: Account, amount_minor: int) -> tuple[Transfer, ...]:
    """Give a transfer; the other way round below zero, none for nothing."""
    if amount_minor == 0:
        return ()
    if amount_minor < 0:
        debit, credit = credit, debit
    return (Transfer(kind=kind, debit=debit, credit=credit, amount_minor=abs(amount_minor)),)


def _settled(receivable: Receivable) -> Receivable:
    is_open = receivable.state in (State.FINALISED, State.PAST_DUE)
    if receivable.state is State.UNCOLLECTIBLE:
        # Nothing of it is given up any more.
        is_open = receivable.written_off_minor == 0
    return replace(receivable, state=State.PAID) if is_open and receivable.due_minor == 0 else receivable


def issue(*, subtotal_minor: int, tax_minor: int, balance_minor: int) -> Change:
    """Book a finalised invoice and settle what the payer's balance covers; one below zero goes into the balance."""
    total = subtotal_minor + tax_minor
    applied = total if total < 0 else min(total, balance_minor)
    transfers = (
        *_moved("invoice", Account.RECEIVABLE, Account.REVENUE, subtotal_minor),
        *_moved("invoice", Account.RECEIVABLE, Account.TAX, tax_minor),
        *_moved("balance", Account.BALANCE, Account.RECEIVABLE, applied),
    )
    booked = Receivable(subtotal_minor=subtotal_minor, tax_minor=tax_minor, balance_minor=applied)
    return Change(receivable=_settled(booked), transfers=transfers)


def pay(receivable: Receivable, amount_minor: int) -> Change:
    """Book money that came in; what is more than due goes into the payer's balance.

    Money for a written-off invoice brings that much of it back first. Money for a void one is the payer's balance.
    """
    _above_zero(amount_minor)
    recovered = min(amount_minor, receivable.written_off_minor)
    now = replace(receivable, written_off_minor=receivable.written_off_minor - recovered)
    applied = min(amount_minor, now.due_minor)
    transfers = (
        *_moved("recovery", Account.RECEIVABLE, Account.BAD_DEBT, recovered),
        *_moved("payment", Account.CASH, Account.RECEIVABLE, applied),
        *_moved("overpayment", Account.CASH, Account.BALANCE, amount_minor - applied),
    )
    now = replace(now, paid_minor=now.paid_minor + applied)
    return Change(receivable=_settled(now), transfers=transfers)


@exact
def _tax_share(receivable: Receivable, credited_minor: int) -> int:
    """Give the tax in the first `credited_minor` of a total; all of it in the whole."""
    whole = Decimal(receivable.tax_minor) * credited_minor
    return round_minor(EXACT.divide(whole, Decimal(receivable.total_minor)))


def credit(receivable: Receivable, amount_minor: int) -> Change:
    """Credit a part of an invoice, tax in proportion: less is due, and what was paid goes into the payer's balance."""
    _above_zero(amount_minor)
    if receivable.state is State.VOID:
        raise RefusedError("a void invoice has nothing to credit")
    left = receivable.total_minor - receivable.credited_minor
    if amount_minor > left:
        raise RefusedError(f"{amount_minor} is more than the {max(0, left)} that are not credited yet")
    credited = receivable.credited_minor + amount_minor
    tax = _tax_share(receivable, credited) - receivable.credited_tax_minor
    recovered = min(receivable.written_off_minor, amount_minor)
    now = replace(receivable, written_off_minor=receivable.written_off_minor - recovered)
    from_due = min(amount_minor, now.due_minor)
    transfers = (
        *_moved("recovery", Account.RECEIVABLE, Account.BAD_DEBT, recovered),
        *_moved("credit_note", Account.REVENUE, Account.BALANCE, amount_minor - tax),
        *_moved("credit_note", Account.TAX, Account.BALANCE, tax),
        *_moved("credit_note", Account.BALANCE, Account.RECEIVABLE, from_due),
    )
    now = replace(
        now,
        credited_minor=credited,
        credited_due_minor=now.credited_due_minor + from_due,
        credited_tax_minor=now.credited_tax_minor + tax,
    )
    return Change(receivable=_settled(now), transfers=transfers)


def refund(receivable: Receivable, amount_minor: int) -> Change:
    """Send back money that was paid on the invoice and is now in the payer's balance."""
    _above_zero(amount_minor)
    left = receivable.paid_minor - receivable.refunded_minor
    if amount_minor > left:
        raise RefusedError(f"{amount_minor} is more than the {left} that were paid and not refunded yet")
    now = replace(receivable, refunded_minor=receivable.refunded_minor + amount_minor)
    return Change(receivable=now, transfers=_moved("refund", Account.BALANCE, Account.CASH, amount_minor))


def undo_refund(receivable: Receivable, amount_minor: int) -> Change:
    """Put a refund that failed back into the payer's balance."""
    now = replace(receivable, refunded_minor=receivable.refunded_minor - amount_minor)
    return Change(receivable=now, transfers=_moved("refund_failed", Account.CASH, Account.BALANCE, amount_minor))


def dispute(receivable: Receivable, amount_minor: int) -> Change:
    """Note that the payer's bank took a payment back until a dispute is over; the invoice stays as it is."""
    _above_zero(amount_minor)
    return Change(receivable, _moved("dispute", Account.DISPUTED, Account.CASH, amount_minor))


def dispute_fee(receivable: Receivable, amount_minor: int) -> Change:
    """Book what the provider keeps for a dispute; below zero what it gives back of that."""
    if amount_minor < 0:
        return Change(receivable, _moved("dispute_fee_back", Account.CASH, Account.FEES, -amount_minor))
    return Change(receivable, _moved("dispute_fee", Account.FEES, Account.CASH, amount_minor))


def dispute_won(receivable: Receivable, amount_minor: int) -> Change:
    """Book that the payer's bank gave it back."""
    return Change(receivable, _moved("dispute_won", Account.CASH, Account.DISPUTED, amount_minor))


def dispute_lost(receivable: Receivable, amount_minor: int, balance_minor: int = 0) -> Change:
    """Book that the payer has it back: what it paid of the invoice is due again.

    What it had paid beyond that went into its balance of `balance_minor` and comes out of it; what is spent is lost.
    """
    taken = min(amount_minor, receivable.paid_minor)
    kept = min(amount_minor - taken, balance_minor)
    transfers = (
        *_moved("dispute_lost", Account.RECEIVABLE, Account.DISPUTED, taken),
        *_moved("dispute_lost", Account.BALANCE, Account.DISPUTED, kept),
        *_moved("dispute_lost", Account.BAD_DEBT, Account.DISPUTED, amount_minor - taken - kept),
    )
    now = replace(receivable, paid_minor=receivable.paid_minor - taken)
    is_open_again = now.due_minor > 0 and now.state in (State.PAID, State.UNCOLLECTIBLE)
    return Change(replace(now, state=State.PAST_DUE) if is_open_again else now, transfers)


def void(receivable: Receivable) -> Change:
    """Take an invoice back as if it had never been; only while nothing was paid or credited on it."""
    if receivable.state is State.VOID:
        raise RefusedError("the invoice is void already")
    if receivable.paid_minor or receivable.credited_minor:
        raise RefusedError("something was paid or credited on it: issue a credit note instead")
    transfers = (
        *_moved("recovery", Account.RECEIVABLE, Account.BAD_DEBT, receivable.written_off_minor),
        *_moved("void", Account.RECEIVABLE, Account.BALANCE, receivable.balance_minor),
        *_moved("void", Account.REVENUE, Account.RECEIVABLE, receivable.subtotal_minor),
        *_moved("void", Account.TAX, Account.RECEIVABLE, receivable.tax_minor),
    )
    now = replace(receivable, state=State.VOID, balance_minor=0, written_off_minor=0)
    return Change(receivable=now, transfers=transfers)


def write_off(receivable: Receivable) -> Change:
    """Give up what is due."""
    if receivable.state not in (State.FINALISED, State.PAST_DUE):
        raise RefusedError(f"the invoice is {receivable.state}")
    due = receivable.due_minor
    # Some of it may be given up already, where a lost dispute opened it again.
    now = replace(receivable, state=State.UNCOLLECTIBLE, written_off_minor=receivable.written_off_minor + due)
    return Change(receivable=now, transfers=_moved("write_off", Account.BAD_DEBT, Account.RECEIVABLE, due))


def past_due(receivable: Receivable) -> Change:
    """Note that the day has come; nothing moves. One that was settled meanwhile stays as it is."""
    is_late = receivable.state is State.FINALISED
    return Change(receivable=replace(receivable, state=State.PAST_DUE) if is_late else receivable, transfers=())


def balance_change(change: Change) -> int:
    """Give how much more the payer's balance holds after a change; the account is a debt, so credits add to it."""
    return sum(
        transfer.amount_minor * ((transfer.credit is Account.BALANCE) - (transfer.debit is Account.BALANCE))
        for transfer in change.transfers
    )


def _above_zero(amount_minor: int) -> None:
    if amount_minor <= 0:
        raise RefusedError(f"the amount is {amount_minor}; it must be above zero")
