"""What the journal says of an invoice: its transfers summed by what they are, as its rows must say. Pure."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.receivable import Account, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tollkeeper_ledger.domain.receivable import Receivable, Transfer

BOOKED: Mapping[tuple[str, Account, Account], Mapping[str, int]] = MappingProxyType(
    {
        ("invoice", Account.RECEIVABLE, Account.REVENUE): {"subtotal": 1},
        ("invoice", Account.RECEIVABLE, Account.TAX): {"tax": 1},
        ("balance", Account.BALANCE, Account.RECEIVABLE): {"balance": 1},
        ("payment", Account.CASH, Account.RECEIVABLE): {"paid": 1},
        ("overpayment", Account.CASH, Account.BALANCE): {},
        ("recovery", Account.RECEIVABLE, Account.BAD_DEBT): {"written_off": -1},
        ("credit_note", Account.REVENUE, Account.BALANCE): {"credited": 1},
        ("credit_note", Account.TAX, Account.BALANCE): {"credited": 1, "credited_tax": 1},
        ("credit_note", Account.BALANCE, Account.RECEIVABLE): {"credited_due": 1},
        ("refund", Account.BALANCE, Account.CASH): {"refunded": 1},
        ("refund_failed", Account.CASH, Account.BALANCE): {"refunded": -1},
        ("dispute", Account.DISPUTED, Account.CASH): {},
        ("dispute_won", Account.CASH, Account.DISPUTED): {},
        ("dispute_lost", Account.RECEIVABLE, Account.DISPUTED): {"paid": -1},
        ("dispute_lost", Account.BALANCE, Account.DISPUTED): {},
        ("dispute_lost", Account.BAD_DEBT, Account.DISPUTED): {},
        ("dispute_fee", Account.FEES, Account.CASH): {},
        ("dispute_fee_back", Account.CASH, Account.FEES): {},
        ("write_off", Account.BAD_DEBT, Account.RECEIVABLE): {"written_off": 1},
        ("void", Account.RECEIVABLE, Account.BALANCE): {"balance": -1},
        ("void", Account.REVENUE, Account.RECEIVABLE): {"void_subtotal": 1},
        ("void", Account.TAX, Account.RECEIVABLE): {"void_tax": 1},
    }
)
"""What a transfer that debits the first account and credits the second adds to."""
_BELOW_ZERO = frozenset({"invoice", "balance", "credit_note", "void"})
"""Kinds whose amounts may be below zero: their transfers then go the other way, and take off."""


def what_differs(receivable: Receivable, transfers: Iterable[Transfer]) -> str:
    """Say in which sum an invoice's receivable is not what its transfers come to; empty where they agree."""
    sums: Counter[str] = Counter()
    for transfer in transfers:
        way, sign = BOOKED.get((transfer.kind, transfer.debit, transfer.credit)), 1
        if way is None and transfer.kind in _BELOW_ZERO:
            way, sign = BOOKED.get((transfer.kind, transfer.credit, transfer.debit)), -1
        if way is None:
            return f"nothing is booked as {transfer.kind!r} from {transfer.credit} to {transfer.debit}"
        for name, by in way.items():
            sums[name] += by * sign * transfer.amount_minor
    is_void = receivable.state is State.VOID
    said = {
        "subtotal": receivable.subtotal_minor,
        "tax": receivable.tax_minor,
        "balance": receivable.balance_minor,
        "paid": receivable.paid_minor,
        "credited": receivable.credited_minor,
        "credited_due": receivable.credited_due_minor,
        "credited_tax": receivable.credited_tax_minor,
        "written_off": receivable.written_off_minor,
        "refunded": receivable.refunded_minor,
        "void_subtotal": receivable.subtotal_minor if is_void else 0,
        "void_tax": receivable.tax_minor if is_void else 0,
    }
    for name, minor in said.items():
        if sums[name] != minor:
            return f"{name}_minor is {minor}, its transfers come to {sums[name]}"
    return _wrong_state(receivable)


def _wrong_state(receivable: Receivable) -> str:
    """Say where a state doesn't go with the sums; whether an open invoice's day has come is not looked at."""
    if receivable.state is State.VOID:
        return ""
    if receivable.due_minor:
        fitting = {State.FINALISED, State.PAST_DUE}
    else:
        fitting = {State.UNCOLLECTIBLE if receivable.written_off_minor else State.PAID}
    return "" if receivable.state in fitting else f"it is {receivable.state} with {receivable.due_minor} due"
