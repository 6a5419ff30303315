"""The decisions of Allot under any order of asks, repeats, faults, returns and changes of the amount."""

from __future__ import annotations

import copy

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tollkeeper_ledger.domain.allotment import (
    decide,
    follow_amount,
    new_window,
    notice_due,
    return_lease,
    return_pooled,
)
from tollkeeper_ledger.domain.limits import LimitKind
from tollkeeper_ledger.domain.window_state import (
    Ask,
    Denied,
    Generation,
    Holder,
    Leased,
    Pooled,
    PoolFault,
    Refused,
    WindowState,
)

HOLDERS = [bytes([number]) * 16 for number in range(4)]
UNITS = st.integers(0, 120)


def window_of(amount: int) -> WindowState:
    """Give a fresh window."""
    return new_window(amount=amount, amount_version=1, timeline=1, generation_n=0)


def ask(holder: int = 0, seq: int = 1, need: int = 1, want: int = 10, **changes: object) -> Ask:
    """Give an ask."""
    return Ask(holder=HOLDERS[holder], request_seq=seq, need=need, want=want, **changes)  # type: ignore[arg-type]


class AnyInterleaving(RuleBasedStateMachine):
    """Holders, a pool that is lost at any time, an operator: the limit's own books must always balance.

    The model keeps what was really given out: each lease, and each pool's filling. Whatever happens, what was given
    and didn't come back is at most the highest amount that was in force while it was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.window = window_of(100)
        self.highest = 100
        self.version = 1
        self.leases: dict[bytes, list[int]] = {holder: [0, 0] for holder in HOLDERS}
        self.pools: dict[int, Generation] = {}
        self.lost_returns: dict[tuple[int, bytes], int] = {}
        self.repeats: list[tuple[Ask, Leased]] = []

    def _answer(self, request: Ask) -> Leased | Pooled | Denied | Refused:
        left = self.window.left
        answer = decide(self.window, request)
        if isinstance(answer, Leased):
            self.leases[request.holder][0] += answer.give
            assert answer.granted_cum == self.leases[request.holder][0]
            assert request.need <= answer.give <= left
            self.repeats = [pair for pair in self.repeats if pair[0].holder != request.holder]
            self.repeats.append((request, answer))
        elif isinstance(answer, Pooled):
            generation = self.window.generation
            assert generation is not None
            assert (answer.generation, answer.allotted_cum) == (generation.number, generation.allotted_cum)
            assert answer.final == (self.window.allotted >= self.window.amount)
            self.pools[answer.generation] = generation
        elif isinstance(answer, Denied):
            assert answer.left == self.window.left
            assert max(request.need, request.want) == 0 or answer.left < max(1, request.need)
        return answer

    @rule(
        holder=st.integers(0, 3),
        need=UNITS,
        want=UNITS,
        fault=st.sampled_from([None, None, None, *PoolFault]),
        seen=st.sampled_from(["nothing", "older", "current"]),
        ledger_only=st.booleans(),
    )
    def asks(self, *, holder: int, need: int, want: int, fault: PoolFault | None, seen: str, ledger_only: bool) -> None:
        """Ask for the first time with this number."""
        current = self.window.generation
        known = 0 if current is None or seen == "nothing" else current.number - (seen == "older")
        cum = 0 if current is None or seen == "nothing" else current.allotted_cum
        state = self.window.holders.get(HOLDERS[holder], Holder())
        request = ask(
            holder, state.request_seq + 1, need, want,
            fault=fault, generation_seen=known, allotted_cum_seen=cum, ledger_only=ledger_only,
        )  # fmt: skip
        self._answer(request)

    @precondition(lambda self: self.repeats)
    @rule(data=st.data())
    def repeats_its_last_lease(self, data: st.DataObject) -> None:
        """Repeat a holder's last ask: if that gave a lease, it gives the same and moves nothing."""
        request, before = data.draw(st.sampled_from(self.repeats))
        if self.window.holders[request.holder].request_seq != request.request_seq:
            return
        books = (self.window.allotted, self.window.generation_n)
        assert decide(self.window, request) == before
        assert (self.window.allotted, self.window.generation_n) == books

    @rule(holder=st.integers(0, 3), skipped=st.sampled_from([-2, -1, 2, 3]))
    def asks_out_of_turn(self, holder: int, skipped: int) -> None:
        """Ask with any number but the last and the next: refused, and nothing moves."""
        known = self.window.holders.get(HOLDERS[holder], Holder()).request_seq
        before = copy.deepcopy((self.window.allotted, self.window.generation))
        answer = decide(self.window, ask(holder, known + skipped))
        assert isinstance(answer, Refused)
        assert answer.last_request_seq == known
        assert (self.window.allotted, self.window.generation) == before

    @rule(holder=st.integers(0, 3), returned_cum=st.integers(0, 300))
    def returns_leased_units(self, holder: int, returned_cum: int) -> None:
        """Return units of the ledger, truthfully or not."""
        state = self.window.holders.get(HOLDERS[holder])
        if state is None:
            return
        lease = self.leases[HOLDERS[holder]]
        back = return_lease(self.window, state, returned_cum=returned_cum)
        assert back == max(0, min(returned_cum, lease[0]) - lease[1])
        lease[1] += back

    @precondition(lambda self: self.pools)
    @rule(data=st.data(), holder=st.integers(0, 3), returned_cum=st.integers(0, 300))
    def returns_units_of_a_pool(self, data: st.DataObject, holder: int, returned_cum: int) -> None:
        """Return units of a generation, ended or not: at most what went in comes back."""
        number = data.draw(st.sampled_from(sorted(self.pools)))
        generation = self.pools[number]
        current = self.window.generation
        if current is None or current.number != number:
            generation.lost = True
        key = (number, HOLDERS[holder])
        before = self.lost_returns.get(key, 0)
        back = return_pooled(self.window, generation, before_cum=before, returned_cum=returned_cum)
        assert back >= 0
        self.lost_returns[key] = max(before, returned_cum)

    @rule(amount=st.sampled_from([0, 1, 30, 100, 250]))
    def changes_the_amount(self, amount: int) -> None:
        """Change the limit; an older version that comes late changes nothing."""
        self.version += 1
        self.highest = max(self.highest, amount)
        assert follow_amount(self.window, amount=amount, amount_version=self.version)
        assert not follow_amount(self.window, amount=amount + 1, amount_version=self.version)

    @rule()
    def hears_of_units(self) -> None:
        """Hear of units exactly when what was denied is there, or a pool was lost; once."""
        expected = self.window.pool_lost or 0 < self.window.wanted <= self.window.left
        assert expected == notice_due(self.window)
        assert not notice_due(self.window)

    @invariant()
    def books_balance(self) -> None:
        """Compare: allotted = leases out + pools' fillings not credited, never above the ceiling or any amount."""
        leased = sum(granted - returned for granted, returned in self.leases.values())
        pooled = sum(pool.allotted_cum - pool.credited for pool in self.pools.values())
        assert self.window.allotted == leased + pooled
        assert 0 <= self.window.allotted <= self.window.ceiling
        assert self.window.allotted <= self.highest


