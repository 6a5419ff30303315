"""A Postgres that is set back to an earlier state: noticed before anything is issued from it, in every way that tells.

The database is really set back: it is copied, goes on, and is replaced by the copy.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from limits_support import apply_catalogue, kind, new_key
from set_back_support import confirm, flush, serving_on, state_of
from tollkeeper.ledger.v1 import limits_pb2, limits_pb2_grpc
from tollkeeper_ledger.domain.issuing import Issuing
from tollkeeper_ledger.services import allot_batch, returns
from tollkeeper_ledger.services.restores import Restores
from tollkeeper_ledger.store import witnesses
from tollkeeper_ledger.store.limits import lock_windows, successor
from tollkeeper_ledger.store.witnesses import commit_witness
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from limits_support import Serving
    from set_back_support import History
    from tollkeeper_ledger.config import Settings
    from tollkeeper_ledger.domain.issuing import Witness
    from tollkeeper_ledger.store.limits import WindowRow
    from tollkeeper_ledger.store.pool import Connection
    from tollkeeper_ledger.store.witnesses import Committing

LIMIT, AMOUNT = "large", 16_000


async def prepare(settings: Settings, history: History, key: bytes) -> int:
    """Declare tenants, lease a little, and copy the database; gives the units that the copy knows of."""
    async with serving_on(settings) as served:
        await apply_catalogue(served.channel)
        given = (await served.sidecar().ask(LIMIT, key, need=100, want=100)).lease.give
    await history.back_up()
    return int(given)


async def take_all(served: Serving, key: bytes) -> int:
    """Lease straight from the ledger until nothing is given any more; gives the units."""
    taken = 0
    sidecar = served.sidecar()
    while True:
        answer = await sidecar.ask(LIMIT, key, need=500, want=1000, ledger_only=True)
        if kind(answer) != "lease":
            return taken
        taken += answer.lease.give


async def test_a_ledger_that_lives_through_a_set_back_issues_nothing_from_it(
    settings: Settings, history: History
) -> None:
    """The ledger's own last witness is missing: no transaction issues, and no unit is given twice."""
    key = new_key()
    before = await prepare(settings, history, key)
    async with serving_on(settings) as served:
        lost = await take_all(served, key)
        assert lost > AMOUNT - before - 1000, "the limit was used up after the copy"
        await history.set_back()

        async def answered() -> bool:
            try:
                answers.append(await served.sidecar().ask(LIMIT, key, need=1, want=1))
            except grpc.aio.AioRpcError:
                return False  # the connections are gone; the ledger takes new ones
            return True

        answers: list[limits_pb2.AllotAnswer] = []
        await wait_until(answered)
        assert answers[0].refused.reason == "RESTORE_UNCONFIRMED"
        again = await take_all(served, key)
        assert again == 0
        state = await state_of(served.channel)
        assert (state.timeline, state.HasField("frozen_before")) == (2, True)


async def test_redis_tells_a_ledger_that_was_started_after_the_set_back(settings: Settings, history: History) -> None:
    """What Redis kept is compared before the first call is served."""
    key = new_key()
    await prepare(settings, history, key)
    async with serving_on(settings) as served:
        await take_all(served, key)
    await history.set_back()
    async with serving_on(settings) as served:
        answer = await served.sidecar().ask(LIMIT, key, need=1, want=1)
        assert answer.refused.reason == "RESTORE_UNCONFIRMED"


async def test_a_sidecar_tells_where_redis_was_lost_as_well(settings: Settings, history: History) -> None:
    """Redis is lost at the same time: the witness that came with a sidecar's units is shown at its next hello."""
    key = new_key()
    before = await prepare(settings, history, key)
    async with serving_on(settings) as served:
        sidecar = served.sidecar()
        request = limits_pb2.AllotRequest(
            holder=sidecar.holder, entries=[sidecar.entry(LIMIT, key, need=1, want=1000, ledger_only=True)]
        )
        seen = (await sidecar.stub.Allot(request)).witness
        lost = await take_all(served, key)
    await history.set_back()
    await flush(settings)
    async with serving_on(settings) as served:
        await hello(served, seen)
        again = await take_all(served, key)
        assert again == 0, f"{before} + {lost} + {again} of {AMOUNT}"
        assert (await state_of(served.channel)).timeline == seen.timeline + 1


