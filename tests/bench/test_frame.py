"""Turns that others disturb are taken again, and the report tells what was left of it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench import frame
from bench.frame import Bench, Sample, run_interleaved
from bench.machine import Stolen, watching_stolen

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


async def measured(
    monkeypatch: pytest.MonkeyPatch, percents: list[float], **options: float
) -> tuple[float, float, int]:
    """Sample a bench twice while others take so much, turn after turn; give its count, what they took, and turns."""
    left, turns = list(percents), []

    @contextmanager
    def watching() -> Iterator[Stolen]:
        stolen = Stolen()
        yield stolen
        stolen.percent = left.pop(0)

    async def ours() -> Sample:
        turns.append(1)
        return Sample(count=len(turns), wall_s=1.0, cpu_s=0.0)

    monkeypatch.setattr(frame, "watching_stolen", watching)
    bench = Bench(unit="turns", ours=ours, floor=None, floor_is="nothing", goals=())
    (found,) = await run_interleaved({"one": bench}, repeats=2, say=lambda _: None, **options)  # type: ignore[arg-type]
    return found.ours["per_s"], found.stolen_percent, len(turns)


async def test_a_disturbed_turn_is_taken_again_until_it_is_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns 3 and 4 were calm: the median is of these, and what others took in them is told."""
    assert await measured(monkeypatch, [50, 10, 2, 1], stolen_max=3) == (3.5, 2, 4)


async def test_the_calmest_counts_where_none_is_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, and says by how much it was disturbed all the same."""
    assert await measured(monkeypatch, [50, 10, 20, 0, 99], stolen_max=3, tries=3) == (3.0, 10, 4)


async def test_every_turn_counts_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others took is told and nothing else."""
    assert await measured(monkeypatch, [50, 10]) == (1.5, 50, 2)


def test_what_others_take_is_a_share_of_the_cores() -> None:
    """It is read of this machine."""
    with watching_stolen() as stolen:
        assert stolen.percent == 0
    assert 0 <= stolen.percent <= 100
