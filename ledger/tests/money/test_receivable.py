# ruff: noqa: SIM300 - expected first, then actual
"""What is owed, by random histories: accounts sum to zero and the account `receivable` is what is due."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.booked import what_differs
from tollkeeper_ledger.domain.receivable import (
    Account,
    Change,
    Receivable,
    RefusedError,
    State,
    balance_change,
    credit,
    dispute,
    dispute_lost,
    dispute_won,
    issue,
    past_due,
    pay,
    refund,
    undo_refund,
    void,
    write_off,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tollkeeper_ledger.domain.receivable import Transfer

AMOUNTS = st.integers(min_value=-50, max_value=5_000)
STEPS = st.lists(
    st.tuples(st.sampled_from(["pay", "credit", "refund", "void", "write_off", "undo", "lose", "win", "late"]),
              st.integers(0, 3_000)),
    max_size=12,
)  # fmt: skip


def standing_of(transfers: list[Transfer]) -> dict[Account, int]:
    """Sum transfers by account: debits less credits."""
    sums = dict.fromkeys(Account, 0)
    for transfer in transfers:
        assert transfer.amount_minor > 0
        sums[transfer.debit] += transfer.amount_minor
        sums[transfer.credit] -= transfer.amount_minor
    return sums


def in_turn(now: Receivable, amount: int, end: Callable[[Receivable, int], Change]) -> Change:
    """Begin and end a dispute."""
    begun = dispute(now, amount)
    ended = end(begun.receivable, amount)
    return Change(ended.receivable, begun.transfers + ended.transfers)


def play(step: str, amount: int, now: Receivable, balance: int) -> Change | None:
    """Do one step; None where it is refused, or would take more out of the balance than is in it."""
    doing: dict[str, Callable[[], Change]] = {
        "pay": lambda: pay(now, amount),
        "credit": lambda: credit(now, amount),
        "refund": lambda: refund(now, amount),
        "void": lambda: void(now),
        "write_off": lambda: write_off(now),
        "undo": lambda: undo_refund(now, min(amount, now.refunded_minor)),
        "lose": lambda: in_turn(now, amount, partial(dispute_lost, balance_minor=balance)),
        "win": lambda: in_turn(now, amount, dispute_won),
        "late": lambda: past_due(now),
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
        # What a lost dispute opened again may be given up in part.
        assert now.written_off_minor > 0 or now.state is not State.UNCOLLECTIBLE
        assert now.written_off_minor == 0 or now.state in (State.UNCOLLECTIBLE, State.PAST_DUE)
        assert what_differs(now, transfers) == ""
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


def test_a_lost_dispute_takes_back_what_was_paid_beyond_the_invoice() -> None:
    """100 due, 300 paid, all taken back: 100 is due again, the 200 leave the balance as far as they are there."""
    paid = pay(issue(subtotal_minor=100, tax_minor=0, balance_minor=0).receivable, 300)
    assert 200 == balance_change(paid)
    for left, lost in ((200, 0), (150, 50), (0, 200)):
        change = dispute_lost(paid.receivable, 300, left)
        sums = standing_of([*dispute(paid.receivable, 300).transfers, *change.transfers])
        assert (-left, 100, lost, 0) == (
            balance_change(change), sums[Account.RECEIVABLE], sums[Account.BAD_DEBT], sums[Account.DISPUTED]
        )  # fmt: skip


def test_an_invoice_may_be_given_up_twice() -> None:
    """Given up in part, opened again by a lost dispute over the rest: it can be given up whole, then be paid."""
    half = pay(issue(subtotal_minor=100, tax_minor=0, balance_minor=0).receivable, 50).receivable
    opened = dispute_lost(write_off(half).receivable, 50).receivable
    assert (State.PAST_DUE, 50, 50) == (opened.state, opened.due_minor, opened.written_off_minor)
    given_up = write_off(opened).receivable
    assert (State.UNCOLLECTIBLE, 0, 100) == (given_up.state, given_up.due_minor, given_up.written_off_minor)
    assert (State.PAID, 100) == ((paid := pay(given_up, 100).receivable).state, paid.paid_minor)


@given(subtotal=st.integers(100, 5_000), steps=STEPS, by=st.integers(1, 50), data=st.data())
def test_a_transfer_that_was_changed_shows(
    subtotal: int, steps: list[tuple[str, int]], by: int, data: st.DataObject
) -> None:
    """Another amount, kind, or direction of a transfer that moves what is owed, or one more or less, is told."""
    change = issue(subtotal_minor=subtotal, tax_minor=subtotal // 5, balance_minor=20)
    transfers, now, balance = list(change.transfers), change.receivable, 20 + balance_change(change)
    for step, amount in steps:
        if (after := play(step, amount, now, balance)) is not None:
            transfers, now, balance = [*transfers, *after.transfers], after.receivable, balance + balance_change(after)
    beside = {"overpayment", "dispute", "dispute_won"}
    owed = [at for at, one in enumerate(transfers) if one.kind not in beside and one.debit is not Account.BAD_DEBT]
    at = data.draw(st.sampled_from(owed))
    one = transfers[at]
    changed = data.draw(
        st.sampled_from(
            [
                [replace(one, amount_minor=one.amount_minor + by)],
                [replace(one, kind="refund" if one.kind != "refund" else "payment")],
                [replace(one, kind="gift")],
                [replace(one, debit=one.credit, credit=one.debit)],
                [],
                [one, one],
            ]
        )
    )
    assert what_differs(now, [*transfers[:at], *changed, *transfers[at + 1 :]])