async def test_a_return_is_credited_only_by_a_postgres_that_did_not_go_back(
    settings: Settings, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call after a set-back is a return of what the lost branch gave: noticed before anything is credited."""

    async def never(_restores: Restores) -> None:
        """Nothing tells but the transaction itself."""

    monkeypatch.setattr(Restores, "tick", never)
    key = new_key()
    async with serving_on(settings) as served:
        await apply_catalogue(served.channel)
        holder = (sidecar := served.sidecar()).holder
        window_id = (await sidecar.ask(LIMIT, key, need=100, want=100)).window.window_id
    await history.back_up()
    async with serving_on(settings) as served:
        later = type(sidecar)(channel=served.channel, ledger=served.ledger, holder=holder)
        await later.ask(LIMIT, key, need=900, want=900, ledger_only=True, request_seq=2)
        await history.set_back()

        async def answered() -> bool:
            try:
                known.append(await later.give_back(window_id, 100))
            except grpc.aio.AioRpcError:
                return False  # the connections are gone; the ledger takes new ones
            return True

        known: list[int] = []
        await wait_until(answered)
        assert known == [0]
        assert (await state_of(served.channel)).timeline == 2


async def hello(served: Serving, seen: limits_pb2.Witness) -> limits_pb2.WatchWelcome:
    """Introduce a sidecar that has seen a witness; gives the ledger's welcome."""

    async def requests() -> AsyncIterator[limits_pb2.WatchLimitsRequest]:
        yield limits_pb2.WatchLimitsRequest(
            hello=limits_pb2.WatchHello(
                protocol_version=1,
                holder=secrets.token_bytes(16),
                timeline_seen=seen.timeline,
                witness_seen=seen.value,
            )
        )

    stream = limits_pb2_grpc.LimitServiceStub(served.channel).WatchLimits(requests())
    return (await anext(aiter(stream))).welcome


async def test_windows_that_began_after_a_set_back_are_issued_from(settings: Settings, history: History) -> None:
    """Only windows that may have been open are frozen: what begins later is nobody's yet."""
    key = new_key()
    async with serving_on(settings) as served:
        await apply_catalogue(served.channel)
    await history.back_up()
    async with serving_on(settings) as served:
        await served.sidecar().ask(LIMIT, key)
        await history.set_back()
        await wait_until(lambda: is_frozen(served))
        now_us = served.ledger.resources.clock.reading().now_us
        soon_us = now_us // 60_000_000 * 60_000_000 + 60_000_000
        unknown = await served.sidecar().ask("minute", new_key(), at_us=now_us)
        assert unknown.refused.reason == "RESTORE_UNCONFIRMED", "may have been open, unknown to this Postgres"
        # Two minutes on, by the scaled clock: its window began after the set-back.
        await served.ledger.resources.clock.set(now=None, speed_milli=600_000)
        await wait_until(lambda: later_than(served, soon_us + 60_000_000))
        await served.ledger.resources.clock.set(now=None, speed_milli=1_000)
        assert kind(await served.sidecar().ask("minute", new_key())) == "lease"


async def later_than(served: Serving, at_us: int) -> bool:
    """Tell whether ledger time has come so far."""
    return served.ledger.resources.clock.reading().now_us > at_us


async def is_frozen(served: Serving) -> bool:
    """Tell whether the ledger has noticed."""
    try:
        return (await state_of(served.channel)).HasField("frozen_before")
    except grpc.aio.AioRpcError:
        return False


async def test_a_confirmed_restore_issues_what_postgres_knows_to_be_left(settings: Settings, history: History) -> None:
    """Issuing goes on in a new timeline from amount - allotted; a repeat of the confirmation changes nothing."""
    key = new_key()
    before = await prepare(settings, history, key)
    async with serving_on(settings) as served:
        await take_all(served, key)
    await history.set_back()
    async with serving_on(settings) as served:
        first, second = await confirm(served.channel), await confirm(served.channel)
        assert [first.was_frozen, second.was_frozen] == [True, False]
        answer = await served.sidecar().ask(LIMIT, key, need=1, want=1, ledger_only=True)
        assert (answer.window.timeline, answer.window.allotted) == (2, before + 1)
        rest = await take_all(served, key)
        assert before + 1 + rest <= AMOUNT
        assert before + 1 + rest > AMOUNT - 500, "what is left is really given"


async def test_a_generation_of_the_new_timeline_is_above_every_lost_one(settings: Settings, history: History) -> None:
    """Pools of the lost branch can't be mistaken for later ones, although their numbers were forgotten."""
    key = new_key()
    await prepare(settings, history, key)
    async with serving_on(settings) as served:
        lost = await served.sidecar().ask(LIMIT, key)
        assert kind(lost) == "pool"
    await history.set_back()
    async with serving_on(settings) as served:
        await confirm(served.channel)
        asked = [await served.sidecar().ask(LIMIT, key) for _ in range(2)]
        found = [answer.pool.generation for answer in asked if kind(answer) == "pool"]
        assert found, "the second holder is sent to a pool"
        assert min(found) >= 2 << 32 > lost.pool.generation


async def test_units_of_a_lost_branch_never_come_back_as_credit(settings: Settings, history: History) -> None:
    """A holder returns what the restored Postgres never gave: the limit gets nothing for it."""
    key = new_key()
    async with serving_on(settings) as served:
        await apply_catalogue(served.channel)
        sidecar = served.sidecar()
        first = await sidecar.ask(LIMIT, key, need=100, want=100)
    await history.back_up()
    async with serving_on(settings) as served:
        later = type(sidecar)(channel=served.channel, ledger=served.ledger, holder=sidecar.holder)
        second = await later.ask(LIMIT, key, need=900, want=900, ledger_only=True, request_seq=2)
        assert second.lease.granted_cum == 1000
    await history.set_back()
    async with serving_on(settings) as served:
        later = type(sidecar)(channel=served.channel, ledger=served.ledger, holder=sidecar.holder)
        assert await later.give_back(first.window.window_id, 100) == 0
        await confirm(served.channel)
        answer = await served.sidecar().ask(LIMIT, key, need=1, want=1, ledger_only=True)
        assert answer.window.allotted == 101


async def test_another_installations_witness_changes_nothing(settings: Settings) -> None:
    """A sidecar that comes from elsewhere, or lies, can't stop issuing here."""
    async with serving_on(settings) as served:
        await apply_catalogue(served.channel)
        for value in (secrets.token_bytes(28), b"", b"x", bytes(28)):
            await hello(served, limits_pb2.Witness(timeline=9, value=value))
        assert (await state_of(served.channel)).timeline == 1
        assert kind(await served.sidecar().ask(LIMIT, new_key())) == "lease"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A ledger with one rule broken: why that must not pass, where it stands, and the trial that finds it."""

    reason: str
    owner: object
    name: str
    broken: object
    trial: Callable[[Settings, History], Awaitable[None]]


def _never_refused(_issuing: object, _span: object, **_: object) -> None:
    return None


async def _issued_unseen(restores: Restores, conn: Connection) -> tuple[Witness, Issuing]:
    found = await commit_witness(conn, value=secrets.token_bytes(16), newest=restores._newest)
    return found.witness, found.issuing


def _nothing_out(before: WindowRow, window_id: bytes, *, timeline: int, allotted: int, rounds: int = 0) -> WindowRow:
    return successor(before, window_id, timeline=timeline, allotted=0 * allotted, rounds=rounds)


async def _of_this_timeline(conn: Connection, window_ids: Collection[bytes]) -> dict[bytes, WindowRow]:
    rows = await lock_windows(conn, window_ids)
    for row in rows.values():
        row.state.timeline += 1
    return rows


async def _old_timeline(conn: Connection, *, value: bytes, newest: Witness) -> Committing:
    found = await commit_witness(conn, value=value, newest=newest)
    return replace(found, issuing=replace(found.issuing, timeline=1))


MUTANTS = {
    "witness-not-looked-for": Mutant(
        "A transaction that issues without looking for the newest witness gives out what is out already.",
        Restores,
        "issue",
        _issued_unseen,
        test_a_ledger_that_lives_through_a_set_back_issues_nothing_from_it,
    ),
    "frozen-window-issued": Mutant(
        "A window that was open at the restore is issued from although nobody confirmed.",
        Issuing,
        "refuses_window",
        _never_refused,
        test_a_sidecar_tells_where_redis_was_lost_as_well,
    ),
    "lost-window-opened": Mutant(
        "A window that Postgres has lost is opened again with its full amount.",
        Issuing,
        "refuses_opening",
        _never_refused,
        test_windows_that_began_after_a_set_back_are_issued_from,
    ),
    "renewed-from-nothing": Mutant(
        "The window of the new timeline begins with nothing out.",
        allot_batch,
        "successor",
        _nothing_out,
        test_a_confirmed_restore_issues_what_postgres_knows_to_be_left,
    ),
    "lost-branch-credited": Mutant(
        "Units that only the lost branch gave come back as credit.",
        returns,
        "lock_windows",
        _of_this_timeline,
        test_units_of_a_lost_branch_never_come_back_as_credit,
    ),
    "timeline-kept": Mutant(
        "Generations of the lost branch and of the present one share their numbers.",
        witnesses,
        "commit_witness",
        _old_timeline,
        test_a_generation_of_the_new_timeline_is_above_every_lost_one,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
async def test_a_ledger_with_one_rule_broken_is_found(
    name: str, settings: Settings, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rule of a set-back is needed: without it its trial fails."""
    mutant = MUTANTS[name]
    monkeypatch.setattr(mutant.owner, mutant.name, mutant.broken)
    found = False
    try:
        async with asyncio.timeout(60):
            await mutant.trial(settings, history)
    except* AssertionError:
        found = True
    assert found, mutant.reason