AnyInterleaving.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyInterleaving = AnyInterleaving.TestCase


def test_a_first_lease_is_a_share_and_the_next_ask_a_pool() -> None:
    """1/16 of the amount first, then a pool that grows by 1/16."""
    window = window_of(1600)
    assert decide(window, ask(want=1600)) == Leased(give=100, granted_cum=100)
    assert decide(window, ask(1)) == Pooled(generation=(1 << 32) + 1, allotted_cum=100, final=False)


def test_only_who_has_seen_everything_makes_a_pool_grow() -> None:
    """An ask with an older figure is told where the pool is, and Redis is told again."""
    window = window_of(1600)
    decide(window, ask())
    pool = decide(window, ask(1))
    assert isinstance(pool, Pooled)
    assert window.generation is not None
    window.generation.publish = False
    late = decide(window, ask(2, generation_seen=pool.generation, allotted_cum_seen=pool.allotted_cum - 1))
    assert late == pool
    assert window.generation.publish
    full = decide(window, ask(3, generation_seen=pool.generation, allotted_cum_seen=pool.allotted_cum))
    assert full == Pooled(generation=pool.generation, allotted_cum=pool.allotted_cum + 100, final=False)


def test_a_generation_is_replaced_once_per_report() -> None:
    """The second report of the same generation is told of the new one; nothing is opened for it."""
    window = window_of(1600)
    decide(window, ask())
    pool = decide(window, ask(1))
    assert isinstance(pool, Pooled)
    lost = {"fault": PoolFault.NO_POOL, "generation_seen": pool.generation}
    second = decide(window, ask(2, **lost))  # type: ignore[arg-type]
    third = decide(window, ask(3, **lost))  # type: ignore[arg-type]
    assert isinstance(second, Pooled)
    assert second.generation == pool.generation + 1
    assert third == second


def test_a_lost_pool_with_nothing_left_is_a_denial_without_a_new_generation() -> None:
    """Opening pools for nothing would help nobody."""
    window = window_of(16)
    decide(window, ask(need=1, want=1))
    pool = decide(window, ask(1))
    assert isinstance(pool, Pooled)
    assert pool.final
    answer = decide(window, ask(2, fault=PoolFault.FENCE, generation_seen=pool.generation))
    assert answer == Denied(left=0)
    assert window.generation_n == 1


