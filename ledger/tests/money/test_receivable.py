# ruff: noqa: SIM300 - expected first, then actual
"""What is owed, by random histories: accounts sum to zero and the account `receivable` is what is due."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.receivable import (
    Account,
    Receivable,
    RefusedError,
    State,
    balance_change,
    credit,
    issue,
    pay,
    refund,
    undo_refund,
    void,
    write_off,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tollkeeper_ledger.domain.receivable import Change, Transfer

AMOUNTS = st.integers(min_value=-50, max_value=5_000)
STEPS = st.lists(
    st.tuples(st.sampled_from(["pay", "credit", "refund", "void", "write_off", "undo"]), st.integers(0, 3_000)),
    max_size=12,
)


def standing_of(transfers: list[Transfer]) -> dict[Account, int]:
    """Sum transfers by account: debits less credits."""
    sums = dict.fromkeys(Account, 0)
    for transfer in transfers:
        assert transfer.amount_minor > 0
        sums[transfer.debit] += transfer.amount_minor
        sums[transfer.credit] -= transfer.amount_minor
    return sums


def play(step: str, amount: int, now: Receivable, balance: int) -> Change | None:
    """Do one step; None where it is refused, or would take more out of the balance than is in it."""
    doing: dict[str, Callable[[], Change]] = {
        "pay": lambda: pay(now, amount),
        "credit": lambda: credit(now, amount),
        "refund": lambda: refund(now, amount),
        "void": lambda: void(now),
        "write_off": lambda: write_off(now),
        "undo": lambda: undo_refund(now, min(amount, now.refunded_minor)),
    }
    try:
        change = doing[step]()
    except RefusedError:
        return None
    return None if balance + balance_change(change) < 0 else change


@given(subtotal=AMOUNTS, tax=st.integers(0, 900), before=st.integers(0, 2_000), steps=STEPS)
def test_histories_sum_to_zero_and_leave_what_is_due(
    subtotal: int, tax: int, before: int, steps: list[tuple[str, int]]
) -> None:
    """After every step: accounts sum to zero, receivable is what is due, never below zero, balance is what was kept."""
    tax = tax if subtotal > 0 else 0
    change = issue(subtotal_minor=subtotal, tax_minor=tax, balance_minor=before)
    transfers, balance = list(change.transfers), before + balance_change(change)
    now = change.receivable
    for step, amount in [("", 0), *steps]:
        after = play(step, amount, now, balance) if step else change
        if after is None:
            continue
        if step:
            transfers.extend(after.transfers)
            balance += balance_change(after)
            now = after.receivable
        sums = standing_of(transfers)
        assert sum(sums.values()) == 0
        assert sums[Account.RECEIVABLE] == now.due_minor >= 0
        assert before - sums[Account.BALANCE] == balance >= 0
        assert (now.due_minor == 0) == (now.state in (State.PAID, State.UNCOLLECTIBLE, State.VOID))
        assert (now.written_off_minor > 0) == (now.state is State.UNCOLLECTIBLE)
        if now.state is State.VOID:
            assert sums[Account.REVENUE] == sums[Account.TAX] == 0
        else:
            assert -sums[Account.TAX] == tax - now.credited_tax_minor


@pytest.mark.parametrize("steps", [[1190], [1, 1189], [397, 396, 397]])
def test_credits_of_a_whole_invoice_take_all_its_tax(steps: list[int]) -> None:
    """However it is cut, crediting all of an invoice credits all of its tax and leaves nothing due."""
    now = issue(subtotal_minor=1000, tax_minor=190, balance_minor=0).receivable
    for amount in steps:
        now = credit(now, amount).receivable
    assert (190, 0, State.PAID) == (now.credited_tax_minor, now.due_minor, now.state)
    with pytest.raises(RefusedError, match="not credited yet"):
        credit(now, 1)


def test_what_a_step_may_not_do() -> None:
    """A paid invoice can't be voided, a void one not credited, no more refunded than was paid, nothing below one."""
    now = issue(subtotal_minor=100, tax_minor=0, balance_minor=0).receivable
    paid = pay(now, 40).receivable
    for attempt in (
        lambda: void(paid),
        lambda: credit(void(now).receivable, 1),
        lambda: refund(paid, 41),
        lambda: pay(now, 0),
        lambda: write_off(void(now).receivable),
        lambda: void(void(now).receivable),
    ):
        with pytest.raises(RefusedError):
            attempt()
