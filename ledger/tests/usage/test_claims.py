# ruff: noqa: SIM300 - expected first, then actual
"""Guesses about ids: right ones are made again and again, wrong ones ever less often."""

from __future__ import annotations

from itertools import pairwise

from tollkeeper_ledger.services.usage_claims import PAUSE_MAX, RECORDS_MIN, Guesses


def guess(guesses: Guesses, *, met_taken: bool, count: int = RECORDS_MIN) -> bool:
    """Have one append guess and learn."""
    guessed = guesses.all_free(count)
    guesses.learn(guessed=guessed, met_taken=met_taken)
    return guessed


def test_ids_that_are_free_are_guessed_free() -> None:
    """No append asks as long as none meets a taken id, but small ones, which gain nothing."""
    guesses = Guesses()
    assert [True] * 10 == [guess(guesses, met_taken=False) for _ in range(10)]
    assert not guess(guesses, met_taken=False, count=RECORDS_MIN - 1)
    assert guess(guesses, met_taken=False)


def test_wrong_guesses_become_rare() -> None:
    """Where each append meets a taken id, at most one guess is wrong; where every guess does, the gaps double."""
    always = Guesses()
    assert [True] + [False] * 500 == [guess(always, met_taken=True) for _ in range(501)]
    unlucky, guessed = Guesses(), []
    for at in range(300):
        will = unlucky.all_free(RECORDS_MIN)
        unlucky.learn(guessed=will, met_taken=will)
        if will:
            guessed.append(at)
    assert [2, 3, 5, 9, 17, 33, PAUSE_MAX + 1, PAUSE_MAX + 1, PAUSE_MAX + 1] == [
        later - before for before, later in pairwise(guessed)
    ]


def test_a_right_guess_ends_the_caution() -> None:
    """After one the next taken id makes one append ask, not as many as before."""
    guesses = Guesses()
    for _ in range(4):
        guess(guesses, met_taken=True)
    while not guess(guesses, met_taken=False):
        pass
    assert [True, False, True] == [guess(guesses, met_taken=at == 0) for at in range(3)]
