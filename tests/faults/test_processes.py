"""What holds between real processes, and the proof that each trial would notice if it didn't.

Every trial runs twice: against the product, and against a process with one rule broken on purpose, which it must find
within a minute.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fleet_load import catalogue, cells
from fleet_support import Fleet
from limits_support import quickest
from mutant_site.process_mutants import MUTANTS
from process_finders import FINDERS, TENANT, TRIALS, WAIT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from process_finders import Trial

FOUND_WITHIN_S = 60.0
MUTANT_WAIT_S = 15.0
"""A process with a broken rule is given up on sooner: what it does wrong it does for ever."""

SITE = Path(__file__).parents[1] / "support" / "mutant_site"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Run a ledger and one sidecar; each trial adds the sidecar that it needs."""
    fleet = Fleet(tmp_path_factory.mktemp("trials"), sidecars=1)
    try:
        fleet.start()
        asyncio.run(fleet.apply(catalogue([TENANT], cells(1_000)[:1])))
        yield fleet
    finally:
        fleet.stop()


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.__name__)
async def test_the_promise_holds(fleet: Fleet, trial: Trial) -> None:
    """What each trial's docstring promises holds between real processes."""
    await trial(fleet, {}, WAIT_S)


@pytest.mark.parametrize("name", MUTANTS)
async def test_the_mutant_is_found(
    fleet: Fleet, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[[str], None]
) -> None:
    """A process that breaks the promise on purpose fails its trial within a minute."""
    mutant = MUTANTS[name]
    armed = tmp_path / "armed"
    broken = {
        "PYTHONPATH": os.pathsep.join([str(SITE), os.environ.get("PYTHONPATH", "")]),
        "TOLLKEEPER_TEST_MUTANT": name,
        "TOLLKEEPER_TEST_MUTANT_ARMED": str(armed),
    }
    said: list[str] = []

    async def find() -> float:
        if mutant.process == "ledger":
            await fleet.do(fleet.stack.kill_ledger)
            with monkeypatch.context() as environment:
                for key, value in broken.items():
                    environment.setenv(key, value)
                await fleet.do(fleet.stack.start_ledger)
        started_s = time.monotonic()
        try:
            with pytest.raises(AssertionError) as found:
                await FINDERS[name](fleet, broken if mutant.process == "sidecar" else {}, MUTANT_WAIT_S)
            said.append(str(found.value))
            return time.monotonic() - started_s
        finally:
            if mutant.process == "ledger":
                await fleet.do(fleet.stack.kill_ledger)
                await fleet.do(fleet.stack.start_ledger)

    took_s = await quickest(find, bound_s=FOUND_WITHIN_S, trials_max=3)
    assert armed.exists(), "the process ran with every rule whole"
    report(f"mutant {name} ({mutant.reason}) found in {took_s:.1f} s by {FINDERS[name].__name__}: {said[-1]}")
    assert took_s <= FOUND_WITHIN_S
