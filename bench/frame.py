"""What a bench is, and how benches are run: interleaved, each beside its floor, medians of the repeats."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from bench.machine import watching_stolen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from bench.stage import Stage

_PERCENT = 100
TRIES = 20
"""How often a turn is taken at most where others take too much of the cores."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one side did in one repeat."""

    count: int
    """Units of work done."""
    wall_s: float
    cpu_s: float
    """User and system time of the processes that are measured, together."""
    latencies_ms: Sequence[float] = ()
    """Of single calls, where these were timed."""
    more: Mapping[str, float] = field(default_factory=dict)
    """Figures of another kind, by names that end with their unit."""

    def figures(self) -> dict[str, float]:
        """Give what is compared: work per second, CPU time per unit, and the latencies' p50 and p99."""
        found = {"per_s": self.count / self.wall_s, "cpu_us": self.cpu_s * 1e6 / self.count, **self.more}
        if len(self.latencies_ms) > 1:
            found["p50_ms"] = statistics.median(self.latencies_ms)
            found["p99_ms"] = statistics.quantiles(self.latencies_ms, n=_PERCENT)[-1]
        return found


Side: TypeAlias = "Callable[[], Awaitable[Sample]]"


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on one figure: `ours.NAME`, or `ratio.NAME`, which is ours divided by the floor's of the same repeat.

    `ratio:WHO.NAME` is ours divided by that of one who is measured beside.
    """

    figure: str
    bound: float
    is_at_least: bool = True

    def is_met(self, value: float) -> bool:
        """Tell whether a value keeps the bound."""
        return value >= self.bound if self.is_at_least else value <= self.bound


@dataclass(frozen=True, slots=True)
class Bench:
    """One thing that is measured, ready to run."""

    unit: str
    ours: Side
    floor: Side | None
    floor_is: str
    """What the floor does; where there is none, what is missing for it."""
    goals: tuple[Goal, ...]
    beside: Mapping[str, Side] = field(default_factory=dict)
    """Others that are measured in the same turns, by name: peers, and further floors."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure."""

    is_quick: bool

    def of(self, full: int, *, quick: int) -> int:
        """Choose an amount of work."""
        return quick if self.is_quick else full

    @property
    def repeats(self) -> int:
        """Give how often each side is sampled."""
        return self.of(3, quick=1)


Opener: TypeAlias = "Callable[[Stage, Effort], AbstractAsyncContextManager[Bench]]"


@dataclass(frozen=True, slots=True)
class Beside:
    """Medians of one who was measured beside, and of ours divided by theirs of the same repeat."""

    figures: Mapping[str, float]
    ratio: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A bench's medians."""

    bench: Bench
    ours: Mapping[str, float]
    floor: Mapping[str, float]
    ratio: Mapping[str, float]
    beside: Mapping[str, Beside]
    stolen_percent: float
    """Share of the cores' time that others on the same hardware took, in the repeat where it was largest."""

    def value(self, figure: str) -> float | None:
        """Give a figure by the name that goals use; None where it was not measured."""
        side, _, name = figure.partition(".")
        kind, _, who = side.partition(":")
        if who:
            return self.beside[who].ratio.get(name) if who in self.beside else None
        found: Mapping[str, float] = getattr(self, kind)
        return found.get(name)


_OURS, _FLOOR = "ours", "floor"


async def run_interleaved(
    benches: Mapping[str, Bench],
    *,
    repeats: int,
    say: Callable[[str], None],
    stolen_max: float = _PERCENT,
    tries: int = TRIES,
) -> list[Outcome]:
    """Sample every side of every bench once per repeat, in turns, and give the medians.

    `stolen_max`: a turn of a bench, all its sides, in which others took more percent of the cores is taken again, up to
    so many `tries`; the one of which they took least counts.
    """
    samples: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in benches}
    taken = dict.fromkeys(benches, 0.0)
    for repeat in range(repeats):
        for name, bench in benches.items():
            say(f"{repeat + 1}/{repeats} {name}")
            sides = {_OURS: bench.ours, **({} if bench.floor is None else {_FLOOR: bench.floor}), **bench.beside}
            # Whoever comes first may find colder caches: they take turns.
            order = list(sides)[:: -1 if repeat % 2 else 1]
            turns = [await _turn(sides, order)]
            while turns[-1].stolen_percent > stolen_max and len(turns) < tries:
                say(f"  again: others took {turns[-1].stolen_percent:.0f} % of the cores")
                turns.append(await _turn(sides, order))
            calmest = min(turns, key=lambda turn: turn.stolen_percent)
            samples[name].append(calmest.figures)
            taken[name] = max(taken[name], calmest.stolen_percent)
    return [_outcome(bench, samples[name], stolen_percent=taken[name]) for name, bench in benches.items()]


@dataclass(frozen=True, slots=True)
class _Turn:
    """Every side's figures, and what others took of the cores meanwhile."""

    figures: dict[str, dict[str, float]]
    stolen_percent: float


async def _turn(sides: Mapping[str, Side], order: Sequence[str]) -> _Turn:
    with watching_stolen() as stolen:
        found = {side: (await sides[side]()).figures() for side in order}
    return _Turn(found, stolen.percent)


def _outcome(bench: Bench, turns: Sequence[Mapping[str, Mapping[str, float]]], *, stolen_percent: float) -> Outcome:
    beside = {who: Beside(_medians([turn[who] for turn in turns]), _ratio(turns, who)) for who in bench.beside}
    return Outcome(
        bench=bench,
        ours=_medians([turn[_OURS] for turn in turns]),
        floor=_medians([turn.get(_FLOOR, {}) for turn in turns]),
        ratio=_ratio(turns, _FLOOR),
        beside=beside,
        stolen_percent=stolen_percent,
    )


def _ratio(turns: Sequence[Mapping[str, Mapping[str, float]]], who: str) -> Mapping[str, float]:
    pairs = [(turn[_OURS], turn.get(who, {})) for turn in turns]
    return _medians(
        [
            {name: ours[name] / theirs[name] for name in ours.keys() & theirs.keys() if theirs[name]}
            for ours, theirs in pairs
        ]
    )


def _medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    common = set.intersection(*(set(each) for each in found))
    return {name: statistics.median(each[name] for each in found) for name in sorted(common)}