def test_unreachable_redis_is_no_reason_to_deny_beside_a_live_pool() -> None:
    """What is left is leased; when nothing is, the pool may still have units that nobody can see."""
    window = window_of(40)
    decide(window, ask(need=4, want=4))
    pool = decide(window, ask(1))
    assert isinstance(pool, Pooled)
    blind = {"fault": PoolFault.UNREACHABLE, "generation_seen": pool.generation}
    assert decide(window, ask(2, need=20, want=20, **blind)) == Leased(give=20, granted_cum=20)  # type: ignore[arg-type]
    answer = decide(window, ask(3, **blind))  # type: ignore[arg-type]
    assert isinstance(answer, Refused)
    assert answer.reason == "AUTHORITY_UNREACHABLE"


def test_a_lower_amount_ends_the_pool_only_where_more_than_it_is_out() -> None:
    """Above what is out the pool goes on; below, it closes and nothing more is allotted."""
    window = window_of(1600)
    decide(window, ask())
    decide(window, ask(1))
    follow_amount(window, amount=1000, amount_version=2)
    assert window.generation is not None
    assert window.generation.live
    follow_amount(window, amount=50, amount_version=3)
    assert window.generation.closing
    assert decide(window, ask(2)) == Denied(left=0)
    assert window.ceiling == window.allotted


def test_a_lease_ahead_of_need_is_no_more_than_what_is_left() -> None:
    """With three units left, a share of six is three."""
    window = window_of(100)
    decide(window, ask(need=97, want=97))
    assert decide(window, ask(1, want=50, ledger_only=True)) == Leased(give=3, granted_cum=3)


def test_the_smallest_denied_need_is_who_is_waited_for() -> None:
    """Whoever needed least hears first: of 50, 5 and 20 it is 5."""
    window = window_of(100)
    decide(window, ask(need=100, want=100))
    for holder, need in ((1, 50), (2, 5), (3, 20)):
        assert decide(window, ask(holder, need=need)) == Denied(left=0)
    return_lease(window, window.holders[HOLDERS[0]], returned_cum=4)
    assert not notice_due(window)
    return_lease(window, window.holders[HOLDERS[0]], returned_cum=5)
    assert notice_due(window)


def test_what_a_lost_pool_refused_counts_for_nothing() -> None:
    """Whoever it had refused is told at once, and again when units come back, though the ledger denied nobody."""
    window = window_of(100)
    decide(window, ask(0, need=1, want=1))
    pool = decide(window, ask(1, need=99, want=99))
    assert isinstance(pool, Pooled)
    assert not notice_due(window)
    told = decide(window, ask(1, seq=2, need=0, want=0, fault=PoolFault.NO_POOL, generation_seen=pool.generation))
    assert isinstance(told, Denied), "who only tells asks for no pool"
    assert notice_due(window)
    assert not notice_due(window)
    generation = window.generation
    assert generation is not None
    assert return_pooled(window, generation, before_cum=0, returned_cum=40) == 40
    assert notice_due(window)


def test_a_final_pool_is_told_when_units_came_back_to_the_limit() -> None:
    """Its refusals would go on as proof of exhaustion although there are units again."""
    window = window_of(100)
    decide(window, ask(need=40, want=40))
    pool = decide(window, ask(1, need=60))
    assert pool == Pooled(generation=(1 << 32) + 1, allotted_cum=60, final=True)
    assert window.generation is not None
    window.generation.publish = False
    return_lease(window, window.holders[HOLDERS[0]], returned_cum=1)
    assert window.generation.publish
    window.generation.publish = False
    return_lease(window, window.holders[HOLDERS[0]], returned_cum=2)
    assert not window.generation.publish


def test_a_pool_grows_by_a_quarter_so_that_leases_ahead_go_on() -> None:
    """However much went in, after growing a fifth of it is free: more than the tenth below which nothing goes ahead."""
    window = window_of(1_000_000)
    decide(window, ask())
    pool = decide(window, ask(1))
    seq = 2
    while isinstance(pool, Pooled) and not pool.final:
        grown = decide(window, ask(1, seq, generation_seen=pool.generation, allotted_cum_seen=pool.allotted_cum))
        seq += 1
        assert isinstance(grown, Pooled)
        assert grown.final or (grown.allotted_cum - pool.allotted_cum) * 5 >= grown.allotted_cum - 4
        pool = grown
    assert seq < 20


def test_a_late_repeat_of_a_denied_ask_leases_nothing_for_good() -> None:
    """Who was denied units of a level, or in flight, heard it and asks no more: a repeat that comes late gives none."""
    for kind in (LimitKind.LEVEL, LimitKind.CONCURRENCY):
        window = window_of(2)
        assert Leased(give=2, granted_cum=2, lease_epoch=int(kind is LimitKind.CONCURRENCY)) == decide(
            window, ask(0, 1, need=2), kind=kind
        )
        assert Denied(left=0) == decide(window, ask(1, 1), kind=kind)
        return_lease(window, window.holders[HOLDERS[0]], returned_cum=2)
        late = decide(window, ask(1, 1), kind=kind)
        assert Leased(give=0, granted_cum=0) == late
        assert window.left == 2
        assert isinstance(decide(window, ask(1, 2), kind=kind), Leased)
        assert window.left == 1
